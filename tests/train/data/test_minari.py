"""Minari datasets: recorded with its own DataCollector, read back, trained on; and their traps."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from support import QUICK, needs_robotics

from qcse.data.compatible import check_compatible
from qcse.data.minari import load_minari, write_minari
from qcse.data.sources import load_dataset
from qcse.data.transitions import Transitions
from qcse.envs import trust
from qcse.envs.make import make_env, task_for
from qcse.envs.minari import environment_spec
from qcse.errors import DatasetError, EnvError, TrustError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")
minari = pytest.importorskip("minari", reason="needs Minari: pip install 'qcse[minari]'")


def _tree_map(function: Any, tree: Any, *rest: Any) -> Any:
    """What jax.tree_util.tree_map does with dicts, lists and tuples of the first tree."""
    if isinstance(tree, dict):
        return {key: _tree_map(function, value, *(other[key] for other in rest)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_tree_map(function, *values) for values in zip(tree, *rest, strict=True))
    return None if tree is None else function(tree, *rest)


@pytest.fixture(autouse=True)
def stored_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    if importlib.util.find_spec("jax") is None:  # the DataCollector needs one function of it, not 90 MB
        module = types.ModuleType("jax.tree_util")
        module.tree_map = _tree_map  # type: ignore[attr-defined]
        package = types.ModuleType("jax")
        package.tree_util = module  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "jax", package)
        monkeypatch.setitem(sys.modules, "jax.tree_util", module)
    return tmp_path / "minari"


def record(dataset_id: str, env: gymnasium.Env[Any, Any], steps: int, seed: int = 0) -> list[list[tuple[Any, ...]]]:
    """Random actions through Minari's DataCollector; returns what passed, episode by episode."""
    collector = minari.DataCollector(env)
    rng, episodes, taken = np.random.default_rng(seed), [], 0
    while taken < steps:
        observation, _ = collector.reset(seed=seed + len(episodes))
        rows: list[tuple[Any, ...]] = []
        while True:
            low, high = env.action_space.low, env.action_space.high
            action = rng.uniform(low, high).astype(env.action_space.dtype)
            following, reward, terminated, truncated, _ = collector.step(action)
            rows.append((observation, action, reward, following, terminated))
            observation, taken = following, taken + 1
            if terminated or truncated:
                break
        episodes.append(rows)
    collector.create_dataset(dataset_id, algorithm_name="random", author="qcse", author_email="-", code_permalink="-")
    return episodes


def test_a_recording_of_the_data_collector_comes_back(tmp_path: Path) -> None:
    episodes = record("hopper/random-v0", gymnasium.make("Hopper-v5", max_episode_steps=15), 60)
    data = load_dataset("minari:hopper/random-v0", progress=False)
    rows = [row for episode in episodes for row in episode]
    np.testing.assert_array_equal(data.observations, np.array([row[0] for row in rows], np.float32))
    np.testing.assert_array_equal(data.next_observations, np.array([row[3] for row in rows], np.float32))
    np.testing.assert_allclose(data.actions, np.array([row[1] for row in rows]), atol=1e-6)
    np.testing.assert_array_equal(data.rewards, np.array([row[2] for row in rows], np.float32))
    np.testing.assert_array_equal(data.bootstrap, [1.0 - row[4] for row in rows])
    assert [stop - start for start, stop in data.episodes()] == [len(episode) for episode in episodes]
    assert data.source == "Minari dataset hopper/random-v0" and data.metadata["algorithm_name"] == "random"
    assert data.metadata["env_id"] == "Hopper-v5" and (data.bootstrap == 0).any() and (data.bootstrap == 1).any()
    # and through D4RL's transitions back into a Minari set
    write_minari("hopper/again-v0", data, "Hopper-v5", "random")
    assert load_minari("hopper/again-v0").fingerprint() == data.fingerprint()
    assert task_for("minari:hopper/random-v0").max_episode_steps == 15
    check_compatible("minari:hopper/random-v0", data)


def test_dict_observations_become_vectors_as_the_environments_do() -> None:
    needs_robotics()
    make_env("AntMaze_UMaze-v4")  # registers
    fixed = [[1, 1, 1, 1, 1], [1, "g", 0, 0, 1], [1, 1, 1, 0, 1], [1, "r", 0, 0, 1], [1, 1, 1, 1, 1]]
    ant = gymnasium.make("AntMaze_UMaze-v4", maze_map=fixed, max_episode_steps=12)
    episodes = record("antmaze/umaze-v0", ant, 20)
    data = load_minari("antmaze/umaze-v0")
    first = episodes[0][0][0]
    np.testing.assert_allclose(
        data.observations[0], np.concatenate([first["achieved_goal"], first["observation"]]), rtol=1e-6
    )
    assert data.observation_dim == 29
    env = make_env("minari:antmaze/umaze-v0")
    np.testing.assert_allclose(env.reset(seed=0)[0], data.observations[0], rtol=1e-6)
    check_compatible(env, data)
    with pytest.raises(EnvError, match=r"positions in minari:antmaze/umaze-v0 lie in walls of qcse/antmaze-umaze-v2"):
        check_compatible("qcse/antmaze-umaze-v2", data)

    point = gymnasium.make("PointMaze_UMaze-v3", max_episode_steps=12)
    episodes = record("pointmaze/umaze-v0", point, 20)
    data = load_minari("pointmaze/umaze-v0")
    first = episodes[0][0][0]
    np.testing.assert_allclose(
        data.observations[0], np.concatenate([first["observation"], first["desired_goal"]]), rtol=1e-6
    )
    assert data.observation_dim == 6 and make_env("minari:pointmaze/umaze-v0").observation_space.shape == (6,)


def test_actions_are_mapped_to_one(tmp_path: Path) -> None:
    record("pendulum/random-v0", gymnasium.make("Pendulum-v1", max_episode_steps=10), 30)  # torques up to 2
    data = load_minari("pendulum/random-v0")
    stored = np.concatenate([episode.actions for episode in minari.load_dataset("pendulum/random-v0")])
    np.testing.assert_allclose(data.actions, stored / 2.0, atol=1e-6)
    assert 0.8 < np.abs(data.actions).max() <= 1.0


def test_training_on_a_minari_set_names_its_source(tmp_path: Path, qcse_here) -> None:
    record("hopper/random-v0", gymnasium.make("Hopper-v5", max_episode_steps=20), 100)
    steps = ["--offline-steps", 5, "--online-steps", 5, *QUICK]
    qcse_here("train", "--dataset", "minari:hopper/random-v0", "--algo", "cql", "--out", "run", *steps, check=True)
    machine = json.loads((tmp_path / "run" / "machine.json").read_text())
    assert machine["data"]["source"] == "Minari dataset hopper/random-v0"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["env"] == "minari:hopper/random-v0"
    assert qcse_here("train", "--resume", "run")[0] == 0


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("minari.storage.local.hosting.download_dataset", offline)
    (tmp_path / "minari" / "not a name" / "data").mkdir(parents=True)  # which the library's own listing stumbles over
    with pytest.raises(DatasetError, match=r"minari:no/such-v0 is neither stored.*service not known.*MINARI_DATASETS"):
        load_minari("no/such-v0")
    with pytest.raises(DatasetError, match="neither stored"):
        make_env("minari:no/such-v0")
    record("cartpole/random-v0", DiscreteOnly(), 20)
    with pytest.raises(DatasetError, match=r"minari:cartpole/random-v0 has actions .*Discrete|MultiDiscrete"):
        load_minari("cartpole/random-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(DatasetError, match=r"pip install 'qcse\[minari\]'"):
        load_minari("hopper/random-v0")


class DiscreteOnly(gymnasium.Env[Any, Any]):
    """Actions are choices."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.MultiDiscrete([3])
    action_space.low, action_space.high = np.array([0]), np.array([2])  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(2, np.float32), 0.0, self.steps == 5, False, {}


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    data = Transitions(
        observations=np.zeros((3, 2), np.float32),
        actions=np.zeros((3, 1), np.float32),
        rewards=np.zeros(3, np.float32),
        next_observations=np.zeros((3, 2), np.float32),
        bootstrap=np.ones(3, np.float32),
        episode_end=np.array([False, False, True]),
        metadata={},
    )
    assert write_minari("some/thing-v0", data, None).is_dir()
    with pytest.raises(DatasetError, match=r"minari:some/thing-v0 cannot be written"):
        write_minari("some/thing-v0", data, None)
    with pytest.raises(DatasetError, match="minari:no version is not a name of Minari's"):
        write_minari("no version", data, None)


def few_rows() -> Transitions:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(7, 11)).astype(np.float32)
    return Transitions(
        observations=states[:-1],
        actions=rng.uniform(-1, 1, (6, 3)).astype(np.float32),
        rewards=rng.normal(size=6).astype(np.float32),
        next_observations=states[1:],
        bootstrap=np.ones(6, np.float32),
        episode_end=np.arange(6) % 3 == 2,
        metadata={},
    )


def edit_metadata(folder: Path, **changes: Any) -> None:
    """Change the stored environment, or, where the name begins with a capital, the metadata themselves."""
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["env_spec"])
    for key, value in changes.items():
        (metadata if key[0].isupper() else spec)[key.lower()] = value
    path.write_text(json.dumps(metadata | ({} if "Env_spec" in changes else {"env_spec": json.dumps(spec)})))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "Fine-v0", "entry_point": "os:system", "kwargs": {"command": "touch executed"}},
        {"entry_point": "os:system", "kwargs": {"command": "touch executed"}},
        {"entry_point": None},
        {"id": "os:Fine-v0"},
        {"additional_wrappers": [{"name": "A", "entry_point": "os:system", "kwargs": {"command": "touch executed"}}]},
        {"additional_wrappers": [{"name": "A", "entry_point": "os:system", "kwargs": None}]},
        {"kwargs": {"xml_file": "/etc/passwd"}},
        {"kwargs": {"xml_file": "other.xml"}},
        {"kwargs": {"reset_noise_scale": {"a": ["os:system"]}}},
        {"kwargs": ["os:system"]},
    ],
)
def test_what_a_dataset_names_is_not_executed(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_metadata(write_minari("some/set-v0", few_rows(), "Hopper-v5"), **changes)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrustError, match=r"minari:some/set-v0 .*entry point .*--env.*--trust-env-spec"):
        make_env("minari:some/set-v0")
    assert len(load_minari("some/set-v0")) == 6  # the data themselves can be read
    assert not (tmp_path / "executed").exists()


def test_what_was_looked_at_may_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = "gymnasium.envs.mujoco.hopper_v5:HopperEnv"
    edit_metadata(write_minari("some/set-v0", few_rows(), "Hopper-v5"), id="Mine-v0", entry_point=entry)
    with pytest.raises(TrustError, match="registers no environment of that name"):
        make_env("minari:some/set-v0")
    monkeypatch.setattr(trust, "_all", True)
    assert make_env("minari:some/set-v0").spec.id == "Mine-v0"


@pytest.mark.parametrize(
    "changes",
    [
        {"Env_spec": "{"},
        {"Env_spec": "[]"},
        {"Env_spec": 7},
        {"id": 7},
        {"max_episode_steps": -1},
        {"max_episode_steps": "ten"},
        {"max_episode_steps": 1e300},
    ],
)
def test_an_environment_that_cannot_be_read_is_named(changes: dict[str, Any]) -> None:
    edit_metadata(write_minari("some/set-v0", few_rows(), "Hopper-v5"), **changes)
    with pytest.raises(DatasetError, match=r"minari:some/set-v0 .*give --env"):
        make_env("minari:some/set-v0")


def test_a_converted_set_keeps_its_environments_limit() -> None:
    folder = write_minari("hopper/mine-v0", few_rows(), "Hopper-v5")
    assert minari.load_dataset("hopper/mine-v0").env_spec.max_episode_steps == 1000
    edit_metadata(folder, max_episode_steps=None)  # as this package stored it once
    assert task_for("minari:hopper/mine-v0").max_episode_steps == 1000
    edit_metadata(folder, max_episode_steps=77, kwargs={"reset_noise_scale": 0.25, "render_mode": "human"})
    spec = environment_spec("hopper/mine-v0")
    assert spec.max_episode_steps == 77 and spec.kwargs == {"reset_noise_scale": 0.25}
    assert gymnasium.spec("Hopper-v5").kwargs == {}  # the registered one is as it was


@pytest.mark.parametrize("shape", [(), (2, 2), (3,)])
def test_dicts_of_any_shapes_become_vectors(shape: tuple[int, ...]) -> None:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    rng, box = np.random.default_rng(0), gymnasium.spaces.Box
    observations = {"b": rng.normal(size=(21, *shape)), "a": rng.normal(size=(21, 2))}
    episode = EpisodeBuffer(
        id=0, observations=observations, actions=np.zeros((20, 2), np.float32), rewards=np.zeros(20),
        terminations=np.zeros(20, bool), truncations=np.arange(20) == 19,
    )  # fmt: skip
    minari.create_dataset_from_buffers(
        "dict-v0", [episode], action_space=box(-1, 1, (2,)),
        observation_space=gymnasium.spaces.Dict(b=box(-1, 1, shape), a=box(-1, 1, (2,))),
    )  # fmt: skip
    expected = np.concatenate([observations["a"], observations["b"].reshape(21, -1)], axis=1).astype(np.float32)
    np.testing.assert_array_equal(load_minari("dict-v0").observations, expected[:-1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Data_format": "parquet"}, "stored as 'parquet'"),
        ({"Total_steps": 10**15}, "says 1000000000000000 steps, its episodes hold 6"),
        ({"Total_steps": "6"}, "total_steps: '6'"),
        ({"Total_episodes": 10**15}, "says 1000000000000000 episodes"),
        ({"Observation_space": '{"type": "Box", "shape": [99999999999], "low": 0, "high": 1}'}, "observes 11 numbers"),
        ({"Observation_space": '{"type": "Box", "shape": "x"}'}, "observes .* expected a vector"),
        ({"Observation_space": "[" * 100_000}, "no observation_space that can be read"),
        ({"Action_space": '{"type": "Box", "shape": [3], "low": "x", "high": 1}'}, "finite bounds"),
        ({"Action_space": '{"type": "Text"}'}, "finite bounds"),
    ],
)
def test_metadata_that_do_not_fit_are_named(changes: dict[str, Any], expected: str) -> None:
    edit_metadata(write_minari("some/set-v0", few_rows(), "Hopper-v5"), **changes)
    with pytest.raises(DatasetError, match=rf"minari:some/set-v0 .*{expected}|some/set-v0: .*{expected}"):
        load_minari("some/set-v0")


def test_files_outside_a_datasets_folder_are_not_read(tmp_path: Path) -> None:
    folder = write_minari("some/set-v0", few_rows(), "Hopper-v5")
    for name in ("main_data.hdf5", "metadata.json"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(DatasetError, match=rf"{name} leads out of its folder"):
            load_minari("some/set-v0")
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)
    assert len(load_minari("some/set-v0")) == 6

"""qcse data: list, info with its picture, check against environments, convert."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import qcse_command, record_random_policy, shared_data

from qcse.cli.data import data
from qcse.data.convert import convert
from qcse.data.d4rl import load_d4rl, write_d4rl
from qcse.data.facts import describe
from qcse.data.physics import MATCH, check_physics
from qcse.data.picture import draw
from qcse.data.tasks import TASKS
from qcse.errors import DatasetError, EnvError


def small(path: Path) -> Path:
    """Three episodes: 4 steps to a terminal state, 3 to a time limit, 3 cut; one duplicate row, one constant column."""
    observations = np.arange(20, dtype=np.float32).reshape(10, 2)
    observations[:, 1] = 7.0
    observations[6] = observations[5]
    actions = np.linspace(-1, 1, 10, dtype=np.float32).reshape(10, 1)
    actions[6] = actions[5]
    arrays = {
        "observations": observations,
        "actions": actions,
        "rewards": np.ones(10),
        "next_observations": np.concatenate([observations[1:], observations[:1]]),
        "terminals": np.arange(10) == 3,
        "timeouts": np.arange(10) == 6,
    }
    write_d4rl(path, arrays, {"env_id": "Hopper-v5"})
    return path


def test_info_tells_what_is_there(tmp_path: Path) -> None:
    facts, transitions = describe(str(small(tmp_path / "a.hdf5")))
    assert (facts.rows, facts.episodes, facts.observation_dim, facts.action_dim) == (10, 3, 2, 1)
    assert (facts.lengths.low, facts.lengths.high, facts.returns.mean) == (3, 4, pytest.approx(10 / 3))
    assert facts.ends == {"end in a terminal state": 1, "are cut": 2}
    assert facts.flags == {"terminals": 1, "timeouts": 1, "both": 0}
    assert (facts.duplicates, facts.constant, facts.action_range, facts.saturated) == (1, [1], (-1.0, 1.0), 0.2)
    assert facts.family == "hopper" and facts.scores is not None
    assert facts.scores.high == pytest.approx(100 * (4 + 20.272305) / (3234.3 + 20.272305))
    assert "1 rows repeat" in str(facts) and "a.hdf5" in str(facts)
    assert describe(str(tmp_path / "a.hdf5"), "other")[0].scores is None
    picture = draw(transitions, facts, tmp_path / "deep" / "a.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    assert [path.name for path in picture.parent.iterdir()] == ["a.png"]


def test_info_counts_damage_instead_of_refusing_it(tmp_path: Path) -> None:
    path = small(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file["observations"][2, 0] = np.nan
        file["rewards"][4] = np.inf
    with pytest.raises(DatasetError, match="NaN or infinite"):
        load_d4rl(path)
    facts, transitions = describe(str(path))
    assert facts.not_finite == {"observations": 1, "actions": 0, "rewards": 1, "next_observations": 0}
    assert "observations 1, rewards 1" in str(facts)
    assert draw(transitions, facts, tmp_path / "a.png").exists()


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5", "qcse/maze2d-umaze-v1", "qcse/antmaze-umaze-v2"])
def test_an_environment_reproduces_its_own_recordings(env_id: str, tmp_path: Path) -> None:
    path = record_random_policy(env_id, 150, tmp_path / "a.hdf5")
    report = check_physics(path, env_id, rows=100, progress=False)
    assert report.rows == 100 and report.endings == 1.0
    assert report.observation_error.high < MATCH and report.step_error.median < MATCH and report.matches
    with h5py.File(path, "r+") as file:  # the layout of AntMaze: the row below is the next state
        del file["next_observations"]
    assert check_physics(path, env_id, rows=100, progress=False).matches


def test_other_physics_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record_random_policy("qcse/antmaze-umaze-v2", 100, tmp_path / "a.hdf5")
    assert data(["check", str(path), "--env", "qcse/antmaze-umaze-v4"]) == 1  # the other ant
    assert "the physics differ" in capsys.readouterr().out
    assert data(["check", str(path), "--env", "qcse/antmaze-umaze-v2"]) == 0
    with pytest.raises(EnvError, match=r"sizes \(6, 6, .*choose the environment"):
        check_physics(path, "Hopper-v5", progress=False)
    with pytest.raises(DatasetError, match="has no infos/qpos"):
        check_physics(small(tmp_path / "b.hdf5"), "Hopper-v5", progress=False)
    with pytest.raises(DatasetError, match="keeps no states of a simulator"):
        check_physics(Path("minari:hopper/medium-v0"), progress=False)
    with h5py.File(path, "r+") as file:
        del file["metadata/env_id"]
    with pytest.raises(DatasetError, match="does not say which environment"):
        check_physics(path, progress=False)
    with pytest.raises(EnvError, match="cannot be put to a stored state"):
        check_physics(path, "Pendulum-v1", progress=False)


def test_independent_data_match_the_installed_mujoco() -> None:
    path = shared_data("hopper-medium-replay.hdf5")
    report = check_physics(path, progress=False)
    assert report.env_id == "Hopper-v5" and report.matches and report.steps == report.rewards == report.endings == 1.0
    assert report.step_error.high < 1e-5 and report.reward_error.high < 1e-5
    older = check_physics(path, "Hopper-v4", progress=False)  # which rewards a fall
    assert older.matches and 0.9 < older.rewards < 1.0 and "of the rewards differ" in str(older)


def test_conversion_to_minari_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari", reason="needs Minari: pip install 'qcse[minari]'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    path = record_random_policy("Hopper-v5", 60, tmp_path / "a.hdf5")
    assert "minari:hopper/replay-v0" in convert(str(path), "minari:hopper/replay-v0")
    assert convert("minari:hopper/replay-v0", str(tmp_path / "b.hdf5")) == str(tmp_path / "b.hdf5")
    first, second = load_d4rl(path), load_d4rl(tmp_path / "b.hdf5")
    assert first.fingerprint() == second.fingerprint() and second.metadata["env_id"] == "Hopper-v5"
    assert second.metadata["source"] == "Minari dataset hopper/replay-v0"
    with pytest.raises(DatasetError, match="exists already"):
        convert("minari:hopper/replay-v0", str(tmp_path / "b.hdf5"))
    convert(str(path), str(tmp_path / "c.hdf5"), "Hopper-v4")
    assert load_d4rl(tmp_path / "c.hdf5").metadata["env_id"] == "Hopper-v4"
    for name in ("", "bad", "bad name-v0", "../bad-v0"):
        with pytest.raises(DatasetError, match=rf"minari:{name} is not a name of Minari's"):
            convert(str(path), f"minari:{name}")
    assert [entry.name for entry in (tmp_path / "minari").iterdir()] == ["hopper"]


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    assert data(["list", "--json"]) == 0
    tasks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(tasks) == len(TASKS) and {"url", "layout", "reference", "preset"} <= set(tasks[0])
    assert data(["list", "antmaze-large"]) == 0
    text = capsys.readouterr().out
    assert "antmaze-large-play-v2" in text and "to download" in text and "2 tasks" in text and "hopper" not in text
    path = small(tmp_path / "a.hdf5")
    assert data(["info", str(path), "--json", "--picture", str(tmp_path / "a.png"), "--task", "hopper-medium-v2"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 10 and (tmp_path / "a.png").exists()
    assert data(["fetch", "hopper-replay"]) == 0
    assert load_d4rl(capsys.readouterr().out.strip()).observation_dim == 11
    assert data([]) == 2 and data(["--help"]) == 0 and data(["lst"]) == 2
    assert "unknown command 'lst'" in capsys.readouterr().err


def test_the_command_line_has_it(tmp_path: Path, qcse_here) -> None:
    assert "convert" in qcse_here("data", "--help", check=True)[1]
    for words, message in (
        (("info", "none.hdf5"), "no file at none.hdf5"),
        (("info", "a.hdf5", "--task", "hoper-medium"), "near matches: hopper-medium-v2"),
        (("info", "a.hdf5", "--picture", "a.jpg"), "ends in .png"),
        (("info", "a.hdf5", "--picture", "folder.png"), "folder.png: Is a directory"),
        (("list", "hoper"), "no task is called 'hoper'"),
        (("check", "a.hdf5", "--rows", "0"), "rows: got 0"),
        (("fetch", "hopper-medium"), "near matches: hopper-medium-v2"),
    ):
        small(tmp_path / "a.hdf5")
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        code, said = qcse_here("data", *words)
        assert code == 1 and message in said, said


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    lists = subprocess.Popen(qcse_command("data", "list", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert lists.stdout is not None and lists.stderr is not None
    lists.stdout.close()
    assert lists.wait(timeout=60) == 141 and lists.stderr.read() == b""

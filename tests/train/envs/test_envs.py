"""Environments: names and sizes, resumption in mid-episode to the bit, evaluation as a pure function of the policy."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from support import shared_data

from qcse.data.compatible import check_compatible, use_unit_actions
from qcse.data.d4rl import load_d4rl
from qcse.data.transitions import Transitions
from qcse.envs.episodes import EpisodeRecorder, Evaluator, Policy, evaluate
from qcse.envs.make import make_env, task_for
from qcse.errors import EnvError

MUJOCO = {"Hopper-v5": (11, 3), "Walker2d-v5": (17, 6), "HalfCheetah-v5": (17, 6), "Ant-v5": (105, 8)}


def transitions(observation_dim: int, action_dim: int, n: int = 4, **metadata: str) -> Transitions:
    return Transitions(
        observations=np.zeros((n, observation_dim), np.float32),
        actions=np.zeros((n, action_dim), np.float32),
        rewards=np.zeros(n, np.float32),
        next_observations=np.zeros((n, observation_dim), np.float32),
        bootstrap=np.ones(n, np.float32),
        episode_end=np.arange(n) == n - 1,
        metadata=dict(metadata),
        path="data.hdf5",
    )


class Drift(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point moved by action and noise; the noise comes from the reset generator, so a replay must restore it."""

    def __init__(self, success_at: int | None = None, limit: int | None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(np.array([-2.0, 0.0]), np.array([4.0, 10.0]), dtype=np.float64)
        self.success_at, self.limit, self.noise = success_at, limit, 0.1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.state = self.np_random.normal(size=2)
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.taken = action
        self.state = self.state + 0.01 * action + self.noise * self.np_random.normal(size=2)
        info = {} if self.success_at is None else {"success": self.steps == self.success_at}
        return self.state.copy(), float(self.state.sum()), self.steps == self.limit, False, info


class Counted(Drift):
    """Observes a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2, 2))


class Unbounded(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    names = {
        "Drift-v0": (Drift, 30),
        "DriftGoal-v0": (lambda: Drift(success_at=3), 5),
        "DriftShort-v0": (lambda: Drift(limit=7), 7),
        "DriftMatrix-v0": (Counted, 30),
        "DriftUnbounded-v0": (Unbounded, 30),
        "DriftEndless-v0": (Drift, None),
    }
    for name, (entry, limit) in names.items():
        gymnasium.register(name, entry_point=entry, max_episode_steps=limit)
    yield
    for name in names:
        del gymnasium.registry[name]


# Tasks and sizes.


@pytest.mark.parametrize("env_id", [*MUJOCO, "Hopper-v4", "Ant-v4"])
def test_mujoco_tasks(env_id: str) -> None:
    task = task_for(env_id)
    assert task.family == env_id.split("-")[0].lower() and task.max_episode_steps == 1000
    assert task.reference is not None and task.reference[0] < task.reference[1]
    env = make_env(env_id)
    size = (27, 8) if env_id == "Ant-v4" else MUJOCO[env_id.replace("v4", "v5")]
    assert (env.observation_space.shape, env.action_space.shape) == ((size[0],), (size[1],))
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.float32
    observation, reward, *_ = env.step(np.zeros(size[1], np.float32))
    assert observation.dtype == np.float32 and type(reward) is float


def test_any_other_environment_with_vectors_works() -> None:
    task = task_for("Pendulum-v1")
    assert (task.family, task.reference, task.max_episode_steps) == ("other", None, 200)
    env = make_env("Pendulum-v1")
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


def test_actions_are_mapped_to_the_bounds_of_the_environment() -> None:
    env = make_env("Drift-v0")
    env.reset(seed=0)
    for action, expected in (([-1.0, -1.0], [-2.0, 0.0]), ([1.0, 1.0], [4.0, 10.0]), ([0.0, 0.5], [1.0, 7.5])):
        env.step(np.array(action, np.float32))
        np.testing.assert_allclose(env.unwrapped.taken, expected)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Hoper-v5", "'Hoper-v5'.*near matches.*Hopper-v5"),
        ("Hopper-v9", "'Hopper-v9'.*near matches.*Hopper-v5"),
        ("hopper-medium", "'hopper-medium'"),
        ("", "''"),
        ("no_such_module:Thing-v0", "module 'no_such_module', which cannot be imported"),
        ("Hopper-v2", "no time limit.*near matches: Hopper-v"),
        ("DriftEndless-v0", "no time limit"),
        ("DriftMatrix-v0", r"a Box of shape \(D,\)"),
        ("DriftUnbounded-v0", "finite bounds"),
        ("CartPole-v1", r"takes actions Discrete\(2\)"),
    ],
)
def test_unsuitable_environments(env_id: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(env_id)


def test_data_and_environment_must_fit() -> None:
    for env_id, size in MUJOCO.items():
        check_compatible(env_id, transitions(*size))
    check_compatible(make_env("Hopper-v5"), transitions(11, 3))
    with pytest.raises(
        EnvError, match=r"Hopper-v5 has observations of 11 numbers, data.hdf5 has 17; it was .* Walker2d"
    ):
        check_compatible("Hopper-v5", transitions(17, 3, env_id="Walker2d-v5"))
    with pytest.raises(EnvError, match=r"Hopper-v5 has actions of 3 numbers, data.hdf5 has 6; choose"):
        check_compatible(make_env("Hopper-v5"), transitions(11, 6))
    with pytest.raises(EnvError, match=r"of 105 numbers, data.hdf5 has 111; D4RL's ant has 111"):
        check_compatible("Ant-v5", transitions(111, 8))
    wide = transitions(11, 3)
    wide.actions[2, 1] = -2.5
    with pytest.raises(EnvError, match=r"actions up to 2.5; expected -1 to 1"):
        check_compatible("Hopper-v5", wide)


def test_mujoco_writes_no_log_file_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    env = make_env("Walker2d-v5")
    env.reset(seed=0)
    with caplog.at_level(logging.WARNING), pytest.raises(EnvError, match=r"a reward that is|of the observation"):
        env.step(np.full(6, np.nan, np.float32))
    assert "Nan, Inf or huge value" in caplog.text
    assert list(tmp_path.iterdir()) == []


# What an environment gives is checked, copied, and said to be the environment's.


class Odd(gymnasium.Env[Any, Any]):
    """Keeps Gymnasium's protocol but for what `change` does to the results of reset and step."""

    change: Callable[[list[Any]], Any] = staticmethod(tuple)
    high = 1.0

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-self.high, self.high, (2,), np.float32)
        self.buffer = np.zeros(3, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.rng = np.random.default_rng(seed)  # a generator of its own
        self.buffer[:] = self.rng.normal(size=3)
        return type(self).change([self.buffer, {}])

    def step(self, action: Any) -> Any:
        self.taken = np.array(action)
        action[:] = 7.0  # what it is given is not the caller's
        self.buffer[:] += 1.0
        return type(self).change([self.buffer, -1.0, False, False, {}])


gymnasium.register("Odd-v0", entry_point=Odd, max_episode_steps=5)


def at_step(position: int, value: Any) -> Callable[[list[Any]], Any]:
    return lambda results: tuple(value if i == position and len(results) == 5 else r for i, r in enumerate(results))


def raising(error: Exception) -> Callable[[list[Any]], Any]:
    def change(results: list[Any]) -> Any:
        raise error

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: results[0], r"gave in its reset an array of shape \(3,\); expected from reset a tuple"),
        (lambda results: (*results, 1, 2), "gave in its reset a tuple of 4"),
        (lambda results: tuple(results[:4]) if len(results) == 5 else tuple(results), "expected 5, got 4.*truncated"),
        (at_step(0, np.zeros(4)), r"step 1 of an episode an observation of shape \(4,\); expected from step shape"),
        (at_step(0, np.zeros((3, 1))), r"shape \(3, 1\)"),
        (at_step(0, "abc"), "an observation that is 'abc' .*numbers"),
        (at_step(0, [0.0, np.nan, 0.0]), "nan as number 1 of the observation; expected from step finite"),
        (at_step(0, np.array([0.0, 0.0, 1e300])), "1e.300 as number 2"),
        (at_step(1, np.array([1.0])), r"a reward that is an array of shape \(1,\); .*one finite number"),
        (at_step(1, np.inf), "a reward that is inf"),
        (at_step(1, None), "a reward that is None"),
        (at_step(2, 3), "terminated that is 3"),
        (at_step(3, "no"), "truncated that is 'no'"),
        (at_step(4, None), "info that is None"),
        (raising(ConnectionRefusedError(111, "refused")), r"in its reset: ConnectionRefusedError.*test_envs.py, line"),
    ],
)
def test_what_breaks_the_protocol_is_named(change: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Odd, "change", staticmethod(change))
    env = make_env("Odd-v0")
    with pytest.raises(EnvError, match=f"env: Odd-v0 .*{message}"):
        env.reset(seed=0)
        env.step(np.zeros(2, np.float32))


@pytest.mark.parametrize("kind", [np.float32, np.float64, int, lambda x: np.array(x)])
def test_scalars_of_any_kind_are_numbers(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Odd, "change", staticmethod(at_step(1, kind(-2))))
    env = make_env("Odd-v0")
    env.reset(seed=0)
    _, reward, terminated, _, _ = env.step(np.zeros(2, np.float32))
    assert type(reward) is float and reward == -2.0 and terminated is False


def test_nothing_is_shared_with_the_environment() -> None:
    env = make_env("Odd-v0")
    first, _ = env.reset(seed=0)
    before, action = first.copy(), np.zeros(2, np.float32)
    second = env.step(action)[0]
    np.testing.assert_array_equal(first, before)
    np.testing.assert_array_equal(second, before + 1.0)
    assert not action.any()


def test_an_environment_with_a_generator_of_its_own_is_repeated() -> None:
    recorder = EpisodeRecorder("Odd-v0")
    first = recorder.reset(4).copy()
    recorder.step(np.zeros(2))
    other = EpisodeRecorder("Odd-v0")
    other.load_state_dict(recorder.state_dict())
    np.testing.assert_array_equal(other.observation, recorder.observation)
    np.testing.assert_array_equal(other.reset(4), first)


def test_what_an_environment_does_to_torch_is_undone(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    class Double(Odd):
        def __init__(self) -> None:
            torch.set_default_dtype(torch.float64)
            super().__init__()

    gymnasium.register("Double-v0", entry_point=Double, max_episode_steps=5)
    make_env("Double-v0")
    assert torch.get_default_dtype() == torch.float32 and "Double-v0 set torch's default dtype" in caplog.text


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1.0, -1.0), (-np.inf, 1.0), (np.nan, 1.0)])
def test_bounds_that_bound_nothing_are_refused(low: float, high: float) -> None:
    class Unbounded(Odd):
        def __init__(self) -> None:
            super().__init__()
            self.action_space.low[:], self.action_space.high[:] = low, high

    gymnasium.register("Unbounded-v0", entry_point=Unbounded, max_episode_steps=5)
    with pytest.raises(EnvError, match=r"Unbounded-v0 takes actions .*; expected"):
        make_env("Unbounded-v0")


def recorded(actions: np.ndarray, ends: Sequence[int] = (), **metadata: str) -> Transitions:
    n = len(actions)
    end = np.isin(np.arange(n), [*ends, n - 1])
    zeros = np.zeros((n, 3), np.float32)
    return Transitions(zeros, actions.astype(np.float32), zeros[:, 0], zeros, np.ones(n, np.float32), end, metadata)


@pytest.mark.parametrize(
    ("high", "most", "units", "metadata", "became"),
    [
        (0.4, 0.4, "environment", {}, 1.0),
        (0.4, 0.4, "unit", {}, 0.4),
        (0.4, 0.4, "auto", {}, "may be .*--action-units"),
        (0.4, 0.4, "auto", {"action_units": "unit"}, 0.4),
        (0.4, 0.4, "auto", {"action_units": "environment"}, 1.0),
        (0.4, 0.4, "auto", {"algorithm": "qcse 0.1.0 SAC"}, 0.4),
        (0.4, 0.9, "auto", {}, 0.9),
        (0.4, 0.9, "environment", {}, "expected Odd-v0's bounds, -0.4 to 0.4"),
        (2.0, 1.5, "auto", {}, 0.75),
        (2.0, 1.5, "unit", {}, "expected -1 to 1"),
        (2.0, 2.5, "auto", {}, "actions from -2.5 to 2.5; expected Odd-v0's bounds"),
        (1.0, 0.4, "auto", {}, 0.4),
    ],
)
def test_actions_are_brought_to_unit_bounds(
    high: float, most: float, units: str, metadata: dict[str, str], became: float | str, monkeypatch
) -> None:
    monkeypatch.setattr(Odd, "high", high)
    env, data = make_env("Odd-v0"), recorded(np.array([[-most, most], [0.0, most]]), **metadata)
    if isinstance(became, str):
        with pytest.raises(EnvError, match=became):
            use_unit_actions(env, data, units)
        return
    use_unit_actions(env, data, units)
    np.testing.assert_allclose(data.actions, np.array([[-became, became], [0.0, became]]), rtol=1e-6, atol=1e-7)


def test_episodes_longer_than_the_time_limit(caplog: pytest.LogCaptureFixture) -> None:
    env, actions = make_env("Odd-v0"), np.zeros((20, 2))
    with pytest.raises(EnvError, match=r"20 rows without the end of an episode, Odd-v0's .* at most 5 steps"):
        check_compatible(env, recorded(actions))
    check_compatible(env, recorded(actions, ends=(5, 11, 17)))  # one step more, as in D4RL's AntMaze
    assert caplog.text == ""
    check_compatible(env, recorded(actions, ends=(4, 9)))
    assert "1 of 3 episodes" in caplog.text and "the longest has 10" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"), [(".x:Odd-v0", "the import of .x: TypeError"), (":Odd-v0", "Empty module name")]
)
def test_names_of_modules_that_are_none(name: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(name)


# Resumption.


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("env_id", [*MUJOCO, "Drift-v0", "Pendulum-v1"])
@pytest.mark.parametrize("steps", [0, 37, 290])
def test_a_resumed_episode_goes_on_as_if_it_had_never_stopped(env_id: str, steps: int) -> None:
    rng = np.random.default_rng(steps)
    env, seeds = EpisodeRecorder(env_id), iter(range(100))
    size = env.env.action_space.shape
    env.reset(next(seeds))
    for _ in range(steps):
        # Small actions keep Hopper and Walker2d on their feet for some dozen steps, so episodes end on the way as well.
        if env.step(rng.uniform(-0.3, 0.3, size))[2:] != (False, False):
            env.reset(next(seeds))
    state = through_a_file(env.state_dict())
    other = EpisodeRecorder(env_id)
    other.load_state_dict(state)
    assert (other.episode_length, other.episode_return) == (env.episode_length, env.episode_return)
    np.testing.assert_array_equal(other.observation, env.observation)
    resets = 0
    for _ in range(80):
        action = rng.uniform(-1, 1, size).astype(np.float32)
        a, b = env.step(action), other.step(action)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:] == b[1:]
        if a[2] or a[3]:
            resets += 1
            np.testing.assert_array_equal(env.reset(resets), other.reset(resets))
    if env_id in ("Hopper-v5", "Walker2d-v5", "Drift-v0"):
        assert resets > 0


def test_an_episode_that_has_just_ended_is_resumed_as_ended() -> None:
    env = EpisodeRecorder("DriftShort-v0")
    env.reset(0)
    outcomes = [env.step(np.zeros(2))[2:] for _ in range(7)]
    assert outcomes == [(False, False)] * 6 + [(True, False)]  # terminal in the very step of the time limit
    other = EpisodeRecorder("DriftShort-v0")
    other.load_state_dict(through_a_file(env.state_dict()))
    assert other.done and other.episode_length == 7
    with pytest.raises(RuntimeError, match="call reset first"):
        other.step(np.zeros(2))
    np.testing.assert_array_equal(env.reset(1), other.reset(1))


def test_a_recorder_that_was_never_reset() -> None:
    state = through_a_file(EpisodeRecorder("Drift-v0").state_dict())
    other = EpisodeRecorder("Drift-v0")
    other.load_state_dict(state)
    assert other.observation is None and other.done
    np.testing.assert_array_equal(other.reset(1), make_env("Drift-v0").reset(seed=1)[0])


def test_a_state_of_an_earlier_version_is_understood() -> None:
    """It held the generator before the reset, its integers as text, instead of the episode's seed."""
    generator = np.random.Generator(np.random.PCG64(5))
    inner = generator.bit_generator.state
    numbers = {**inner["state"], "has_uint32": inner["has_uint32"], "uinteger": inner["uinteger"]}
    env = make_env("Drift-v0")
    env.reset(seed=0)
    env.unwrapped.np_random = generator
    observation = env.reset()[0]
    for _ in range(3):
        observation = env.step(np.full(2, 0.5, np.float32))[0]
    state = {
        "versions": {"gymnasium": "1.0"},
        "generator": {"kind": "PCG64", **{name: str(int(value)) for name, value in numbers.items()}},
        "actions": torch.full((3, 2), 0.5),
        "observation": torch.from_numpy(observation),
        "done": False,
    }
    for _ in range(2):  # as it was stored, and as it is stored again
        other = EpisodeRecorder("Drift-v0")
        other.load_state_dict(through_a_file(state))
        np.testing.assert_array_equal(other.observation, observation)
        state = other.state_dict()
    other.load_state_dict({"versions": {}, "generator": None})
    assert other.observation is None


def test_a_reused_action_array_does_not_change_the_record() -> None:
    env = EpisodeRecorder("Drift-v0")
    env.reset(0)
    action = np.zeros(2, np.float32)
    for i in range(5):
        action[:] = i / 10
        env.step(action)
    other = EpisodeRecorder("Drift-v0")
    other.load_state_dict(env.state_dict())
    np.testing.assert_array_equal(other.observation, env.observation)


def test_a_stored_episode_that_cannot_be_repeated(caplog: pytest.LogCaptureFixture) -> None:
    env = EpisodeRecorder("Drift-v0")
    env.reset(0)
    for _ in range(10):
        env.step(np.zeros(2))
    state = env.state_dict()
    with pytest.raises(EnvError, match=r"10 steps, but repeated it ended after 7.*gymnasium"):
        EpisodeRecorder("DriftShort-v0").load_state_dict(state)
    with pytest.raises(EnvError, match=r"actions of shape \(2,\), the environment takes \(3,\)"):
        EpisodeRecorder("Hopper-v5").load_state_dict(state)
    other = EpisodeRecorder("Drift-v0")
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(state)
    assert caplog.text == ""
    other.env.unwrapped.noise = 0.1 + 1e-6  # another version's numerics
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(state)
    assert "not bit for bit" in caplog.text and other.episode_length == 10


# Evaluation.


def policy(size: int, calls: list[tuple[int, ...]] | None = None) -> Policy:
    def act(observations: np.ndarray) -> np.ndarray:
        if calls is not None:
            calls.append(observations.shape)
        assert observations.dtype == np.float32
        return np.tanh(observations[:, :size] * 3.0)

    return act


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5"])
def test_evaluation_is_a_pure_function_of_the_policy(env_id: str) -> None:
    act = policy(MUJOCO[env_id][1])
    evaluator = Evaluator(env_id, 3)
    first = evaluator.evaluate(act, seed=5)
    evaluator.evaluate(lambda o: -act(o), seed=77)
    again = evaluator.evaluate(lambda o: torch.from_numpy(act(o)), seed=5)
    fresh = evaluate(act, env_id, episodes=3, seed=5)
    evaluator.close()
    for other in (again, fresh):
        np.testing.assert_array_equal(first.returns, other.returns)
        np.testing.assert_array_equal(first.lengths, other.lengths)
    assert len(set(first.returns.tolist())) == 3 and first.successes is None

    # The same as episode by episode, by hand.
    env = make_env(env_id)
    for i in range(3):
        observation, _ = env.reset(seed=5 + i)
        total, length, done = 0.0, 0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(act(observation[None])[0])
            total, length, done = total + reward, length + 1, terminated or truncated
        assert (total, length) == (first.returns[i], first.lengths[i])


def test_episodes_stop_at_the_time_limit_and_successes_are_kept() -> None:
    calls: list[tuple[int, ...]] = []
    result = evaluate(policy(2, calls), "DriftGoal-v0", episodes=4, seed=0)
    np.testing.assert_array_equal(result.lengths, [5] * 4)
    assert result.successes is not None and result.successes.all()  # reached in step 3, not in the last
    assert calls == [(4, 2)] * 5


def test_a_broken_policy_is_named() -> None:
    with pytest.raises(EnvError, match=r"shape \(2, 3\), expected \(2, 2\)"):
        evaluate(lambda o: np.zeros((2, 3)), "Drift-v0", episodes=2, seed=0)
    with pytest.raises(EnvError, match="NaN or infinite actions in step 0"):
        evaluate(lambda o: np.full((2, 2), np.nan), "Drift-v0", episodes=2, seed=0)
    with pytest.raises(ValueError, match="got 0 episodes"):
        Evaluator("Drift-v0", 0)


def test_independent_data_fit_their_environment() -> None:
    data = load_d4rl(shared_data("hopper-medium.hdf5"), progress=False)
    check_compatible("Hopper-v5", data)
    with pytest.raises(
        EnvError, match=r"Walker2d-v5 has observations of 17 numbers.*has 11; it was recorded in Hopper"
    ):
        check_compatible("Walker2d-v5", data)

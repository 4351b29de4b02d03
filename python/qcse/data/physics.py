"""Whether an environment's physics match a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..envs import mazes, trust
from ..envs.make import make_env
from ..envs.scores import task_family
from ..errors import DatasetError, EnvError
from . import hdf5
from .d4rl import load_d4rl
from .facts import Spread
from .sources import source_of
from .transitions import bar_hidden, recorded_env

MATCH = 1e-5  # one-step error up to which an environment is said to be the one that made the data
ANT_STATE = 27  # numbers of Ant's observation that are compared: its contact forces answer a rounding with leaps


@dataclass(frozen=True)
class PhysicsReport:
    """How an environment continues the states of a file.

    Attributes:
        env_id: the environment.
        rows: how many transitions were repeated.
        observation_error: largest difference between the stored observation and the one at the stored state, a row
            (Ant: without its contact forces).
        step_error: largest difference between stored and computed next observation, a row.
        reward_error: difference of the rewards, a row.
        steps, rewards: share of rows whose step, and whose reward, is reproduced within MATCH.
        endings: share of rows in which the environment says terminal as the file does.
    """

    env_id: str
    rows: int
    observation_error: Spread
    step_error: Spread
    reward_error: Spread
    steps: float
    rewards: float
    endings: float

    @property
    def matches(self) -> bool:
        """Whether the typical step is reproduced: the median of the one-step error is below MATCH."""
        return self.step_error.median < MATCH

    def __str__(self) -> str:
        verdict = (
            f"the physics match: {self.steps:.1%} of the steps are reproduced within {MATCH:g}"
            if self.matches
            else f"the physics differ: the typical step is off by more than {MATCH:g}; a policy learnt from this "
            "data meets another environment here"
        )
        if self.matches and self.rewards < 1.0:
            verdict += f"; {1.0 - self.rewards:.1%} of the rewards differ by more: another version of the task?"
        return "\n".join(
            (
                f"{self.rows:,} stored transitions repeated in {self.env_id}",
                f"{'observation error':<18} {self.observation_error}",
                f"{'one-step error':<18} {self.step_error}",
                f"{'reward error':<18} {self.reward_error}",
                f"{'endings':<18} {self.endings:.1%} agree",
                verdict,
            )
        )


def check_physics(path: Path, env_id: str | None = None, rows: int = 1000, progress: bool = True) -> PhysicsReport:
    """Put the environment to stored states, repeat the stored actions, compare where they lead.

    Args:
        path: file in D4RL's layout with infos/qpos and infos/qvel of the state before each step.
        env_id: the environment; None: the one that the file names.
        rows: transitions to repeat, evenly spread over the file.
        progress: show a bar on stderr.

    Raises:
        DatasetError: no such states in the file, or no environment named.
        EnvError: an environment that cannot be put to a state, or of other sizes.
    """
    if not source_of(path).keeps_states:
        raise DatasetError(f"dataset: {path} keeps no states of a simulator; expected a file in D4RL's layout")
    named = recorded_env(load_d4rl(path, progress=False))  # which has every complaint about the file itself
    if env_id is None and named is not None:
        trust.check_data(named, str(path))
    env_id = env_id or named
    if env_id is None:
        raise DatasetError(f"dataset: {path} does not say which environment it was recorded in; name it with --env")
    stored = _Stored.read(path)
    chosen = np.flatnonzero(stored.usable)
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(rows, len(chosen))).astype(np.int64)]
    env = make_env(env_id)
    _check_sizes(env, env_id, stored, path)
    env.reset(seed=0)
    compared = ANT_STATE if task_family(env_id) == "ant" else stored.observations.shape[1]
    bar = tqdm(chosen, desc=f"repeat in {env_id}", disable=bar_hidden(progress), leave=False)
    errors = np.array([_repeat(env, stored, row, compared) for row in bar])
    env.close()
    seen, steps, rewards, agreed = errors.T
    return PhysicsReport(
        env_id, len(chosen), Spread.of(seen), Spread.of(steps), Spread.of(rewards),
        float((steps < MATCH).mean()), float((rewards < MATCH).mean()), float(agreed.mean()),
    )  # fmt: skip


@dataclass(frozen=True)
class _Stored:
    """N transitions with the simulator's states before each.

    Attributes:
        qpos, qvel, observations, following, actions: [N, ...]; `following` are the next observations.
        rewards: [N].
        terminals: [N] bool.
        usable: [N] bool, where the next observation is known.
    """

    qpos: NDArray[Any]
    qvel: NDArray[Any]
    observations: NDArray[Any]
    following: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[Any]
    terminals: NDArray[np.bool_]
    usable: NDArray[np.bool_]

    @staticmethod
    def read(path: Path) -> _Stored:
        """DatasetError where the file keeps no states of a simulator, or not as many as transitions."""
        with hdf5.opened(path) as file:
            if hdf5.find(file, "infos/qpos") is None or hdf5.find(file, "infos/qvel") is None:
                raise DatasetError(
                    f"dataset: {path} has no infos/qpos and infos/qvel, so no environment can be put to its states; "
                    "expected a file that D4RL or `qcse collect` recorded"
                )
            keys = ["infos/qpos", "infos/qvel", "observations", "actions", "rewards", "terminals"]
            keys += [key for key in ("next_observations", "timeouts") if hdf5.find(file, key) is not None]
            sources = {key.removeprefix("infos/"): hdf5.array(file, key) for key in keys}
            hdf5.check_memory(path, sources, sum(map(hdf5.declared, sources.values())))
            for name in ("qpos", "qvel"):
                if len(sources[name].shape) != 2 or len(sources[name]) != len(sources["rewards"]):
                    raise DatasetError(
                        f"dataset: {path}: infos/{name} has shape {sources[name].shape}; expected "
                        f"({len(sources['rewards'])}, numbers of one state)"
                    )
            arrays = {name: np.asarray(source[()]) for name, source in sources.items()}
        following, terminals = arrays.get("next_observations"), arrays["terminals"].reshape(-1) != 0
        usable = np.ones(len(terminals), np.bool_)
        if following is None:
            following = np.concatenate([arrays["observations"][1:], arrays["observations"][-1:]])
            usable &= ~terminals
            usable[-1] = False
            if "timeouts" in arrays:
                usable &= arrays["timeouts"].reshape(-1) == 0
        return _Stored(
            arrays["qpos"], arrays["qvel"], arrays["observations"], following, arrays["actions"],
            arrays["rewards"].reshape(-1), terminals, usable,
        )  # fmt: skip


def _check_sizes(env: gymnasium.Env[Any, Any], env_id: str, stored: _Stored, path: Path) -> None:
    """EnvError where the environment cannot be put to the stored states."""
    inner: Any = env.unwrapped
    if not hasattr(inner, "set_state") or not hasattr(inner, "data"):
        raise EnvError(f"env: {env_id} cannot be put to a stored state; expected one of MuJoCo's")
    sizes = (inner.data.qpos.size, inner.data.qvel.size, env.observation_space.shape, env.action_space.shape)
    found = (stored.qpos.shape[1], stored.qvel.shape[1], stored.observations.shape[1:], stored.actions.shape[1:])
    if sizes != found:
        raise EnvError(
            f"env: {env_id} has qpos, qvel, observations and actions of sizes {sizes}, {path} of {found}; choose the "
            "environment that the data was recorded in"
        )


def _repeat(env: gymnasium.Env[Any, Any], stored: _Stored, row: int, compared: int) -> tuple[float, float, float, bool]:
    """One transition: errors of observation, of the next one and of the reward, and whether both say terminal.

    Args:
        compared: numbers of an observation that are compared, the first ones.
    """
    inner: Any = env.unwrapped
    if isinstance(inner, mazes.MazeEnv):
        inner.clear()
    inner.set_state(stored.qpos[row].astype(np.float64), stored.qvel[row].astype(np.float64))
    seen = np.abs(_observe(inner) - stored.observations[row])[:compared].max()
    observation, reward, terminated, _, _ = env.step(stored.actions[row].astype(np.float32))
    stepped = np.abs(observation - stored.following[row])[:compared].max()
    return seen, stepped, abs(float(reward) - float(stored.rewards[row])), terminated == bool(stored.terminals[row])


def _observe(env: Any) -> NDArray[np.float64]:
    """What the environment observes in its present state."""
    return np.asarray(env.observation() if isinstance(env, mazes.MazeEnv) else env._get_obs(), np.float64)

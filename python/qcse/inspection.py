"""What is in a dataset, whether an environment's physics match it, and conversion between D4RL's layout and Minari."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from . import d4rl_envs, hdf5, trust
from .datasets import (
    FLAG_KEYS,
    REFERENCE_SCORES,
    DatasetError,
    Transitions,
    bar_hidden,
    load_d4rl,
    load_dataset,
    normalized_score,
    task_family,
    write_d4rl,
)
from .envs import EnvError, make_env
from .errors import printable
from .files import atomic_path, own

MATCH = 1e-5  # one-step error up to which an environment is said to be the one that made the data
ANT_STATE = 27  # numbers of Ant's observation that are compared: its contact forces answer a rounding with leaps
PICTURE_POINTS = 4000  # states in the picture's projection


@dataclass(frozen=True)
class Spread:
    """Smallest, mean and largest of something, and its median."""

    low: float
    median: float
    mean: float
    high: float

    @staticmethod
    def of(values: NDArray[Any]) -> Spread:
        v = np.asarray(values, np.float64)
        return Spread(float(v.min()), float(np.median(v)), float(v.mean()), float(v.max()))

    def __str__(self) -> str:
        return f"{self.low:.5g} to {self.high:.5g}, mean {self.mean:.5g}, median {self.median:.5g}"


@dataclass(frozen=True)
class DatasetFacts:
    """What `qcse data info` tells.

    Attributes:
        path, source: of the data.
        rows, episodes: how many.
        observation_dim, action_dim: sizes.
        lengths, returns: of the episodes.
        family: task family for the score, "other" where there is none.
        scores: normalised scores of the episodes, None without reference scores.
        ends: how the episodes end: in a terminal state, or cut (time limit, hidden end, end of the recording).
        flags: how often each flag is set in the file, and both at once; empty for Minari.
        not_finite: array -> NaN and infinite values.
        duplicates: rows whose state and action occurred in an earlier row.
        constant: columns of the observation that never change.
        action_range: smallest and largest component.
        saturated: share of action components at the bounds (beyond 0.999).
        metadata: scalars stored with the data.
    """

    path: str
    source: str
    rows: int
    episodes: int
    observation_dim: int
    action_dim: int
    lengths: Spread
    returns: Spread
    family: str
    scores: Spread | None
    ends: dict[str, int]
    flags: dict[str, int]
    not_finite: dict[str, int]
    duplicates: int
    constant: list[int]
    action_range: tuple[float, float]
    saturated: float
    metadata: dict[str, str | int | float]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        lines = {
            "source": f"{self.source}: {self.path}",
            "transitions": f"{self.rows:,} of {self.observation_dim} + {self.action_dim} numbers",
            "episodes": f"{self.episodes:,}, " + ", ".join(f"{n:,} {what}" for what, n in self.ends.items()),
            "length": str(self.lengths),
            "return": str(self.returns),
            "normalised score": str(self.scores) if self.scores else "no reference scores known; name the --task",
            "flags": ", ".join(f"{name} {n:,}" for name, n in self.flags.items()) or "none in the file",
            "not finite": ", ".join(f"{k} {n:,}" for k, n in self.not_finite.items() if n) or "nothing",
            "duplicates": f"{self.duplicates:,} rows repeat an earlier state and action",
            "constant": f"observation columns {self.constant}" if self.constant else "no observation column",
            "actions": f"{self.action_range[0]:.4g} to {self.action_range[1]:.4g}, {self.saturated:.1%} at the bounds",
        }
        lines |= {f"metadata {name}": str(value)[:80] for name, value in self.metadata.items()}
        return "\n".join(f"{printable(name):<18} {printable(text)}" for name, text in lines.items())


def describe(dataset: str, family: str | None = None) -> tuple[DatasetFacts, Transitions]:
    """Read a dataset and say what is in it; NaN and infinite values are counted, not refused.

    Args:
        dataset: a file in D4RL's layout, or "minari:ID".
        family: key of REFERENCE_SCORES for the score; None: from the metadata's env_id.
    """
    stored = not dataset.startswith("minari:")
    data = load_d4rl(dataset, finite=False) if stored else load_dataset(dataset)
    family = family or task_family(recorded_env(data) or "")
    lengths = np.diff([0, *(np.flatnonzero(data.episode_end) + 1)])
    returns = data.episode_returns()
    terminal = int((data.bootstrap[data.episode_end] == 0).sum())
    bad = {
        key: int((~np.isfinite(getattr(data, key))).sum())
        for key in ("observations", "actions", "rewards", "next_observations")
    }
    pairs = np.concatenate([data.observations, data.actions], axis=1) + np.float32(0.0)  # -0 becomes 0
    keys = pairs.view(np.dtype((np.void, pairs.itemsize * pairs.shape[1]))).reshape(-1)
    distinct = len(np.unique(keys))
    facts = DatasetFacts(
        path=data.path,
        source=data.source,
        rows=len(data),
        episodes=len(lengths),
        observation_dim=data.observation_dim,
        action_dim=data.action_dim,
        lengths=Spread.of(lengths),
        returns=Spread.of(returns),
        family=family,
        scores=Spread.of(normalized_score(family, returns)) if family in REFERENCE_SCORES else None,
        ends={"end in a terminal state": terminal, "are cut": len(lengths) - terminal},
        flags=_flags(Path(dataset)) if stored else {},
        not_finite=bad,
        duplicates=len(data) - distinct,
        constant=[int(i) for i in np.flatnonzero(data.observations.min(0) == data.observations.max(0))],
        action_range=(float(data.actions.min()), float(data.actions.max())),
        saturated=float((np.abs(data.actions) > 0.999).mean()),
        metadata=data.metadata,
    )
    return facts, data


def recorded_env(data: Transitions) -> str | None:
    """The environment that the data name as their own."""
    name = data.metadata.get("env_id") or data.metadata.get("env")
    return str(name) if name else None


def _flags(path: Path) -> dict[str, int]:
    with hdf5.opened(path) as file:
        keys = [key for key in FLAG_KEYS if hdf5.find(file, key) is not None]
        arrays = {key: np.asarray(hdf5.array(file, key)[()]).reshape(-1) != 0 for key in keys}
    counts = {key: int(values.sum()) for key, values in arrays.items()}
    if len(arrays) == 2:
        counts["both"] = int((arrays["terminals"] & arrays["timeouts"]).sum())
    return counts


def draw(data: Transitions, facts: DatasetFacts, path: Path) -> Path:
    """A picture: histogram of the episodes' returns, of their lengths, and the states in a plane.

    States are drawn by x and y in mazes, elsewhere by their first two principal components (standardised), each
    coloured by the return of its episode.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    histogram, lengths, plane = figure.subplots(1, 3)
    returns, sizes = data.episode_returns(), np.diff([0, *(np.flatnonzero(data.episode_end) + 1)])
    scores = facts.scores is not None
    shown = normalized_score(facts.family, returns) if scores else returns
    for axes, values, label in (
        (histogram, shown, "normalised score" if scores else "return"),
        (lengths, sizes, "steps"),
    ):
        axes.hist(values[np.isfinite(values)], bins=min(50, max(10, len(values) // 10)), color="#0072B2")
        axes.set_xlabel(f"{label} of an episode")
        axes.set_ylabel("episodes")
        axes.spines[["top", "right"]].set_visible(False)
    rows = np.linspace(0, len(data) - 1, min(len(data), PICTURE_POINTS)).astype(np.int64)
    rows = rows[np.isfinite(data.observations[rows]).all(1)]
    episode = np.searchsorted(np.flatnonzero(data.episode_end), rows)
    maze = facts.family.startswith(("antmaze", "maze2d", "pointmaze")) or data.observation_dim == 4
    points = data.observations[rows]
    if not maze:
        mean, components = principal_components(points)
        points = (points - mean) @ components
    dots = plane.scatter(points[:, 0], points[:, 1], c=shown[episode], s=4, cmap="viridis", linewidths=0)
    if maze:
        plane.set_aspect("equal")
    plane.set_xlabel("x" if maze else "first principal component")
    plane.set_ylabel("y" if maze else "second principal component")
    plane.spines[["top", "right"]].set_visible(False)
    figure.colorbar(dots, ax=plane, label=f"{'normalised score' if scores else 'return'} of its episode")
    figure.suptitle(f"{Path(facts.path).name}: {facts.rows:,} transitions, {facts.episodes:,} episodes", fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="white")
    return path


def principal_components(states: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [D] and axes [D, 2] for which (states - mean) @ axes are the first two components of standardised states."""
    x = states.astype(np.float64)
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    _, _, rows = np.linalg.svd((x - mean) / scale, full_matrices=False)
    axes = np.zeros((x.shape[1], 2))
    axes[:, : len(rows[:2])] = rows[:2].T
    return mean, axes / scale[:, None]


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
    if str(path).startswith("minari:"):
        raise DatasetError(f"dataset: {path} keeps no states of a simulator; expected a file in D4RL's layout")
    named = recorded_env(load_d4rl(path, progress=False))  # which has every complaint about the file itself
    if env_id is None and named is not None:
        trust.check_data(named, str(path))
    env_id = env_id or named
    if env_id is None:
        raise DatasetError(f"dataset: {path} does not say which environment it was recorded in; name it with --env")
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
    following = arrays.get("next_observations")
    cut = arrays["timeouts"].reshape(-1) != 0 if "timeouts" in arrays else None
    count = len(arrays["rewards"])
    usable = np.ones(count, bool)
    if following is None:
        following = np.concatenate([arrays["observations"][1:], arrays["observations"][-1:]])
        usable &= arrays["terminals"].reshape(-1) == 0
        usable[-1] = False
        if cut is not None:
            usable &= ~cut
    chosen = np.flatnonzero(usable)
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(rows, len(chosen))).astype(np.int64)]
    env = make_env(env_id)
    inner: Any = env.unwrapped
    if not hasattr(inner, "set_state") or not hasattr(inner, "data"):
        raise EnvError(f"env: {env_id} cannot be put to a stored state; expected one of MuJoCo's")
    sizes = (inner.data.qpos.size, inner.data.qvel.size, env.observation_space.shape, env.action_space.shape)
    stored = (
        arrays["qpos"].shape[1], arrays["qvel"].shape[1], arrays["observations"].shape[1:], arrays["actions"].shape[1:],
    )  # fmt: skip
    if sizes != stored:
        raise EnvError(
            f"env: {env_id} has qpos, qvel, observations and actions of sizes {sizes}, {path} of {stored}; choose the "
            "environment that the data was recorded in"
        )
    env.reset(seed=0)
    compared = ANT_STATE if task_family(env_id) == "ant" else sizes[2][0]
    seen, stepped, rewarded, agreed = [], [], [], []
    for row in tqdm(chosen, desc=f"repeat in {env_id}", disable=bar_hidden(progress), leave=False):
        if isinstance(inner, d4rl_envs.MazeEnv):
            inner._mujoco.mj_resetData(inner.model, inner.data)
        inner.set_state(arrays["qpos"][row].astype(np.float64), arrays["qvel"][row].astype(np.float64))
        seen.append(np.abs(_observe(inner) - arrays["observations"][row])[:compared].max())
        observation, reward, terminated, _, _ = env.step(arrays["actions"][row].astype(np.float32))
        stepped.append(np.abs(observation - following[row])[:compared].max())
        rewarded.append(abs(reward - float(arrays["rewards"].reshape(-1)[row])))
        agreed.append(terminated == bool(arrays["terminals"].reshape(-1)[row]))
    env.close()
    steps, rewards = np.array(stepped), np.array(rewarded)
    return PhysicsReport(
        env_id, len(chosen), Spread.of(np.array(seen)), Spread.of(steps), Spread.of(rewards),
        float((steps < MATCH).mean()), float((rewards < MATCH).mean()), float(np.mean(agreed)),
    )  # fmt: skip


def _observe(env: Any) -> NDArray[np.float64]:
    """What the environment observes in its present state."""
    return np.asarray(env.observation() if isinstance(env, d4rl_envs.MazeEnv) else env._get_obs(), np.float64)


def convert(source: str, target: str, env_id: str | None = None) -> str:
    """Convert between D4RL's layout and Minari; returns what was written.

    Transitions, ends of episodes and scalars of metadata are carried over; D4RL's infos (qpos, qvel, goal) have no
    place in Minari's steps and are left behind.

    Args:
        source, target: a file in D4RL's layout, or "minari:ID".
        env_id: environment to note down; None: the one that the data name.

    Raises:
        DatasetError: a source that cannot be read, a target that exists.
    """
    if not target.startswith("minari:"):
        path = Path(target)
        with own(path, folder=False):
            if path.exists():
                raise DatasetError(f"dataset: {path} exists already; delete it or name another file")
            return _convert_to_d4rl(source, path, env_id)
    data = load_dataset(source)
    env = env_id or recorded_env(data)
    if env_id is None and env is not None:
        trust.check_data(env, source)
    from .minari_data import write_minari

    algorithm = str(data.metadata.get("algorithm", data.metadata.get("algorithm_name", "")))
    name = target.removeprefix("minari:")
    return f"minari:{name} in {write_minari(name, data, env, algorithm)}"


def _convert_to_d4rl(source: str, path: Path, env_id: str | None) -> str:
    data = load_dataset(source)
    env = env_id or recorded_env(data)
    terminals = data.bootstrap == 0
    arrays = {
        "observations": data.observations,
        "actions": data.actions,
        "rewards": data.rewards,
        "next_observations": data.next_observations,
        "terminals": terminals,
        "timeouts": data.episode_end & ~terminals,
    }
    origin = {"source": data.source, "converted_from": os.path.basename(data.path)}
    if env is not None:
        origin["env_id"] = env
    if source.startswith("minari:"):
        origin["action_units"] = "unit"  # they were brought to it when they were read
    write_d4rl(path, arrays, data.metadata | origin)
    return str(path)

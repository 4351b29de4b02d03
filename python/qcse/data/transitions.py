"""Transitions, their episodes and Monte-Carlo returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike, NDArray

SLAB_BYTES = 4 << 20  # read at once; bounds the memory that reading takes beside the arrays themselves
PROGRESS_BYTES = 64 << 20  # below this a progress bar would flash by

# Two float32 copies of one state are equal, or apart by a rounding where one of them went through another format.
# A reset moves MuJoCo's states by about 5e-3.
SAME_STATE_TOLERANCE = 1e-6


@dataclass(eq=False)
class Transitions:
    """N transitions, in the order in which they were recorded, episode after episode.

    Attributes:
        observations: [N, D] float32.
        actions: [N, A] float32.
        rewards: [N] float32, of the task, not transformed.
        next_observations: [N, D] float32; the true next state at a time limit. Behind a terminal state nothing may
            be learnt from it.
        bootstrap: [N] float32, 1.0 where a target may look further, 0.0 where the step reached a terminal state.
        episode_end: [N] bool, true at the last row of each episode: terminal, time limit, hidden end, last row of all.
        metadata: scalars stored with the data.
        path: where it was read from, "" if it was not.
        source: whose recording it is, to go with every result.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    next_observations: NDArray[np.float32]
    bootstrap: NDArray[np.float32]
    episode_end: NDArray[np.bool_]
    metadata: dict[str, str | int | float]
    path: str = ""
    source: str = "file in D4RL's layout"

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def observation_dim(self) -> int:
        """D."""
        return int(self.observations.shape[1])

    @property
    def action_dim(self) -> int:
        """A."""
        return int(self.actions.shape[1])

    def episodes(self) -> list[tuple[int, int]]:
        """(first row, row after the last) of each episode."""
        stops = np.flatnonzero(self.episode_end) + 1
        return list(zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True))

    def episode_returns(self) -> NDArray[np.float64]:
        """Undiscounted return of each episode, [number of episodes]."""
        starts = [start for start, _ in self.episodes()]
        return np.add.reduceat(self.rewards.astype(np.float64), starts)

    def fingerprint(self) -> str:
        """SHA-256 over the arrays, as 64 hexadecimal digits.

        The same transitions give the same fingerprint wherever and however compressed they are stored; a resumed run
        compares it to refuse data that changed. About one second per gigabyte.
        """
        digest = hashlib.sha256()
        for name in ("observations", "actions", "rewards", "next_observations", "bootstrap", "episode_end"):
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.data.cast("B"))
        return digest.hexdigest()


def bar_hidden(progress: bool, size: int = PROGRESS_BYTES) -> bool | None:
    """tqdm's `disable`: None, that is shown on a terminal only, where a bar is wanted and `size` bytes deserve one."""
    return None if progress and size >= PROGRESS_BYTES else True


def hidden_ends(observations: NDArray[np.float32], next_observations: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a row's next state is not the state of the row after it, [N] bool; the last row is an end.

    Such a row ended its episode even if no flag says so, as in recordings that were cut or put together.
    """
    n = len(observations)
    ends = np.ones(n, np.bool_)
    block = max(1, SLAB_BYTES // max(1, observations[:1].nbytes))
    for start in range(0, n - 1, block):
        stop = min(start + block, n - 1)
        after = observations[start + 1 : stop + 1]
        apart = np.abs(next_observations[start:stop] - after) > SAME_STATE_TOLERANCE * np.maximum(1.0, np.abs(after))
        ends[start:stop] = apart.any(axis=1)
    return ends


def mean_and_spread(states: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation plus 1e-3 of each column, [D] each; summed in float64 without a copy of the array."""
    block = max(1, SLAB_BYTES // max(1, 2 * states[:1].nbytes))
    parts = [states[start : start + block] for start in range(0, len(states), block)]
    mean = sum(part.sum(0, dtype=np.float64) for part in parts) / len(states)
    variance = sum(np.square(part - mean).sum(0) for part in parts) / len(states)
    return np.asarray(mean, np.float32), np.asarray(np.sqrt(variance) + 1e-3, np.float32)


def monte_carlo_returns(
    rewards: ArrayLike,
    episode_end: ArrayLike,
    bootstrap: ArrayLike,
    gamma: float,
    sparse_negative: float | None = None,
) -> NDArray[np.float32]:
    """Discounted return of each row to the end of its episode: R_i = r_i + gamma * R_{i+1}, R_end = r_end.

    An episode cut by a time limit sums up to the cut. Summed in float64.

    Args:
        rewards: [N], as the learner sees them (after the task's transform).
        episode_end: [N] bool, last row of each episode; the last row of all is taken as one.
        bootstrap: [N], 0 at terminal states. A return never runs past one, whether or not it is marked as an end.
        gamma: discount, 0 <= gamma <= 1.
        sparse_negative: reward of a step that did not reach the goal (AntMaze's 10 r - 5: -5). An episode of nothing
            else never got there, and each of its rows counts as sparse_negative / (1 - gamma): the return of going on
            like that for ever, not of the recording's length (as in Cal-QL's code, arXiv 2303.05479). None: no rule.

    Returns:
        [N] float32.

    Raises:
        ValueError: unequal lengths, gamma outside its range, or sparse_negative with gamma = 1.
    """
    reward = np.asarray(rewards, np.float64)
    if reward.ndim != 1 or not np.shape(episode_end) == np.shape(bootstrap) == reward.shape:
        raise ValueError(
            f"monte_carlo_returns: got rewards of shape {reward.shape}, episode_end of shape "
            f"{np.shape(episode_end)} and bootstrap of shape {np.shape(bootstrap)}; expected [N] for all"
        )
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"monte_carlo_returns: gamma is {gamma}, expected 0 <= gamma <= 1")
    if sparse_negative is not None and gamma == 1.0:
        raise ValueError("monte_carlo_returns: sparse_negative needs gamma < 1, as it counts for ever; got gamma = 1")
    ends = np.asarray(episode_end, np.bool_) | (np.asarray(bootstrap) == 0)
    out = np.empty(len(reward), np.float32)
    stops: list[int] = [*(np.flatnonzero(ends[:-1]) + 1).tolist(), len(reward)] if len(reward) else []
    start = 0
    for stop in stops:
        episode = reward[start:stop]
        # Rewards come as float32, where a multiple of ten less five may be a rounding off.
        if sparse_negative is not None and np.allclose(episode, sparse_negative, rtol=1e-6, atol=0.0):
            out[start:stop] = sparse_negative / (1.0 - gamma)
        else:
            out[start:stop] = list(accumulate(episode[::-1].tolist(), lambda later, r: r + gamma * later))[::-1]
        start = stop
    return out


def recorded_env(data: Transitions) -> str | None:
    """The environment that the data name as their own."""
    name = data.metadata.get("env_id") or data.metadata.get("env")
    return str(name) if name else None

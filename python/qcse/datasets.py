"""Offline data: HDF5 files in D4RL's layout (arXiv 2004.07219), episode ends, Monte-Carlo returns, reference scores."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from . import hdf5
from .errors import DatasetError
from .files import atomic_path

# Return of a random and of an expert policy, per task family: the constants of D4RL's normalised score.
REFERENCE_SCORES: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "pen": (96.262799, 3076.8331017826877),
    "door": (-56.512833, 2880.5693087298737),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "maze2d-open": (0.01, 20.66),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-open-dense": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
    "pointmaze": (0.0, 1.0),  # this package's own task, which ends at the goal: success in percent, as in antmaze
}

REQUIRED_KEYS = ("observations", "actions", "rewards", "terminals")
FLAG_KEYS = ("terminals", "timeouts")

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


def load_dataset(
    dataset: str | os.PathLike[str], progress: bool = True, like_d4rl: bool = False, limit: int | None = None
) -> Transitions:
    """Read a file in D4RL's layout (`load_d4rl`), or "minari:ID" (`minari_data.load_minari`)."""
    name = os.fspath(dataset)
    if name.startswith("minari:"):
        if like_d4rl:
            raise DatasetError(f"dataset: {name} is not a file of D4RL's, whose transitions were asked for")
        from .minari_data import load_minari

        return load_minari(name.removeprefix("minari:"), progress)
    return load_d4rl(name, progress, like_d4rl=like_d4rl, limit=limit)


def load_d4rl(
    path: str | os.PathLike[str],
    progress: bool = True,
    finite: bool = True,
    like_d4rl: bool = False,
    limit: int | None = None,
) -> Transitions:
    """Read an HDF5 file in D4RL's layout.

    Needed are `observations`, `actions`, `rewards`, `terminals`, and `next_observations` or `timeouts`. Where
    `next_observations` is stored it is used as it is, which keeps the true next state at time limits; an episode also
    ends, hidden from the flags, where a row's next state is not the state of the row after it. Without it (AntMaze)
    the row below is the next state, and the last row of an episode that did not end in a terminal state is dropped,
    as its next state is not known. Arrays are read in slabs, so that memory peaks little above the arrays' own size.

    Args:
        path: the file.
        progress: show a bar on stderr for files that take a while.
        finite: refuse values that are NaN or infinite.
        like_d4rl: make exactly the transitions of D4RL's `qlearning_dataset`, which differ in what happens at ends:
            (1) the step at a time limit is dropped, here it is kept with its true next state; (2) so is a step that is
            both terminal and at the limit, here it is terminal; (3) the last row of all is dropped, here only where
            its next state is not known; (4) the next state is always the row below, even where another is stored:
            behind a hidden end that is the next episode's first state, here such an end is found; (5) a file without
            `timeouts` is cut by counting `limit` steps (one too few behind a terminal state), here by
            next_observations.
        limit: the environment's time limit, for (5) only.

    Raises:
        DatasetError: no such file, not HDF5, cut short, a key missing, a wrong shape or type, values that are not
            finite, or no transition left. The message names what was found.
    """
    file_path = Path(path)
    with hdf5.opened(file_path) as file:
        return _read(file, file_path, progress, finite, like_d4rl, limit)


def check_structure(path: str | os.PathLike[str], observation_dim: int, action_dim: int) -> int:
    """Check a file's keys, types, shapes and equal row counts without reading its arrays; returns the row count.

    A file that was cut short fails here as well: HDF5 keeps its full size in its header.

    Raises:
        DatasetError: what is wrong with it.
    """
    file_path = Path(path)
    with hdf5.opened(file_path, locking=False) as file:  # a download holds a lock of its own while it checks
        sources = _sources(file, file_path)
        for key, size in (("observations", observation_dim), ("actions", action_dim)):
            if sources[key].shape[1] != size:
                raise DatasetError(
                    f"dataset: {file_path} has {key} of {sources[key].shape[1]} numbers; expected {size}"
                )
        return int(sources["rewards"].shape[0])


def _sources(file: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    """The arrays that make transitions, checked against each other; nothing is read yet."""
    known = (*REQUIRED_KEYS, "next_observations", "timeouts")
    keys = [key for key in known if hdf5.find(file, key) is not None]
    missing = [key for key in REQUIRED_KEYS if key not in keys]
    if not missing and "next_observations" not in keys and "timeouts" not in keys:
        missing = ["next_observations", "timeouts"]  # without either, where an episode was cut cannot be known
    if missing:
        wanted = " or ".join(missing) if "timeouts" in missing else ", ".join(missing)
        raise DatasetError(
            f"dataset: {path} has no key {wanted}; keys found: {hdf5.names(file)}; expected D4RL's layout: "
            f"{', '.join(REQUIRED_KEYS)}, and next_observations or timeouts"
        )
    sources = {key: _checked_source(file, key, path) for key in keys}
    rows = {key: int(source.shape[0]) for key, source in sources.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{key} {n}" for key, n in rows.items())
        raise DatasetError(f"dataset: {path} has arrays of unequal length: {counts}; expected one row per transition")
    n = rows["rewards"]
    if n == 0:
        raise DatasetError(f"dataset: {path} holds no transition; expected at least one")
    if "next_observations" in sources and sources["next_observations"].shape != sources["observations"].shape:
        raise DatasetError(
            f"dataset: {path} has next_observations of shape {sources['next_observations'].shape} and observations of "
            f"shape {sources['observations'].shape}; expected equal shapes"
        )
    return sources


def _read(file: h5py.File, path: Path, progress: bool, finite: bool, like_d4rl: bool, limit: int | None) -> Transitions:
    sources = _sources(file, path)
    if like_d4rl:
        sources.pop("next_observations", None)
    floats = sum(math.prod(source.shape) for key, source in sources.items() if key not in FLAG_KEYS)
    if "next_observations" not in sources:
        floats += math.prod(sources["observations"].shape)
    hdf5.check_memory(path, sources, 4 * floats + 8 * len(sources["rewards"]) + 2 * SLAB_BYTES)
    arrays: dict[str, NDArray[Any]] = {}
    total = sum(source.size * source.dtype.itemsize for source in sources.values())
    hide = bar_hidden(progress, total)
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"read {path.name}", disable=hide, leave=False) as bar:
        for key, source in sources.items():
            arrays[key] = (
                _read_flag(source, key, path) if key in FLAG_KEYS else _read_float(source, key, path, bar, finite)
            )
    _check_written(arrays, path)

    terminals = arrays["terminals"]
    if like_d4rl:
        ends = _d4rl_cuts(terminals, arrays.get("timeouts"), limit, path)
        dropped = ends.copy()
        ends |= terminals
    else:
        ends = terminals | arrays["timeouts"] if "timeouts" in arrays else terminals.copy()
        ends[-1] = True
        dropped = ends & ~terminals
    metadata = hdf5.scalars(file)
    observations = arrays["observations"]
    if "next_observations" in arrays:
        next_observations = arrays["next_observations"]
        ends |= hidden_ends(observations, next_observations)
    else:
        # Taken apart here so that each array is free to go once its rows are copied.
        next_observations = np.empty_like(observations)
        next_observations[:-1] = observations[1:]
        next_observations[-1] = observations[-1]  # kept only if terminal, and then nothing looks at it
        kept = ~dropped
        if not kept.any():
            raise DatasetError(
                f"dataset: {path} has no next_observations and only episodes of one row, so no next state is known; "
                "expected longer episodes, or next_observations"
            )
        ends[:-1] |= dropped[1:]  # the row above a dropped one is now its episode's last
        ends = ends[kept]
        terminals = terminals[kept]
        observations = _compress(observations, kept)
        next_observations = _compress(next_observations, kept)
        for key in ("actions", "rewards"):
            arrays[key] = _compress(arrays[key], kept)
    return Transitions(
        observations=observations,
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        next_observations=next_observations,
        bootstrap=np.where(terminals, np.float32(0.0), np.float32(1.0)),
        episode_end=ends,
        metadata=metadata,
        path=str(path),
    )


def _d4rl_cuts(
    terminals: NDArray[np.bool_], timeouts: NDArray[np.bool_] | None, limit: int | None, path: Path
) -> NDArray[np.bool_]:
    """Rows that D4RL's `qlearning_dataset` drops, [N]: time limits, flagged or counted, and the last row of all."""
    if timeouts is not None:
        cuts = timeouts.copy()
    elif limit is None:
        raise DatasetError(f"dataset: {path} has no timeouts, so D4RL's transitions need the environment's time limit")
    else:
        cuts, step = np.zeros(len(terminals), np.bool_), 0
        for row, terminal in enumerate(terminals[:-1].tolist()):
            if step == limit - 1:
                cuts[row], step = True, 0
            else:
                step = 1 if terminal else step + 1
    cuts[-1] = True
    return cuts


def _checked_source(file: h5py.File, key: str, path: Path) -> h5py.Dataset:
    """The HDF5 dataset of a key, its type and number of dimensions checked; nothing is read yet."""
    source = hdf5.array(file, key)
    shape = source.shape
    if key in ("observations", "next_observations", "actions"):
        if len(shape) != 2 or shape[1] == 0:
            raise DatasetError(f"dataset: {path}: {key} has shape {shape}; expected (rows, size of one {key[:-1]})")
    elif not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise DatasetError(f"dataset: {path}: {key} has shape {shape}; expected (rows,) or (rows, 1)")
    return source


def _slabs(source: h5py.Dataset) -> Iterator[slice]:
    """Row ranges of about SLAB_BYTES, in multiples of the file's chunks so that none is decompressed twice."""
    n = source.shape[0]
    row_bytes = max(1, source.dtype.itemsize * source.size // max(n, 1))
    step = max(1, SLAB_BYTES // row_bytes)
    if source.chunks:
        step = max(1, step // source.chunks[0]) * source.chunks[0]
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _read_float(source: h5py.Dataset, key: str, path: Path, bar: tqdm[Any], refuse: bool) -> NDArray[np.float32]:
    out = np.empty(source.shape, np.float32)
    bad, first = 0, -1
    for rows in _slabs(source):
        if source.dtype == np.float32:
            source.read_direct(out, rows, rows)
        else:
            with np.errstate(over="ignore"):  # what overflows is reported below as not finite
                out[rows] = source[rows]
        finite = np.isfinite(out[rows])
        if not finite.all():
            bad += int(finite.size - np.count_nonzero(finite))
            if first < 0:
                first = rows.start + int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
        bar.update(source.dtype.itemsize * finite.size)
    if bad and refuse:
        raise DatasetError(
            f"dataset: {path}: {key} has {bad:,} of {out.size:,} values that are NaN or infinite as float32, first in "
            f"row {first}; expected finite numbers: remove these episodes from the file"
        )
    return out[:, 0] if key == "rewards" and out.ndim == 2 else out


def _check_written(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """DatasetError where the file ends in rows of nothing but zeros: declared, but not written by one that was killed.

    HDF5 gives zeros for them. One such row may be a state; no second state, action and reward are all exactly zero.
    """
    columns = [values.reshape(len(values), -1) for key, values in arrays.items() if key not in FLAG_KEYS]
    n = written = len(columns[0])
    while written > 0:
        start = max(0, written - 65_536)
        filled = np.any([values[start:written].any(axis=1) for values in columns], axis=0)
        if filled.any():
            written = start + int(np.flatnonzero(filled)[-1]) + 1
            break
        written = start
    if n - written > 1:
        raise DatasetError(
            f"dataset: {path} has {n:,} rows, of which the last {n - written:,} are zeros in state, action and reward, "
            "as where its writer was stopped before they were written; cut the arrays to what was written"
        )


def _read_flag(source: h5py.Dataset, key: str, path: Path) -> NDArray[np.bool_]:
    values: NDArray[Any] = np.asarray(source[()]).reshape(-1)
    odd = (values != 0) & (values != 1)
    if odd.any():
        row = int(np.argmax(odd))
        raise DatasetError(
            f"dataset: {path}: {key} is {values[row]} in row {row}; expected flags: false or true, 0 or 1"
        )
    flags: NDArray[np.bool_] = values.astype(np.bool_)
    return flags


def _compress(array: NDArray[np.float32], kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Move the kept rows to the front, in place, and return them: a copy would double the memory."""
    block = max(1, SLAB_BYTES // max(1, array[:1].nbytes))
    filled = 0
    for start in range(0, len(array), block):
        rows = array[start : start + block][kept[start : start + block]]
        array[filled : filled + len(rows)] = rows  # filled <= start, so nothing unread is overwritten
        filled += len(rows)
    return array[:filled]


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


def write_d4rl(
    path: str | os.PathLike[str],
    arrays: Mapping[str, ArrayLike],
    metadata: Mapping[str, str | int | float],
    compression: int | None = 9,
) -> None:
    """Write an HDF5 file in D4RL's layout; the file appears whole or not at all.

    Args:
        path: the file; an existing one is replaced, missing folders are made.
        arrays: key -> [N, ...]; at least observations, actions, rewards, terminals and next_observations or timeouts.
            Keys may lie in groups ("infos/qpos"). `terminals` and `timeouts` are stored as bool, all else as float32.
        metadata: name -> scalar, stored under metadata/.
        compression: gzip's level 0 to 9, None: not compressed.

    Raises:
        DatasetError: a key missing, unequal lengths, an array that `load_d4rl` would refuse, or a path that cannot be
            written.
    """
    missing = [key for key in REQUIRED_KEYS if key not in arrays]
    if not missing and "next_observations" not in arrays and "timeouts" not in arrays:
        missing = ["next_observations or timeouts"]
    if missing:
        raise DatasetError(f"dataset to write: no array {', '.join(missing)}; got {', '.join(arrays) or 'none'}")
    columns: dict[str, NDArray[Any]] = {}
    for key, values in arrays.items():
        array = np.asarray(values)
        if key in FLAG_KEYS:
            columns[key] = array.astype(np.bool_)
            continue
        with np.errstate(over="ignore"):
            columns[key] = array.astype(np.float32)
        if not np.isfinite(columns[key]).all():
            raise DatasetError(f"dataset to write: {key} has values that are NaN or infinite; expected finite numbers")
    lengths = {key: len(column) if column.ndim else -1 for key, column in columns.items()}
    if len(set(lengths.values())) > 1 or -1 in lengths.values():
        counts = ", ".join(f"{key} {n}" for key, n in lengths.items())
        raise DatasetError(f"dataset to write: arrays of unequal length: {counts}; expected one row per transition")
    try:
        with atomic_path(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
            for key, column in columns.items():
                options: dict[str, Any] = {}
                if compression is not None and column.size:
                    # One column of many rows a chunk, bytes of equal weight side by side (shuffle): a quantity's
                    # own history compresses best.
                    options = {
                        "compression": "gzip",
                        "compression_opts": compression,
                        "shuffle": True,
                        "chunks": (min(len(column), 16_384), 1)[: column.ndim] + column.shape[2:],
                    }
                file.create_dataset(key, data=column, **options)
            for name, value in metadata.items():
                file[f"metadata/{name}"] = value
    except OSError as error:
        raise DatasetError(f"dataset to write: {path} cannot be written ({error}); choose another path") from error


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


def task_family(env_id: str) -> str:
    """Task family of an environment's name, a key of REFERENCE_SCORES, or "other": "Hopper-v5" -> "hopper".

    Names in a namespace ("dm_control/hopper-hop-v0") are other tasks under familiar names, and so "other"; those in
    this package's own, "qcse/", are D4RL's. Gymnasium-Robotics's point mazes and its hand differ from D4RL's: "other".
    """
    own = env_id.lower().removeprefix("qcse/")
    if own.startswith("maze2d-"):
        family = own.rpartition("-v")[0] or own
    else:
        family = own.rsplit(":", 1)[-1].split("-")[0]
        if family.startswith("antmaze"):
            family = "antmaze"
    return family if family in REFERENCE_SCORES else "other"


def normalized_score(task_family: str, returns: ArrayLike) -> NDArray[np.float64]:
    """D4RL's score 100 (R - min) / (max - min): 0 is a random policy, 100 an expert.

    Args:
        task_family: a key of REFERENCE_SCORES; for any other the score is NaN, as there is no reference.
        returns: undiscounted returns, of any shape.

    Returns:
        float64, shaped as `returns`.
    """
    values = np.asarray(returns, np.float64)
    low, high = REFERENCE_SCORES.get(task_family, (np.nan, np.nan))
    return np.asarray(100.0 * (values - low) / (high - low))

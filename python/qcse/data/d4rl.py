"""HDF5 files in D4RL's layout (arXiv 2004.07219)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from ..errors import ConfigError, DatasetError
from ..files import atomic_path, own
from . import hdf5
from .transitions import SLAB_BYTES, Transitions, bar_hidden, hidden_ends

REQUIRED_KEYS = ("observations", "actions", "rewards", "terminals")
FLAG_KEYS = ("terminals", "timeouts")


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


class D4rlFiles:
    """HDF5 files in D4RL's layout, by their path, as a source (`sources.Source`)."""

    scheme = ""
    unit_actions = False
    keeps_states = True

    def load(
        self, name: str, progress: bool = True, like_d4rl: bool = False, limit: int | None = None, finite: bool = True
    ) -> Transitions:
        return load_d4rl(name, progress, finite, like_d4rl, limit)

    def environment(self, name: str) -> str | None:
        return None

    def short_name(self, name: str) -> str:
        return Path(name).stem

    def absolute(self, name: str) -> str:
        if not Path(name).is_file():
            raise ConfigError(f"datasets: no file at {name}; expected an HDF5 file in D4RL's layout, or minari:ID")
        return str(Path(name).resolve())

    def flags(self, name: str) -> dict[str, int]:
        with hdf5.opened(Path(name)) as file:
            keys = [key for key in FLAG_KEYS if hdf5.find(file, key) is not None]
            arrays = {key: np.asarray(hdf5.array(file, key)[()]).reshape(-1) != 0 for key in keys}
        counts = {key: int(values.sum()) for key, values in arrays.items()}
        if len(arrays) == 2:
            counts["both"] = int((arrays["terminals"] & arrays["timeouts"]).sum())
        return counts

    @contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        path = Path(name)
        with own(path, folder=False):
            if path.exists():
                raise DatasetError(f"dataset: {path} exists already; delete it or name another file")
            yield

    def write(self, name: str, data: Transitions, env_id: str | None, recorded: str | None) -> str:
        terminals = data.bootstrap == 0
        arrays = {
            "observations": data.observations,
            "actions": data.actions,
            "rewards": data.rewards,
            "next_observations": data.next_observations,
            "terminals": terminals,
            "timeouts": data.episode_end & ~terminals,
        }
        origin: dict[str, str | int | float] = {"source": data.source, "converted_from": os.path.basename(data.path)}
        env = env_id or recorded
        if env is not None:
            origin["env_id"] = env
        write_d4rl(name, arrays, data.metadata | origin)
        return str(Path(name))

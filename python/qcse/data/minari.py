"""Minari datasets (`minari:ID`): reading, their environments, and writing.

Minari's own library fetches and writes them. It does not read them: it makes, that is imports and calls, what a
dataset's metadata name as its environment where they lack a space, and takes a file's declared sizes on trust.

Minari's sets named D4RL/... were recorded anew, in other environments than D4RL's: scores published for D4RL do not
carry over, and a policy learnt from one is lost in the other. AntMaze differs most: Gymnasium-Robotics mirrors the maze
and centres it, its ant moves at twice the rate with five times the torque, episodes go on after the goal is reached,
and some sets store a flipped maze for evaluation (`qcse` uses the recording's). Results name their source.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..envs import trust
from ..envs.make import make_env, task_for
from ..envs.minari import StoredDataset, check_name, datasets_folder, find_stored, library
from ..envs.names import MINARI
from ..envs.spaces import flat_parts
from ..errors import DatasetError
from ..files import own
from . import hdf5
from .transitions import Transitions, bar_hidden


def load_minari(dataset_id: str, progress: bool = True) -> Transitions:
    """Read a Minari dataset of the format hdf5, Minari's default.

    Each episode's last observation is the next state of its last step, so nothing is dropped at time limits. Dict
    observations become vectors as the environment's do (`envs.flat_parts`); actions are mapped from their bounds to
    [-1, 1] where those differ.

    Args:
        dataset_id: such as "mujoco/hopper/medium-v0"; without "minari:".
        progress: show a bar on stderr for sets that take a while.

    Raises:
        DatasetError: no such dataset, another format, observations or actions that are not vectors of numbers, values
            that are not finite.
    """
    stored = find_stored(dataset_id)
    name, metadata = stored.name, stored.metadata
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise DatasetError(
            f"dataset: {name} is stored as {metadata['data_format']!r}, whose declared sizes cannot be checked; "
            "expected hdf5, Minari's default: store it again with data_format='hdf5'"
        )
    parts = _parts(stored)
    low, high = _action_bounds(stored)
    n = metadata.get("total_steps")
    if type(n) is not int or n < 1:
        raise DatasetError(f"dataset: {name} holds no transition (total_steps: {n!r}); expected at least one")
    path = stored.file("main_data.hdf5")
    with hdf5.opened(path) as file:
        episodes = [_Episode.of(group, parts, name) for group in _groups(file, metadata.get("total_episodes"), name)]
        d, a = sum(size for _, size in parts), len(low)
        _check_sizes(path, episodes, n, d, a, name)
        return _read(stored, episodes, parts, low, high, d, progress)


@dataclass(frozen=True)
class _Episode:
    """The arrays of one episode: T + 1 observations of each key, T of the others."""

    id: str
    observations: dict[str, h5py.Dataset]
    steps: dict[str, h5py.Dataset]

    @staticmethod
    def of(group: h5py.Group, parts: list[tuple[str, int]], name: str) -> _Episode:
        """Checked against each other; nothing is read."""
        number = str(group.name).strip("/")
        observations = {key: hdf5.array(group, f"observations/{key}" if key else "observations") for key, _ in parts}
        steps = {key: hdf5.array(group, key) for key in ("actions", "rewards", "terminations")}
        rows = {
            f"observations {key}".strip(): len(source) - 1 if source.shape else -1
            for key, source in observations.items()
        }
        rows |= {key: len(source) if source.shape else -1 for key, source in steps.items()}
        if len(set(rows.values())) > 1 or min(rows.values()) < 0:
            raise DatasetError(
                f"dataset: {name}: {number} has arrays for different numbers of steps: {rows}; expected equal numbers, "
                "and one observation more"
            )
        for key, size in parts:
            width = math.prod(observations[key].shape[1:])
            if width < size or (not key and width != size):
                raise DatasetError(f"dataset: {name}: {number} observes {width} numbers {key}; expected {size}")
        return _Episode(number, observations, steps)

    def __len__(self) -> int:
        return int(self.steps["rewards"].shape[0])


def _groups(file: h5py.File, count: Any, name: str) -> list[h5py.Group]:
    if type(count) is not int or not 0 <= count <= len(file):
        raise DatasetError(f"dataset: {name} says {count!r} episodes, its file has {len(file):,}; fetch it again")
    found = [hdf5.find(file, f"episode_{i}") for i in range(count)]
    groups = [group for group in found if isinstance(group, h5py.Group)]
    if len(groups) < count:
        raise DatasetError(f"dataset: {name} says {count:,} episodes, its file has {len(groups):,}; fetch it again")
    return groups


def _check_sizes(path: Path, episodes: list[_Episode], n: int, d: int, a: int, name: str) -> None:
    """DatasetError where the arrays do not fit each other, the metadata or the memory."""
    rows = sum(map(len, episodes))
    if rows != n:
        raise DatasetError(f"dataset: {name} says {n} steps, its episodes hold {rows}; download it again")
    hdf5.check_memory(
        path,
        [array for e in episodes for array in (*e.observations.values(), *e.steps.values())],
        4 * n * (2 * d + a + 3),
    )
    for episode in episodes:
        actions, rewards = episode.steps["actions"], episode.steps["rewards"]
        if actions.shape[1:] != (a,) or math.prod(rewards.shape) != len(episode):
            raise DatasetError(
                f"dataset: {name}: {episode.id} has actions of shape {actions.shape} and rewards of shape "
                f"{rewards.shape}; expected ({len(episode)}, {a}) and ({len(episode)},)"
            )


def _read(
    stored: StoredDataset,
    episodes: list[_Episode],
    parts: list[tuple[str, int]],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    d: int,
    progress: bool,
) -> Transitions:
    name, n = stored.name, sum(map(len, episodes))
    data = Transitions(
        observations=np.empty((n, d), np.float32),
        actions=np.empty((n, len(low)), np.float32),
        rewards=np.empty(n, np.float32),
        next_observations=np.empty((n, d), np.float32),
        bootstrap=np.ones(n, np.float32),
        episode_end=np.zeros(n, np.bool_),
        metadata=_metadata(stored),
        path=name,
        source=f"Minari dataset {name.removeprefix(MINARI)}",
    )
    row, hide = 0, bar_hidden(progress, data.observations.nbytes)
    with tqdm(total=n, unit="row", unit_scale=True, desc=f"read {name}", disable=hide, leave=False) as bar:
        for episode in episodes:
            stop = row + len(episode)
            states = _vectors(episode, parts)
            data.observations[row:stop], data.next_observations[row:stop] = states[:-1], states[1:]
            actions = np.asarray(episode.steps["actions"][()], np.float64)
            data.actions[row:stop] = (actions - low) / (high - low) * 2.0 - 1.0
            data.rewards[row:stop] = np.asarray(episode.steps["rewards"][()]).reshape(-1)
            data.bootstrap[row:stop] = ~np.asarray(episode.steps["terminations"][()], bool).reshape(-1)
            if stop > row:
                data.episode_end[stop - 1] = True
            bar.update(stop - row)
            row = stop
    for key in ("observations", "next_observations", "actions", "rewards"):
        bad = ~np.isfinite(getattr(data, key))
        if bad.any():
            first = int(np.argmax(bad.reshape(n, -1).any(axis=1)))
            raise DatasetError(f"dataset: {name}: {key} has {bad.sum():,} values that are not finite, first in {first}")
    return data


def _vectors(episode: _Episode, parts: list[tuple[str, int]]) -> NDArray[Any]:
    """[T + 1, D] of one episode."""
    columns = [np.asarray(episode.observations[key][()]).reshape(len(episode) + 1, -1)[:, :size] for key, size in parts]
    return np.concatenate(columns, axis=1)


def _parts(stored: StoredDataset) -> list[tuple[str, int]]:
    """(key, how many of its first numbers) of a Dict observation; ("", D) for a vector."""
    space = _space(stored, "observation_space")
    kind, subspaces = space.get("type"), space.get("subspaces")
    shape = _shape(space)
    if shape is not None and len(shape) == 1:
        return [("", shape[0])]
    if kind == "Dict" and isinstance(subspaces, dict) and subspaces:
        shapes = {key: _shape(subspace) for key, subspace in subspaces.items()}
        if all(shape is not None and "/" not in key for key, shape in shapes.items()):
            spec = stored.spec or {"id": ""}
            options = spec.get("kwargs")
            maze = options.get("maze_map") if isinstance(options, dict) else None
            maze = maze if isinstance(maze, list) and all(isinstance(row, list) for row in maze) else None
            return flat_parts({key: math.prod(shape or ()) for key, shape in shapes.items()}, spec["id"], maze)
    raise DatasetError(
        f"dataset: {stored.name} observes {str(space)[:300]}; expected a vector of numbers, or a Dict of arrays of them"
    )


def _space(stored: StoredDataset, key: str) -> dict[str, Any]:
    """A space as the metadata describe it; it is not made, as making one may take any amount of memory."""
    try:
        space = json.loads(stored.metadata[key])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"dataset: {stored.name} has no {key} that can be read ({error!r}); fetch it again"
        ) from error
    return space if isinstance(space, dict) else {"type": space}


def _shape(space: Any) -> tuple[int, ...] | None:
    """Shape of a Box; None for any other space."""
    shape = space.get("shape") if isinstance(space, dict) and space.get("type") == "Box" else None
    good = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    return tuple(shape) if good and isinstance(shape, list) else None


def _action_bounds(stored: StoredDataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    space = _space(stored, "action_space")
    shape = _shape(space)
    if shape is not None and len(shape) == 1:
        try:
            low, high = (np.asarray(space[key], np.float64) for key in ("low", "high"))
        except (KeyError, TypeError, ValueError):
            low = high = np.empty(0)
        if (
            low.shape == high.shape == shape
            and np.isfinite(low).all()
            and np.isfinite(high).all()
            and (low < high).all()
        ):
            return low, high
    raise DatasetError(
        f"dataset: {stored.name} has actions {str(space)[:300]}; expected a vector of numbers with finite bounds"
    )


def _metadata(stored: StoredDataset) -> dict[str, str | int | float]:
    keep: dict[str, str | int | float] = {}
    for key, value in stored.metadata.items():
        if isinstance(value, str | int | float) and not key.endswith(("_spec", "_space")):
            keep[key] = value[: hdf5.METADATA_TEXT] if isinstance(value, str) else value
    spec = stored.spec
    return keep | ({"env_id": spec["id"]} if spec else {})


def write_minari(dataset_id: str, data: Transitions, env_id: str | None, algorithm: str = "") -> Path:
    """Store transitions as a local Minari dataset; returns its folder.

    Args:
        dataset_id: such as "hopper/replay-v0"; one of that name must not be there.
        data: whole episodes; what lies behind a time limit is kept as the episode's last observation.
        env_id: environment to note down, or None.
        algorithm: what recorded the data.

    Raises:
        DatasetError: the name is taken or not one of Minari's.
    """
    minari = library()
    with _reserved(dataset_id) as folder:
        return _write(minari, dataset_id, folder, data, env_id, algorithm)


@contextmanager
def _reserved(dataset_id: str) -> Iterator[Path]:
    check_name(dataset_id)
    folder = datasets_folder() / dataset_id
    with own(folder, folder=False):
        if folder.exists():
            raise DatasetError(
                f"dataset: minari:{dataset_id} cannot be written: {folder} exists already; choose another name"
            )
        yield folder


def _write(minari: Any, dataset_id: str, folder: Path, data: Transitions, env_id: str | None, algorithm: str) -> Path:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    buffers = []
    for index, (start, stop) in enumerate(data.episodes()):
        terminated = data.bootstrap[start:stop] == 0
        truncated = np.zeros(stop - start, bool)
        truncated[-1] = not terminated[-1]
        buffers.append(
            EpisodeBuffer(
                id=index,
                observations=np.concatenate([data.observations[start:stop], data.next_observations[stop - 1 : stop]]),
                actions=data.actions[start:stop],
                rewards=data.rewards[start:stop],
                terminations=terminated,
                truncations=truncated,
            )
        )
    spaces = {
        "observation_space": gymnasium.spaces.Box(-np.inf, np.inf, (data.observation_dim,), np.float32),
        "action_space": gymnasium.spaces.Box(-1.0, 1.0, (data.action_dim,), np.float32),
    }
    spec = None
    if env_id is not None:
        env = make_env(env_id)
        spec = copy.deepcopy(env.unwrapped.spec)  # without this package's wrappers, which others could not make
        env.close()
        if spec is not None:  # what is inside the wrapper that ends episodes does not know their limit
            spec.max_episode_steps = task_for(env_id).max_episode_steps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for authors and addresses
            minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=spec,
                algorithm_name=algorithm or None,
                description=f"converted by qcse from {os.path.basename(data.path) or 'arrays'}",
                **spaces,
            )
    except (ValueError, OSError, KeyError) as error:
        shutil.rmtree(folder, ignore_errors=True)  # half a dataset would take its name
        raise DatasetError(
            f"dataset: minari:{dataset_id} cannot be written ({error}); expected a folder that may be written"
        ) from error
    return folder / "data"


class MinariDatasets:
    """Datasets called minari:ID, as a source (`sources.Source`)."""

    scheme = MINARI
    unit_actions = True
    keeps_states = False

    def load(
        self, name: str, progress: bool = True, like_d4rl: bool = False, limit: int | None = None, finite: bool = True
    ) -> Transitions:
        if like_d4rl:
            raise DatasetError(f"dataset: {name} is not a file of D4RL's, whose transitions were asked for")
        return load_minari(name.removeprefix(MINARI), progress)

    def environment(self, name: str) -> str | None:
        return name

    def short_name(self, name: str) -> str:
        return name.removeprefix(MINARI)

    def absolute(self, name: str) -> str:
        return name

    def flags(self, name: str) -> dict[str, int]:
        return {}

    @contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        with _reserved(name.removeprefix(MINARI)):
            yield

    def write(self, name: str, data: Transitions, env_id: str | None, recorded: str | None) -> str:
        if env_id is None and recorded is not None:  # the environment will be made
            trust.check_data(recorded, data.path)
        algorithm = str(data.metadata.get("algorithm", data.metadata.get("algorithm_name", "")))
        folder = write_minari(name.removeprefix(MINARI), data, env_id or recorded, algorithm)
        return f"{name} in {folder}"

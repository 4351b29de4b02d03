"""Minari datasets (`minari:ID`) through Minari's own library: reading, their environments, and writing.

Minari's sets named D4RL/... were recorded anew, in other environments than D4RL's: scores published for D4RL do not
carry over, and a policy learnt from one is lost in the other. AntMaze differs most: Gymnasium-Robotics mirrors the maze
and centres it, its ant moves at twice the rate with five times the torque, episodes go on after the goal is reached,
and some sets store a flipped maze for evaluation (`qcse` uses the recording's). Results name their source.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from tqdm import tqdm

from .datasets import DatasetError, Transitions, bar_hidden
from .envs import MINARI, dict_sizes, flat_parts, make_env

if TYPE_CHECKING:
    import minari


def _library() -> Any:
    try:
        import minari
    except ImportError as error:
        raise DatasetError(
            f"dataset: Minari datasets need Minari's library ({error}); pip install 'qcse[minari]'"
        ) from error
    return minari


def open_minari(dataset_id: str) -> minari.MinariDataset:
    """A Minari dataset: the local one if it is there, else downloaded by Minari's library.

    Raises:
        DatasetError: the library is missing, or there is no such dataset here and none can be fetched.
    """
    library = _library()
    _check_name(dataset_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions of environments, which data does not choose
            return library.load_dataset(dataset_id, download=True)
    except Exception as error:  # the library and its network clients raise kinds without a common base
        folder = Path(library.storage.get_dataset_path())
        local = ", ".join(sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("data"))) or "none"
        raise DatasetError(
            f"dataset: minari:{dataset_id} is neither stored locally nor could it be fetched "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}); stored "
            f"locally: {local}. `minari list remote` shows what can be fetched; where there is no network, copy the "
            f"dataset's folder into {folder} ($MINARI_DATASETS_PATH names another)"
        ) from error


def _check_name(dataset_id: str) -> None:
    if re.fullmatch(r"([-\w]+/)*[-\w]+-v\d+", dataset_id) is None:
        raise DatasetError(
            f"dataset: minari:{dataset_id} is not a name of Minari's; expected NAME-vNUMBER, with or without folders, "
            "such as minari:mujoco/hopper/medium-v0"
        )


def environment_spec(dataset_id: str) -> EnvSpec:
    """The environment that a dataset was recorded in, with its options (such as the maze).

    Raises:
        DatasetError: the dataset names none.
    """
    spec = open_minari(dataset_id).env_spec
    if spec is None:
        raise DatasetError(f"dataset: minari:{dataset_id} does not say which environment it is of; give --env")
    return spec


def load_minari(dataset_id: str, progress: bool = True) -> Transitions:
    """Read a Minari dataset.

    Each episode's last observation is the next state of its last step, so nothing is dropped at time limits. Dict
    observations become vectors as the environment's do (`envs.flat_parts`); actions are mapped from their bounds to
    [-1, 1] where those differ.

    Args:
        dataset_id: such as "mujoco/hopper/medium-v0"; without "minari:".
        progress: show a bar on stderr for sets that take a while.

    Raises:
        DatasetError: no such dataset, observations or actions that are not vectors of numbers, values that are not
            finite.
    """
    dataset = open_minari(dataset_id)
    name = f"minari:{dataset_id}"
    parts = _parts(dataset, name)
    low, high = _action_bounds(dataset.action_space, name)
    n, d, a = int(dataset.total_steps), sum(size for _, size in parts), len(low)
    if n == 0:
        raise DatasetError(f"dataset: {name} holds no transition; expected at least one")
    data = Transitions(
        observations=np.empty((n, d), np.float32),
        actions=np.empty((n, a), np.float32),
        rewards=np.empty(n, np.float32),
        next_observations=np.empty((n, d), np.float32),
        bootstrap=np.ones(n, np.float32),
        episode_end=np.zeros(n, np.bool_),
        metadata=_metadata(dataset),
        path=name,
        source=f"Minari dataset {dataset_id}",
    )
    row, hide = 0, bar_hidden(progress, data.observations.nbytes)
    with tqdm(total=n, unit="row", unit_scale=True, desc=f"read {name}", disable=hide, leave=False) as bar:
        for episode in dataset.iterate_episodes():
            stop = row + len(episode.rewards)
            states = _vectors(episode.observations, parts)
            if stop > n or len(states) != stop - row + 1:
                raise DatasetError(
                    f"dataset: {name}: episode {episode.id} has {len(states)} observations for {stop - row} steps; "
                    "expected one more than steps"
                )
            data.observations[row:stop], data.next_observations[row:stop] = states[:-1], states[1:]
            actions = np.asarray(episode.actions, np.float64).reshape(stop - row, -1)
            data.actions[row:stop] = (actions - low) / (high - low) * 2.0 - 1.0
            data.rewards[row:stop] = np.asarray(episode.rewards).reshape(-1)
            data.bootstrap[row:stop] = ~np.asarray(episode.terminations, bool).reshape(-1)
            if stop > row:
                data.episode_end[stop - 1] = True
            bar.update(stop - row)
            row = stop
    if row != n:
        raise DatasetError(f"dataset: {name} says {n} steps, its episodes hold {row}; download it again")
    for key in ("observations", "next_observations", "actions", "rewards"):
        bad = ~np.isfinite(getattr(data, key))
        if bad.any():
            first = int(np.argmax(bad.reshape(n, -1).any(axis=1)))
            raise DatasetError(f"dataset: {name}: {key} has {bad.sum():,} values that are not finite, first in {first}")
    return data


def _parts(dataset: minari.MinariDataset, name: str) -> list[tuple[str, int]]:
    """(key, how many of its first numbers) of a Dict observation; ("", D) for a vector."""
    space = dataset.observation_space
    sizes = dict_sizes(space)
    if sizes is not None:
        spec = dataset.env_spec
        return flat_parts(sizes, spec.id if spec else "", spec.kwargs.get("maze_map") if spec else None)
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return [("", space.shape[0])]
    raise DatasetError(f"dataset: {name} observes {space}; expected a vector of numbers, or a Dict of vectors")


def _vectors(observations: Any, parts: list[tuple[str, int]]) -> NDArray[Any]:
    """[T + 1, D] of one episode."""
    if isinstance(observations, Mapping):
        return np.concatenate([np.asarray(observations[key])[:, :size] for key, size in parts], axis=1)
    return np.asarray(observations)


def _action_bounds(space: Any, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
        raise DatasetError(f"dataset: {name} has actions {space}; expected a vector of numbers with finite bounds")
    return space.low.astype(np.float64), space.high.astype(np.float64)


def _metadata(dataset: minari.MinariDataset) -> dict[str, str | int | float]:
    stored = dataset.storage.metadata
    keep = {k: v for k, v in stored.items() if isinstance(v, str | int | float) and not k.endswith("_spec")}
    spec = dataset.env_spec
    return keep | ({"env_id": spec.id} if spec else {})


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
    library = _library()
    _check_name(dataset_id)
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
        spec = env.unwrapped.spec  # without this package's wrappers, which others could not make
        env.close()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for authors and addresses
            library.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=spec,
                algorithm_name=algorithm or None,
                description=f"converted by qcse from {os.path.basename(data.path) or 'arrays'}",
                **spaces,
            )
    except (ValueError, OSError, KeyError) as error:
        raise DatasetError(
            f"dataset: minari:{dataset_id} cannot be written ({error}); expected a name that is not taken yet, in a "
            "folder that may be written"
        ) from error
    return Path(library.load_dataset(dataset_id).storage.data_path)


__all__ = ["MINARI", "environment_spec", "load_minari", "open_minari", "write_minari"]

"""Gymnasium environments by name.

An environment here takes actions in [-1, 1]^A and gives float32 observations, whatever its own bounds and types.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import EnvError, QcseError
from . import mazes
from .minari import environment_spec, recorded_name
from .names import MINARI, is_minari
from .registration import register
from .robotics import needs_robotics
from .scores import REFERENCE_SCORES, task_family
from .spaces import Boundary, FlatObservation, dict_sizes, failed, flat_parts

_log = logging.getLogger(__name__)

register()


@dataclass(frozen=True)
class Task:
    """What is known of an environment before it is made.

    Attributes:
        env_id: Gymnasium's name.
        family: hopper, walker2d, halfcheetah, ant, another key of `scores.REFERENCE_SCORES`, or "other".
        reference: returns of a random and of an expert policy, for D4RL's normalised score; None: there is none.
        max_episode_steps: time limit of an episode.
    """

    env_id: str
    family: str
    reference: tuple[float, float] | None
    max_episode_steps: int


def task_for(env_id: str) -> Task:
    """The task of a Gymnasium name such as "Hopper-v5".

    "module:Name-v0" imports the module that registers it; names of Gymnasium-Robotics need no module; "minari:ID" is
    the environment that a Minari dataset was recorded in.

    Raises:
        EnvError: no such environment (the message has near matches), or one without a time limit.
    """
    if is_minari(env_id):
        limit = _minari_spec(env_id).max_episode_steps
        assert limit is not None
        return Task(env_id, "other", None, limit)
    module, _, name = env_id.rpartition(":")
    needs_robotics(name)
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise EnvError(
                f"env: {env_id!r} is to be registered by module {module!r}, which cannot be imported ({error})"
            ) from error
        except Exception as error:  # of the module's own code, or its name
            raise failed(env_id, f"the import of {module}", error) from error
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise EnvError(f"env: no environment is called {env_id!r}{_near(name)}; expected a Gymnasium name") from error
    if spec.max_episode_steps is None:
        advice = _near(name) or "; register it with max_episode_steps"
        raise EnvError(
            f"env: {env_id} has no time limit (or is an outdated version), so an episode may never end{advice}"
        )
    family = task_family(env_id)
    return Task(env_id, family, REFERENCE_SCORES.get(family), spec.max_episode_steps)


def _minari_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The environment of "minari:ID" as this installation registers it, with the dataset's options and time limit."""
    dataset_id = env_id.removeprefix(MINARI)
    name = recorded_name(dataset_id)
    needs_robotics(name)
    spec = environment_spec(dataset_id)
    if spec.max_episode_steps is None:
        raise EnvError(f"env: {env_id} was recorded without a time limit; name the environment itself with --env")
    return spec


def _near(name: str) -> str:
    names = [spec.id for spec in gymnasium.registry.values() if spec.max_episode_steps and spec.id != name]
    lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    return f"; near matches: {', '.join(lower[match] for match in close)}" if close else ""


@contextmanager
def _torch_as_it_was(name: str) -> Iterator[None]:
    """Undo what an environment does to torch: training counts on its settings."""
    before = torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        now = torch.get_default_dtype(), torch.get_num_threads()
        if now != before:
            torch.set_default_dtype(before[0])
            torch.set_num_threads(before[1])
            _log.warning(
                "env: %s set torch's default dtype and threads to %s and %d; they are put back to %s and %d",
                *(name, *now, *before),
            )


def _maze_options(name: str) -> dict[str, Any]:
    """D4RL's goal (and AntMaze's start) for Gymnasium-Robotics's plain mazes, whose goal is in any cell otherwise."""
    match = re.fullmatch(r"(Ant|Point)Maze_(UMaze|Medium|Large)(Dense)?-v\d+", name)
    if match is None:
        return {}
    maze = match[2].lower()
    cells: list[list[Any]] = [[int(cell == "#") for cell in row] for row in mazes.MAZES[maze]]
    if match[1] == "Point":
        row, column = mazes.POINT_GOALS[maze]
        cells[row][column] = "g"
        return {"maze_map": cells}
    row, column = mazes.ANT_GOALS[maze]
    cells[row][column] = "g"
    cells[mazes.ANT_START[0]][mazes.ANT_START[1]] = "r"
    return {"maze_map": cells, "continuing_task": False}


def make_env(env_id: str) -> gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]:
    """Make an environment with actions in [-1, 1]^A, float32 observations [D], and its time limit.

    Actions are mapped affinely to the environment's own bounds where those differ; they are not clipped. Dict
    observations become vectors (`flat_parts`). Gymnasium-Robotics's AntMaze and PointMaze of size UMaze, Medium and
    Large get D4RL's goal cell, AntMaze its start cell and its end at the goal as well: as registered they put goals
    anywhere and go on for ever. Their coordinates stay Gymnasium-Robotics's; D4RL's files need `qcse/antmaze-...`.

    Raises:
        EnvError: unknown name, observations or actions that are not a bounded vector of numbers, or what it needs is
            not installed.
    """
    with _torch_as_it_was(env_id):
        env = _made(env_id)
    sizes = dict_sizes(env.observation_space)
    if sizes is not None:
        assert env.spec is not None
        env = FlatObservation(env, flat_parts(sizes, env.spec.id, env.spec.kwargs.get("maze_map")))
    observation, action = env.observation_space, env.action_space
    if not isinstance(observation, gymnasium.spaces.Box) or len(observation.shape) != 1 or observation.shape[0] == 0:
        raise EnvError(f"env: {env_id} observes {observation}; expected a vector: a Box of shape (D,)")
    if not isinstance(action, gymnasium.spaces.Box) or len(action.shape) != 1 or action.shape[0] == 0:
        raise EnvError(f"env: {env_id} takes actions {action}; expected a vector: a Box of shape (A,)")
    if not (np.issubdtype(action.dtype, np.floating) and np.isfinite([action.low, action.high]).all()):
        raise EnvError(f"env: {env_id} takes actions {action}; expected real numbers with finite bounds")
    if not (action.low < action.high).all():
        raise EnvError(f"env: {env_id} takes actions {action}; expected lower bounds below the upper ones")
    return Boundary(env, env_id)


def _made(env_id: str) -> gymnasium.Env[Any, Any]:
    """The environment as Gymnasium makes it."""
    task_for(env_id)
    _redirect_mujoco_warnings()
    try:
        with warnings.catch_warnings():
            # Data recorded in an older version is a good reason to ask for it.
            warnings.filterwarnings("ignore", message=r".*(is out of date|deprecat|in favor of).*")
            target = _minari_spec(env_id) if is_minari(env_id) else env_id
            options = {} if is_minari(env_id) else _maze_options(env_id.rpartition(":")[2])
            return gymnasium.make(target, disable_env_checker=True, **options)
    except QcseError:
        raise
    except (gymnasium.error.Error, ImportError) as error:
        raise EnvError(
            f"env: {env_id} cannot be made ({error}); `pip install 'gymnasium[mujoco]'` for MuJoCo's, "
            "`pip install 'qcse[maze]'` for Gymnasium-Robotics's"
        ) from error
    except Exception as error:  # of the environment's own code
        raise failed(env_id, "its construction", error) from error


def _log_mujoco_warning(text: str) -> None:
    if "deprecated" not in text:
        _log.warning("MuJoCo: %s", text)


def _redirect_mujoco_warnings() -> None:
    """Send MuJoCo's warnings to Python's logging: by default they write MUJOCO_LOG.TXT into the working directory.

    What it says about Gymnasium's models (deprecated attributes) is for Gymnasium, and would come with each copy made.
    """
    try:
        import mujoco
    except ImportError:  # environments that do without MuJoCo need no redirection
        return
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log_mujoco_warning)

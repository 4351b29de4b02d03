"""Gymnasium environments: tasks and their reference scores, exact resumption in mid-episode, evaluation.

An environment here takes actions in [-1, 1]^A and gives float32 observations, whatever its own bounds and types.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import math
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from . import d4rl_envs
from .datasets import REFERENCE_SCORES, Transitions, task_family
from .errors import QcseError

_log = logging.getLogger(__name__)

MINARI = "minari:"

WALL_SHARE = 0.01  # of positions in walls, beyond which data cannot be from a maze

Policy = Callable[[NDArray[np.float32]], Any]  # observations [E, D] -> actions [E, A], array or tensor


class EnvError(QcseError):
    """An environment is unknown, of an unsuitable kind, or does not fit the data or the stored run."""


@dataclass(frozen=True)
class Task:
    """What is known of an environment before it is made.

    Attributes:
        env_id: Gymnasium's name.
        family: hopper, walker2d, halfcheetah, ant, another key of `datasets.REFERENCE_SCORES`, or "other".
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
    if env_id.startswith(MINARI):
        spec = _minari_spec(env_id)
        return Task(env_id, "other", None, spec.max_episode_steps)
    module, _, name = env_id.rpartition(":")
    if d4rl_envs.ROBOTICS.match(name):
        _register_robotics(name)
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise EnvError(
                f"env: {env_id!r} is to be registered by module {module!r}, which cannot be imported ({error})"
            ) from error
        except Exception as error:  # of the module's own code, or its name
            raise _failed(env_id, f"the import of {module}", error) from error
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


def _register_robotics(name: str) -> None:
    """Register Gymnasium-Robotics's environments, once."""
    if name in gymnasium.registry:
        return
    try:
        d4rl_envs.register_robotics()
    except ImportError as error:
        raise EnvError(
            f"env: {name} is part of Gymnasium-Robotics, which is not installed ({error}); pip install 'qcse[maze]'"
        ) from error


def _minari_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The environment of "minari:ID" as this installation registers it, with the dataset's options and time limit."""
    from .minari_data import environment_spec, recorded_name

    dataset_id = env_id.removeprefix(MINARI)
    name = recorded_name(dataset_id)
    if d4rl_envs.ROBOTICS.match(name):
        _register_robotics(name)
    spec = environment_spec(dataset_id)
    if spec.max_episode_steps is None:
        raise EnvError(f"env: {env_id} was recorded without a time limit; name the environment itself with --env")
    return spec


def _near(name: str) -> str:
    names = [spec.id for spec in gymnasium.registry.values() if spec.max_episode_steps and spec.id != name]
    lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    return f"; near matches: {', '.join(lower[match] for match in close)}" if close else ""


class _Boundary(gymnasium.Wrapper[NDArray[np.float32], NDArray[np.float32], Any, Any]):
    """What crosses from an environment to this package: checked, copied, in the units that are used here.

    Actions from [-1, 1] are mapped to the environment's bounds; observations become float32 arrays of one's own. What
    the environment raises, or gives against Gymnasium's protocol, becomes an EnvError that names it.

    Attributes:
        low, high: [A] float64, the environment's own bounds of an action.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        inner, outer = env.action_space, env.observation_space
        assert isinstance(inner, gymnasium.spaces.Box) and isinstance(outer, gymnasium.spaces.Box)
        self.name, self._shape, self._steps = name, outer.shape, 0
        self.low, self.high = inner.low.astype(np.float64), inner.high.astype(np.float64)
        self._identity = bool((self.low == -1.0).all() and (self.high == 1.0).all())
        self._half = (self.high - self.low) / 2.0
        self._dtype = inner.dtype
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, inner.shape, np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, outer.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        try:
            result = self.env.reset(seed=seed, options=options)
        except QcseError:
            raise
        except Exception as error:
            raise _failed(self.name, "its reset", error) from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._broken("reset", _kind(result), "a tuple of observation and info")
        return self._observation(result[0]), self._info(result[1])

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._identity:
            action = np.array(action, np.float32)  # a copy: the environment may write into what it is given
        else:
            action = (self.low + (np.asarray(action, np.float64) + 1.0) * self._half).astype(self._dtype)
        try:
            result = self.env.step(action)
        except QcseError:
            raise
        except Exception as error:
            raise _failed(self.name, f"step {self._steps} of an episode", error) from error
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._broken(
                "step", _kind(result), "a tuple of observation, reward, terminated, truncated and info (Gymnasium's)"
            )
        observation, reward, terminated, truncated, info = result
        return (
            self._observation(observation),
            self._reward(reward),
            self._flag(terminated, "terminated"),
            self._flag(truncated, "truncated"),
            self._info(info),
        )

    def _broken(self, call: str, got: str, expected: str) -> EnvError:
        where = f"step {self._steps} of an episode" if self._steps else "its reset"
        return EnvError(f"env: {self.name} gave in {where} {got}; expected from {call} {expected}")

    @property
    def _call(self) -> str:
        return "step" if self._steps else "reset"

    def _observation(self, value: Any) -> NDArray[np.float32]:
        try:
            with np.errstate(over="ignore"):  # what overflows is told below
                observation = np.array(value, np.float32)
        except (TypeError, ValueError):
            raise self._broken(self._call, f"an observation that is {_kind(value)}", "numbers") from None
        if observation.shape != self._shape:
            raise self._broken(self._call, f"an observation of shape {observation.shape}", f"shape {self._shape}")
        if not np.isfinite(observation).all():
            bad = int(np.argmin(np.isfinite(observation)))
            raise self._broken(self._call, f"{value[bad]} as number {bad} of the observation", "finite float32 numbers")
        return observation

    def _reward(self, value: Any) -> float:
        if isinstance(value, float | int | np.floating | np.integer) or getattr(value, "shape", None) == ():
            reward = float(value)
            if math.isfinite(reward):
                return reward
        raise self._broken("step", f"a reward that is {_kind(value)}", "one finite number")

    def _flag(self, value: Any, name: str) -> bool:
        if isinstance(value, bool | np.bool_ | int | np.integer) or getattr(value, "shape", None) == ():
            if value in (0, 1):
                return bool(value)
        raise self._broken("step", f"{name} that is {_kind(value)}", "true or false")

    def _info(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._broken(self._call, f"info that is {_kind(value)}", "a dict")
        return value


def _kind(value: Any) -> str:
    """What something is, in a few words."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    shape = getattr(value, "shape", None)
    if shape:
        return f"an array of shape {tuple(shape)}"
    text = repr(value)
    return f"{text if len(text) < 40 else text[:37] + '...'} ({type(value).__name__})"


def _failed(name: str, where: str, error: Exception) -> EnvError:
    """What an environment raised, with the place in its own code."""
    frames = traceback.extract_tb(error.__traceback__)
    others = ("/numpy/", "/torch/", "/gymnasium/")
    own = [
        frame
        for frame in frames
        if frame.filename != __file__ and not any(part in frame.filename.replace(os.sep, "/") for part in others)
    ]
    place = (own or frames)[-1]
    text = str(error).splitlines()[0] if str(error) else "no reason given"
    if isinstance(error, ValueError) and "to unpack (expected 5" in text:  # Gymnasium's wrappers come to it first
        text += ": step gives observation, reward, terminated, truncated and info"
    return EnvError(
        f"env: {name} failed in {where}: {type(error).__name__}: {text} ({os.path.basename(place.filename)}, line "
        f"{place.lineno}, in {place.name})"
    )


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


def goal_is_fixed(maze_map: Sequence[Sequence[Any]] | None) -> bool:
    """Whether a map of Gymnasium-Robotics leaves one cell for the goal: "g" and "c" cells, any free one if none."""
    if maze_map is None:
        return False
    cells = [cell for row in maze_map for cell in row]
    marked = sum(cell in ("g", "c") for cell in cells)
    return (marked or sum(cell != 1 for cell in cells)) == 1


def flat_parts(
    sizes: Mapping[str, int], env_id: str, maze_map: Sequence[Sequence[Any]] | None
) -> list[tuple[str, int]]:
    """How a Dict observation becomes a vector: (key, how many of its first numbers) in order.

    Goal environments give their observation, followed by the goal unless it always lies in one cell. AntMaze gives
    D4RL's 29 numbers first: x, y, then the ant's 27, without v5's contact forces. Any other Dict: all keys, sorted.

    Args:
        sizes: key -> length of its vector.
        env_id: Gymnasium's name.
        maze_map: the maze, where there is one.
    """
    if set(sizes) != {"observation", "achieved_goal", "desired_goal"}:
        return sorted(sizes.items())
    parts = [("observation", sizes["observation"])]
    if env_id.rsplit("/", 1)[-1].startswith("AntMaze"):
        parts = [("achieved_goal", 2), ("observation", 27)]
    if not goal_is_fixed(maze_map):
        parts.append(("desired_goal", sizes["desired_goal"]))
    return parts


class _FlatObservation(gymnasium.ObservationWrapper[NDArray[np.float64], Any, Any]):
    """A Dict observation as one vector; see `flat_parts`."""

    def __init__(self, env: gymnasium.Env[Any, Any], parts: list[tuple[str, int]]) -> None:
        super().__init__(env)
        self.parts = parts
        size = sum(length for _, length in parts)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def observation(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        return np.concatenate([np.asarray(observation[key]).reshape(-1)[:length] for key, length in self.parts])


def dict_sizes(space: gymnasium.spaces.Space[Any]) -> dict[str, int] | None:
    """Key -> length for a Dict of vectors, None for any other space."""
    if not isinstance(space, gymnasium.spaces.Dict):
        return None
    boxes = {key: box for key, box in space.spaces.items() if isinstance(box, gymnasium.spaces.Box)}
    return {key: int(np.prod(box.shape)) for key, box in boxes.items()} if len(boxes) == len(space.spaces) else None


def _maze_options(name: str) -> dict[str, Any]:
    """D4RL's goal (and AntMaze's start) for Gymnasium-Robotics's plain mazes, whose goal is in any cell otherwise."""
    match = re.fullmatch(r"(Ant|Point)Maze_(UMaze|Medium|Large)(Dense)?-v\d+", name)
    if match is None:
        return {}
    maze = match[2].lower()
    cells: list[list[Any]] = [[int(cell == "#") for cell in row] for row in d4rl_envs.MAZES[maze]]
    if match[1] == "Point":
        row, column = d4rl_envs.POINT_GOALS[maze]
        cells[row][column] = "g"
        return {"maze_map": cells}
    row, column = d4rl_envs.ANT_GOALS[maze]
    cells[row][column] = "g"
    cells[d4rl_envs.ANT_START[0]][d4rl_envs.ANT_START[1]] = "r"
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
        env = _FlatObservation(env, flat_parts(sizes, env.spec.id, env.spec.kwargs.get("maze_map")))
    observation, action = env.observation_space, env.action_space
    if not isinstance(observation, gymnasium.spaces.Box) or len(observation.shape) != 1 or observation.shape[0] == 0:
        raise EnvError(f"env: {env_id} observes {observation}; expected a vector: a Box of shape (D,)")
    if not isinstance(action, gymnasium.spaces.Box) or len(action.shape) != 1 or action.shape[0] == 0:
        raise EnvError(f"env: {env_id} takes actions {action}; expected a vector: a Box of shape (A,)")
    if not (np.issubdtype(action.dtype, np.floating) and np.isfinite([action.low, action.high]).all()):
        raise EnvError(f"env: {env_id} takes actions {action}; expected real numbers with finite bounds")
    if not (action.low < action.high).all():
        raise EnvError(f"env: {env_id} takes actions {action}; expected lower bounds below the upper ones")
    return _Boundary(env, env_id)


def _made(env_id: str) -> gymnasium.Env[Any, Any]:
    """The environment as Gymnasium makes it."""
    task_for(env_id)
    _redirect_mujoco_warnings()
    try:
        with warnings.catch_warnings():
            # Data recorded in an older version is a good reason to ask for it.
            warnings.filterwarnings("ignore", message=r".*(is out of date|deprecat|in favor of).*")
            target = _minari_spec(env_id) if env_id.startswith(MINARI) else env_id
            options = {} if env_id.startswith(MINARI) else _maze_options(env_id.rpartition(":")[2])
            return gymnasium.make(target, disable_env_checker=True, **options)
    except QcseError:
        raise
    except (gymnasium.error.Error, ImportError) as error:
        raise EnvError(
            f"env: {env_id} cannot be made ({error}); `pip install 'gymnasium[mujoco]'` for MuJoCo's, "
            "`pip install 'qcse[maze]'` for Gymnasium-Robotics's"
        ) from error
    except Exception as error:  # of the environment's own code
        raise _failed(env_id, "its construction", error) from error


def _redirect_mujoco_warnings() -> None:
    """Send MuJoCo's warnings to Python's logging: by default they write MUJOCO_LOG.TXT into the working directory.

    What it says about Gymnasium's models (deprecated attributes) is for Gymnasium, and would come with each copy made.
    """
    try:
        import mujoco
    except ImportError:  # environments that do without MuJoCo need no redirection
        return
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda text: "deprecated" in text or _log.warning("MuJoCo: %s", text))


def use_unit_actions(env: gymnasium.Env[Any, Any], transitions: Transitions, units: str = "auto") -> None:
    """Bring a dataset's actions to [-1, 1] in place, where they are in the environment's own units.

    Args:
        env: from `make_env`.
        transitions: of another size than the environment's they are left as they are (`check_compatible` tells).
        units: "unit", "environment", or "auto": as the metadata says or the numbers leave no doubt.

    Raises:
        EnvError: auto cannot tell, or the actions lie beyond the bounds that they are said to have.
    """
    low, high = env.get_wrapper_attr("low"), env.get_wrapper_attr("high")
    actions = transitions.actions
    if ((low == -1.0).all() and (high == 1.0).all()) or actions.shape[1] != len(low):
        return
    least, most, slack = actions.min(0), actions.max(0), 1e-3
    fits = {
        "unit": bool((least >= -1.0 - slack).all() and (most <= 1.0 + slack).all()),
        "environment": bool(
            (least >= low - slack * (high - low)).all() and (most <= high + slack * (high - low)).all()
        ),
    }
    source, name = transitions.path or "the dataset", _name(env)
    if units == "auto":
        recorded = transitions.metadata.get("action_units")
        if str(transitions.path).startswith(MINARI) or str(transitions.metadata.get("algorithm")).startswith("qcse "):
            recorded = recorded or "unit"  # brought to them when it was read, or recorded so
        possible = [str(recorded)] if recorded in fits else [unit for unit, fit in fits.items() if fit]
        if len(possible) == 2:
            raise EnvError(
                f"env: the actions in {source} lie between {least.min():.4g} and {most.max():.4g}, which may be "
                f"{name}'s own units ({low.min():.4g} to {high.max():.4g}) or -1 to 1; say which with --action-units "
                "environment or --action-units unit"
            )
        units = possible[0] if possible else "environment"
    if not fits[units]:
        bounds = "-1 to 1" if units == "unit" else f"{name}'s bounds, {low.min():.4g} to {high.max():.4g}"
        raise EnvError(
            f"env: {source} has actions from {least.min():.4g} to {most.max():.4g}; expected {bounds}: choose the "
            "environment that the data was recorded in, or rescale the stored actions"
        )
    if units == "environment":
        actions[:] = (actions - low) / (high - low) * 2.0 - 1.0


def check_compatible(env: gymnasium.Env[Any, Any] | str, transitions: Transitions) -> None:
    """Check that data and environment agree in the sizes of observation and action, and that actions lie in [-1, 1].

    Raises:
        EnvError: with both numbers and what to do.
    """
    made = make_env(env) if isinstance(env, str) else env
    name = env if isinstance(env, str) else _name(env)
    assert made.observation_space.shape is not None and made.action_space.shape is not None
    source = transitions.path or "the dataset"
    recorded = transitions.metadata.get("env_id") or transitions.metadata.get("env") or transitions.metadata.get("task")
    hint = f"; it was recorded in {recorded}" if recorded else ""
    for what, got, expected in (
        ("observations", transitions.observation_dim, made.observation_space.shape[0]),
        ("actions", transitions.action_dim, made.action_space.shape[0]),
    ):
        if got == expected:
            continue
        remedy = "choose the environment that the data was recorded in, or other data"
        if what == "observations" and task_family(name) == "ant" and got in (27, 105, 111):
            remedy = (
                "D4RL's ant has 111 numbers (27, and 84 contact forces), Gymnasium's Ant-v5 105 (27, and 78 contact "
                "forces), Ant-v4 27: data recorded in one of them does not fit another"
            )
        raise EnvError(f"env: {name} has {what} of {expected} numbers, {source} has {got}{hint}; {remedy}")
    inside = _inside_walls(made.unwrapped, transitions)
    if isinstance(env, str):
        made.close()
    if inside > WALL_SHARE:
        raise EnvError(
            f"env: {inside:.0%} of the positions in {source} lie in walls of {name}{hint}: another maze, or other "
            "coordinates. D4RL's AntMaze and Maze2d files belong to qcse/antmaze-... and qcse/maze2d-...; Minari's "
            "sets to the environment they were recorded in, --env minari:ID"
        )
    largest = float(max(transitions.actions.max(), -transitions.actions.min()))  # np.abs would copy them
    if largest > 1.0 + 1e-3:
        raise EnvError(
            f"env: {source} has actions up to {largest:.4g}; expected -1 to 1, which {name}'s bounds are mapped to: "
            "rescale the stored actions"
        )
    _check_lengths(made, name, transitions, source)


def _check_lengths(env: gymnasium.Env[Any, Any], name: str, transitions: Transitions, source: str) -> None:
    """EnvError where no end of an episode was recorded; a warning where episodes are longer than the time limit."""
    limit = env.spec.max_episode_steps if env.spec else None
    if limit is None:
        return
    lengths = np.diff([0, *(np.flatnonzero(transitions.episode_end) + 1)])
    if len(lengths) == 1 and lengths[0] > limit + 1:
        raise EnvError(
            f"env: {source} has {lengths[0]:,} rows without the end of an episode, {name}'s episodes have at most "
            f"{limit:,} steps: the ends are missing; mark them in timeouts or store next_observations"
        )
    longer = int((lengths > limit + 1).sum())  # D4RL's AntMaze has one step more
    if longer:
        _log.warning(
            "env: %d of %d episodes in %s are longer than %s's %d steps, the longest has %d; are ends missing?",
            longer, len(lengths), source, name, limit, lengths.max(),
        )  # fmt: skip


def _inside_walls(env: Any, transitions: Transitions) -> float:
    """Share of the data's first two numbers, as positions, that are in walls of a maze; 0 where there is no maze."""
    if isinstance(env, d4rl_envs.MazeEnv) and d4rl_envs.MAZES[env.maze]:
        walls = [[cell == "#" for cell in row] for row in d4rl_envs.MAZES[env.maze]]
        cell_of: Callable[[NDArray[np.float32]], Any] = env.xy_cell
    elif hasattr(env, "maze") and hasattr(env.maze, "cell_xy_to_rowcol"):
        walls = [[cell == 1 for cell in row] for row in env.maze.maze_map]
        cell_of = env.maze.cell_xy_to_rowcol
    else:
        return 0.0
    rows = np.linspace(0, len(transitions) - 1, min(len(transitions), 1000)).astype(np.int64)
    cells = [cell_of(position) for position in transitions.observations[rows, :2]]
    return float(np.mean([not (0 <= i < len(walls) and 0 <= j < len(walls[0])) or walls[i][j] for i, j in cells]))


class EpisodeRecorder:
    """One environment that can be put back, bit for bit, to where it was in the middle of an episode.

    A simulator's visible state does not determine what it computes next (contacts, warm starts, lagged positions), so
    the episode is lived through again: from its seed, with the same actions.

    Args:
        env: from `make_env`, or a name for it.

    Attributes:
        env: the environment; to be stepped through this object only.
        observation: [D] float32, the latest one; None before the first reset.
        episode_return: sum of rewards in the current episode.
        episode_length: its steps so far.
        done: True where the next call must be `reset`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any] | str) -> None:
        self.env = make_env(env) if isinstance(env, str) else env
        self.observation: NDArray[np.float32] | None = None
        self.episode_return = 0.0
        self.done = True
        self._start: dict[str, Any] = {"seed": None}  # what the current episode began from
        self._actions: list[NDArray[np.float32]] = []

    @property
    def episode_length(self) -> int:
        return len(self._actions)

    def reset(self, seed: int) -> NDArray[np.float32]:
        """Begin an episode; returns its first observation, [D] float32. An episode in progress is given up.

        Args:
            seed: for the environment's reset(seed=...). Each episode has one of its own, so that it can be repeated
                whatever generators the environment has.
        """
        self._start = {"seed": seed}
        return self._begin()

    def _begin(self) -> NDArray[np.float32]:
        self._actions = []
        self.episode_return = 0.0
        self.done = False
        if "generator" in self._start:
            self.env.unwrapped.np_random = _generator(self._start["generator"])
        self.observation, _ = self.env.reset(seed=self._start.get("seed"))
        return self.observation

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool]:
        """Take an action [A] in [-1, 1]; returns (observation [D] float32, reward, terminated, truncated).

        A state that is terminal in the very step of the time limit is terminal: truncated is then False.
        """
        if self.done:
            raise RuntimeError("EpisodeRecorder.step: no episode is in progress; call reset first")
        # A copy: the caller may reuse the array, and the episode must be repeatable.
        action = np.array(action, dtype=np.float32)
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self._actions.append(action)
        self.observation = observation
        self.episode_return += float(reward)
        self.done = bool(terminated or truncated)
        return observation, float(reward), bool(terminated), bool(truncated and not terminated)

    def state_dict(self) -> dict[str, Any]:
        """Everything `load_state_dict` needs: tensors, numbers, strings and dicts of them only."""
        state: dict[str, Any] = {"versions": _versions(), **self._start}
        if self.observation is not None:
            shape = self.env.action_space.shape
            assert shape is not None
            actions = np.stack(self._actions) if self._actions else np.empty((0, *shape), np.float32)
            state["actions"] = torch.from_numpy(actions)
            state["observation"] = torch.from_numpy(np.array(self.observation))
            state["done"] = self.done
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Live through the stored episode again and stop where it stood.

        With the versions and the machine that stored it the result is the same to the bit. Where the replay comes out
        slightly apart, that is logged as a warning, and the episode goes on from where the replay ended. States of
        earlier versions, which hold the generator before the reset instead of a seed, are understood.

        Raises:
            EnvError: another kind of environment, or a replay that ends before the stored episode did.
        """
        if "actions" not in state:
            self._start, self._actions, self.observation, self.done = {"seed": None}, [], None, True
            return
        actions = state["actions"].numpy()
        if actions.shape[1:] != self.env.action_space.shape:
            raise EnvError(
                f"env: the stored episode has actions of shape {actions.shape[1:]}, the environment takes "
                f"{self.env.action_space.shape}; resume with the environment that it was stored with"
            )
        self._start = {name: state[name] for name in ("seed", "generator") if name in state}
        self._begin()
        for done, action in enumerate(actions):
            if self.done:
                raise EnvError(
                    f"env: the stored episode has {len(actions)} steps, but repeated it ended after {done}; it was "
                    f"stored with {_spell(state['versions'])}, here are {_spell(_versions())}: resume with the former"
                )
            self.step(action)
        stored = state["observation"].numpy()
        if self.observation is None or stored.shape != self.observation.shape:
            raise EnvError(
                f"env: the stored observation has shape {stored.shape}, the environment's has "
                f"{self.env.observation_space.shape}; resume with the environment that it was stored with"
            )
        if self.done != state["done"] or not np.array_equal(stored, self.observation):
            _log.warning(
                "env: the episode in progress of %s was repeated, but its state differs by up to %.3g from the stored "
                "one (stored with %s, here are %s; or its reset(seed=...) does not determine its episodes); training "
                "goes on, but not bit for bit as if it had never stopped",
                _name(self.env),
                float(np.abs(stored - self.observation).max()),
                _spell(state["versions"]),
                _spell(_versions()),
            )


def _name(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__


def _generator(plain: dict[str, Any]) -> np.random.Generator:
    """Gymnasium's generator of a state of an earlier version."""
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": plain["kind"],
        "state": {"state": int(plain["state"]), "inc": int(plain["inc"])},
        "has_uint32": int(plain["has_uint32"]),
        "uinteger": int(plain["uinteger"]),
    }
    return np.random.Generator(bits)


def _versions() -> dict[str, str]:
    found = {"gymnasium": str(gymnasium.__version__), "numpy": str(np.__version__)}
    try:
        import mujoco
    except ImportError:
        return found
    return {**found, "mujoco": str(mujoco.__version__)}


def _spell(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


@dataclass(frozen=True, eq=False)
class EvalResult:
    """One entry per episode.

    Attributes:
        returns: [E] float64, undiscounted.
        lengths: [E] int64, steps.
        successes: [E] bool, goal reached at some step, as the environment tells; None where it tells nothing.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    successes: NDArray[np.bool_] | None


class Evaluator:
    """Runs whole episodes side by side, on environments that are made once.

    Episode i is seeded with seed + i, and nothing is carried from one call to the next: the result is a pure function
    of policy, seed and number of episodes.
    """

    def __init__(self, env_id: str, episodes: int) -> None:
        if episodes < 1:
            raise ValueError(f"Evaluator: got {episodes} episodes, expected at least 1")
        self.env_id = env_id
        self._envs = [make_env(env_id) for _ in range(episodes)]

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._envs)

    def evaluate(self, policy_fn: Policy, seed: int | Sequence[int]) -> EvalResult:
        """Run every episode to its end.

        Args:
            policy_fn: observations [E, D] float32 -> actions [E, A] in [-1, 1], array or tensor. It is always called
                with all E rows; the rows of episodes that have ended hold their last observation and are ignored.
            seed: of the first episode, the next having one more; or a seed for each episode.

        Raises:
            EnvError: the policy's actions have another shape or are not finite.
        """
        count = len(self._envs)
        seeds = range(seed, seed + len(self)) if isinstance(seed, int) else seed
        observations = np.stack([env.reset(seed=s)[0] for env, s in zip(self._envs, seeds, strict=True)])
        returns, lengths = np.zeros(count), np.zeros(count, np.int64)
        successes, told = np.zeros(count, np.bool_), False
        running = list(range(count))
        shape = (count, *(self._envs[0].action_space.shape or ()))
        while running:
            actions = policy_fn(observations.copy())
            if isinstance(actions, torch.Tensor):
                actions = actions.detach().cpu().numpy()
            actions = np.asarray(actions, np.float32)
            if actions.shape != shape:
                raise EnvError(f"evaluation: the policy gave actions of shape {actions.shape}, expected {shape}")
            if not np.isfinite(actions[running]).all():
                raise EnvError(f"evaluation: the policy gave NaN or infinite actions in step {int(lengths.max())}")
            for i in tuple(running):
                observations[i], reward, terminated, truncated, info = self._envs[i].step(actions[i])
                returns[i] += reward
                lengths[i] += 1
                success = info.get("success", info.get("is_success"))
                if success is not None:
                    told = True
                    successes[i] |= bool(success)
                if terminated or truncated:
                    running.remove(i)
        return EvalResult(returns, lengths, successes if told else None)

    def close(self) -> None:
        for env in self._envs:
            env.close()


def evaluate(policy_fn: Policy, env_id: str, episodes: int, seed: int) -> EvalResult:
    """One evaluation with environments of its own; see `Evaluator.evaluate`."""
    evaluator = Evaluator(env_id, episodes)
    try:
        return evaluator.evaluate(policy_fn, seed)
    finally:
        evaluator.close()

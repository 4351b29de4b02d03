"""What crosses between an environment and this package: vectors of float32, actions in [-1, 1], checked."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ..errors import EnvError, QcseError


class Boundary(gymnasium.Wrapper[NDArray[np.float32], NDArray[np.float32], Any, Any]):
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
            raise failed(self.name, "its reset", error) from error
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
            raise failed(self.name, f"step {self._steps} of an episode", error) from error
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


def failed(name: str, where: str, error: Exception) -> EnvError:
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


class FlatObservation(gymnasium.ObservationWrapper[NDArray[np.float64], Any, Any]):
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


def name_of(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__

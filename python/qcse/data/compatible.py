"""Whether a dataset and an environment fit each other, and the units of a dataset's actions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ..envs import mazes
from ..envs.make import make_env
from ..envs.scores import task_family
from ..envs.spaces import name_of
from ..errors import EnvError
from .sources import source_of
from .transitions import Transitions

_log = logging.getLogger(__name__)

WALL_SHARE = 0.01  # of positions in walls, beyond which data cannot be from a maze


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
    source, name = transitions.path or "the dataset", name_of(env)
    if units == "auto":
        recorded = transitions.metadata.get("action_units")
        if source_of(transitions.path).unit_actions or str(transitions.metadata.get("algorithm")).startswith("qcse "):
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
    name = env if isinstance(env, str) else name_of(env)
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
    if isinstance(env, mazes.MazeEnv) and mazes.MAZES[env.maze]:
        walls = [[cell == "#" for cell in row] for row in mazes.MAZES[env.maze]]
        cell_of: Callable[[NDArray[np.float32]], Any] = env.xy_cell
    elif hasattr(env, "maze") and hasattr(env.maze, "cell_xy_to_rowcol"):
        walls = [[cell == 1 for cell in row] for row in env.maze.maze_map]
        cell_of = env.maze.cell_xy_to_rowcol
    else:
        return 0.0
    rows = np.linspace(0, len(transitions) - 1, min(len(transitions), 1000)).astype(np.int64)
    cells = [cell_of(position) for position in transitions.observations[rows, :2]]
    return float(np.mean([not (0 <= i < len(walls) and 0 <= j < len(walls[0])) or walls[i][j] for i, j in cells]))

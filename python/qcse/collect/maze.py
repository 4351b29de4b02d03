"""`qcse collect` in mazes: a body led along waypoints, recorded in D4RL's layout.

As in D4RL (arXiv 2004.07219) the body is sent from goal to goal along shortest paths, with noise on its actions, while
reward and end are those of the task's own goal, which most journeys pass by or never see.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .. import __version__
from ..config.commands import MazeCollectArgs
from ..config.ranges import check_least
from ..data.d4rl import write_d4rl
from ..data.transitions import bar_hidden
from ..envs.make import make_env
from ..envs.mazes import MazeEnv, ant_to_goal, free_cells, shortest_paths
from ..envs.names import is_maze
from ..errors import ConfigError
from ..runs.policy import StoredPolicy
from ..runs.signals import stoppable
from ..runs.trainer import RunInterrupted
from .recording import Recording, last_state, recording, stored_arrays, stored_rows

REACHED = 0.5  # distance at which a waypoint counts as passed, and a journey as over
POSITION_GAIN, VELOCITY_GAIN = 10.0, -1.0  # of the force on the ball, D4RL's
FLUSH_ROWS, FLUSH_SECONDS = 10_000, 15.0  # at the next episode's beginning what was recorded goes to the disk
GOAL_WAY = 10.0  # length of the way to a goal as D4RL's walking policy is told it

# position and velocity or whole observation [D], waypoint [2] -> action [A]
Driver = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


class Navigator:
    """Sends a body from goal to goal along the cells of shortest paths.

    Args:
        env: the maze.
        random: draws goals and the places inside cells.
        start: cell of the task's start.
        count: goals are drawn from so many cells, those nearest to the start; None: all.
        goal: the only goal; None: cells drawn at random.
    """

    def __init__(
        self,
        env: MazeEnv,
        random: np.random.Generator,
        start: tuple[int, int],
        count: int | None = None,
        goal: NDArray[Any] | None = None,
    ) -> None:
        self.env, self.random, self.only = env, random, goal
        self.paths = {cell: shortest_paths(env.maze, cell) for cell in free_cells(env.maze)}
        self.cells = sorted(self.paths, key=lambda cell: self.paths[start][cell])[:count]
        self.new_journey()

    def new_journey(self) -> None:
        """Choose the next goal."""
        if self.only is None:
            self.target = self.cells[int(self.random.integers(len(self.cells)))]
            self.goal = self.inside(self.target)
        else:
            self.goal, self.target = self.only, self.env.xy_cell(self.only)
        self.waypoint, self.heading = self.goal, self.target

    def inside(self, cell: tuple[int, int]) -> NDArray[np.float64]:
        """A place near the middle of a cell, so that journeys through it differ."""
        xy = self.env.cell_xy(cell)
        scale = np.linalg.norm(self.env.cell_xy((1, 2)) - self.env.cell_xy((1, 1)))
        return xy + scale * self.random.uniform(-0.1, 0.1, 2)

    def lead(self, position: NDArray[Any]) -> NDArray[np.float64]:
        """The place to go for now, from where the body is, [2]."""
        if np.linalg.norm(position - self.goal) <= REACHED and self.only is None:
            self.new_journey()
        here = self.env.xy_cell(position)
        if here == self.target or here not in self.paths[self.target]:  # squeezed into a wall's edge: straight on
            self.waypoint, self.heading = self.goal, self.target
            return self.waypoint
        distance = self.paths[self.target]
        row, column = here
        ways = [
            c for c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)) if c in distance
        ]
        following = min(ways, key=lambda cell: distance[cell])
        if following != self.heading:
            self.heading = following
            self.waypoint = self.goal if following == self.target else self.inside(following)
        return self.waypoint


def push(observation: NDArray[Any], waypoint: NDArray[Any]) -> NDArray[Any]:
    """Force on the ball towards a waypoint, damped by its velocity."""
    force: NDArray[Any] = POSITION_GAIN * (waypoint - observation[:2]) + VELOCITY_GAIN * observation[2:4]
    return force


def walk(run: Path) -> Driver:
    """The stored policy of a run in qcse/antgoal-v2 or -v4, told the way to the waypoint at a length it knows."""
    policy = StoredPolicy(run)
    if not policy.config.env.startswith("qcse/antgoal-"):
        raise ConfigError(
            f"policy: {run} was trained in {policy.config.env}; expected a policy that walks to goals: "
            "qcse train --algo sac --env qcse/antgoal-v2"
        )
    policy.check_single()

    def drive(observation: NDArray[Any], waypoint: NDArray[Any]) -> NDArray[Any]:
        state = ant_to_goal(observation, waypoint)
        state[-2:] *= GOAL_WAY / max(float(np.linalg.norm(state[-2:])), 1e-6)
        return policy.act(state)

    return drive


def collect_maze(args: MazeCollectArgs, progress: bool = True) -> Path:
    """Record `args.rows` transitions; returns the file.

    Raises:
        ConfigError: an environment that is no maze of this package, no policy for the ant, numbers out of range.
    """
    if not is_maze(args.env):
        raise ConfigError(f"env: {args.env} is not a maze of this package; expected qcse/pointmaze-..., -maze2d-, ...")
    check_least(args, 1, "rows", "cells")
    check_least(args, 0, "noise", "seed")
    name = args.name or args.env.removeprefix("qcse/").rpartition("-v")[0]
    path = args.out / f"{name}.hdf5"
    led = "uniform random actions" if args.behaviour == "random" else "waypoints"
    metadata: dict[str, str | int | float] = {
        "env_id": args.env,
        "algorithm": f"qcse {__version__} {led}",
        "action_units": "unit",
        "noise": args.noise if args.behaviour == "waypoints" else 0.0,
        "goals": args.goals,
        "starts": args.starts,
        "policy": str(args.policy.name) if args.policy else "",
        "seed": args.seed,
    }
    drive = None if args.finish else _driver(args)
    with recording(args, name, [path]) as folder:
        if drive is not None:
            _record(args, drive, folder / "rows", progress)
        if stored_rows(folder / "rows") == 0:
            raise ConfigError(f"finish: nothing is recorded in {folder} yet")
        write_d4rl(path, stored_arrays(folder / "rows"), metadata)
    return path


def _record(args: MazeCollectArgs, drive: Driver, folder: Path, progress: bool) -> None:
    """The rows that are missing. At the beginning of an episode all that is to come follows from two generators, so
    from there a recording that was stopped goes on."""
    env = Recording(make_env(args.env), folder)
    maze = env.unwrapped
    assert isinstance(maze, MazeEnv)
    random = np.random.default_rng(args.seed)
    env.reset(seed=args.seed)
    goal = maze.goal if args.goals == "task" else None
    navigator = Navigator(maze, random, maze.xy_cell(maze.data.qpos[:2]), args.cells, goal)
    generators = (random.bit_generator, maze.np_random.bit_generator)
    kept, state = last_state(folder)
    env.keep(kept)
    if state:
        for generator, stored in zip(generators, json.loads(state), strict=True):
            generator.state = stored
    fresh, flushed = True, time.monotonic()
    bar = tqdm(total=args.rows, initial=kept, unit="row", desc="collect", disable=bar_hidden(progress), leave=False)
    with stoppable() as stopped, bar:
        try:
            while len(env) < args.rows:
                if fresh:
                    if len(env.rows) >= FLUSH_ROWS or time.monotonic() - flushed > FLUSH_SECONDS:
                        env.flush(json.dumps([generator.state for generator in generators]))
                        flushed = time.monotonic()
                    options = {}
                    if args.starts == "anywhere":
                        cell = navigator.cells[int(random.integers(len(navigator.cells)))]
                        options = {"position": navigator.inside(cell)}
                    env.reset(options=options)
                    navigator.only = maze.goal if args.goals == "task" else None
                    navigator.new_journey()
                if args.behaviour == "random":
                    action = random.uniform(-1, 1, env.action_space.shape)
                else:
                    waypoint = navigator.lead(maze.data.qpos[:2])
                    action = np.clip(drive(maze.observation(), waypoint), -1, 1)
                    action = action + args.noise * random.standard_normal(action.shape)
                env.infos["goal"] = maze.goal
                _, _, terminated, truncated, _ = env.step(np.clip(action, -1, 1).astype(np.float32))
                fresh = terminated or truncated
                bar.update(1)
                if stopped():
                    raise RunInterrupted(len(env))
        finally:
            env.flush()


def _driver(args: MazeCollectArgs) -> Driver:
    if not args.env.startswith("qcse/antmaze-") or args.behaviour == "random":
        if args.policy is not None:
            raise ConfigError(f"policy: got {args.policy}, but {args.behaviour} in {args.env} needs none")
        return push
    if args.policy is None:
        raise ConfigError(
            f"policy: got none, but waypoints alone do not move the ant of {args.env}; train one that walks to goals "
            "(qcse train --algo sac --env qcse/antgoal-v2 --out runs/walk) and name its run with --policy, or record "
            "--behaviour random"
        )
    return walk(args.policy)

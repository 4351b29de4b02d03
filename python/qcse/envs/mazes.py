"""D4RL's mazes: AntMaze, Maze2d and this package's own point maze."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

GOAL_RADIUS = 0.5

# '#' is a wall. Rows are counted along y in AntMaze and along x in Maze2d.
MAZES: dict[str, tuple[str, ...]] = {
    "plane": (),
    "open": ("#######", "#.....#", "#.....#", "#.....#", "#######"),
    "umaze": ("#####", "#...#", "###.#", "#...#", "#####"),
    "medium": ("########", "#..##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#..#", "########"),
    "large": (
        "############",
        "#....#.....#",
        "#.##.#.#.#.#",
        "#......#...#",
        "#.####.###.#",
        "#..#.#.....#",
        "##.#.#.#.###",
        "#..#...#...#",
        "############",
    ),
}

# (row, column) of the goal
ANT_GOALS = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}
POINT_GOALS = {"open": (2, 3), "umaze": (1, 1), "medium": (6, 6), "large": (7, 9)}
ANT_START = (1, 1)

ANT_SCALE = 4.0  # side of a cell
POINT_OFFSET = 0.2  # the ball's coordinates are 0.2 short of its place: a cell's centre is its index less 0.2

# ant -> (seconds a simulation step, torque at full action, solref and solimp of contacts or None for MuJoCo's own)
ANTS = {"d4rl": ("0.02", "30", (".02 1", ".8 .8 .01")), "gymnasium": ("0.01", "150", None)}


def free_cells(maze: str) -> list[tuple[int, int]]:
    """(row, column) of every cell that is not a wall."""
    return [(i, j) for i, row in enumerate(MAZES[maze]) for j, cell in enumerate(row) if cell != "#"]


class MazeEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """A body in a maze, simulated by MuJoCo; subclasses place it and its goal.

    Attributes:
        maze: a key of MAZES.
        goal: [2] float64, the goal of the current episode.
        model, data: MuJoCo's.
    """

    metadata = {"render_modes": []}
    frame_skip = 1
    observed: tuple[int, int]  # how many of qpos and qvel are observed

    def __init__(self, maze: str, xml: str) -> None:
        import mujoco

        self._mujoco = mujoco
        self.maze = maze
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)
        self.goal: NDArray[np.float64] = np.zeros(2)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.model.nu,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (sum(self.observed),), np.float64)

    @property
    def dt(self) -> float:
        """Seconds an action lasts."""
        return float(self.model.opt.timestep) * self.frame_skip

    def clear(self) -> None:
        """Put the simulator to its state at the beginning, so that nothing of what was before is left in it."""
        self._mujoco.mj_resetData(self.model, self.data)

    def set_state(self, qpos: NDArray[Any], qvel: NDArray[Any]) -> None:
        """Put the body to a state of a file: a row of `infos/qpos` and one of `infos/qvel`, [numbers] each."""
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        self._mujoco.mj_forward(self.model, self.data)

    def observation(self) -> NDArray[np.float64]:
        """The current state as it is observed, [D]."""
        qpos, qvel = self.observed
        return np.concatenate([self.data.qpos[:qpos], self.data.qvel[:qvel]])

    @property
    def distance(self) -> float:
        """From the body to the goal, in the plane."""
        return float(np.linalg.norm(self.data.qpos[:2] - self.goal))

    def cell_xy(self, cell: tuple[int, int]) -> NDArray[np.float64]:
        """Coordinates of a cell's nominal point, the one that D4RL draws starts and goals around, [2]."""
        raise NotImplementedError

    def xy_cell(self, xy: NDArray[Any]) -> tuple[int, int]:
        """(row, column) of the cell that a point lies in."""
        raise NotImplementedError

    def _place(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw the goal and a start: qpos, qvel."""
        raise NotImplementedError

    def _judge(self) -> tuple[float, bool]:
        """Reward and whether the episode ends."""
        reached = self.distance <= GOAL_RADIUS
        return float(reached), reached

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Begin an episode. `options` may hold "goal" and "position", [2] each, in place of what is drawn."""
        super().reset(seed=seed)
        self.clear()
        qpos, qvel = self._place()
        if options and options.get("goal") is not None:
            self.goal = np.array(options["goal"], np.float64)
        if options and options.get("position") is not None:
            qpos[:2] = options["position"]
        self.set_state(qpos, qvel)
        return self.observation(), {"success": self.distance <= GOAL_RADIUS, "goal": self.goal.copy()}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self.data.ctrl[:] = np.clip(action, -1.0, 1.0)
        for _ in range(self.frame_skip):
            self._mujoco.mj_step(self.model, self.data)
        reward, ended = self._judge()
        return self.observation(), reward, ended, False, {"success": self.distance <= GOAL_RADIUS}


class AntMazeEnv(MazeEnv):
    """D4RL's AntMaze; rows of the maze along y, the start cell at the origin."""

    frame_skip = 5
    observed = (15, 14)

    def __init__(self, maze: str, ant: str = "d4rl") -> None:
        super().__init__(maze, _ant_xml(maze, ant))

    def cell_xy(self, cell: tuple[int, int]) -> NDArray[np.float64]:
        return ANT_SCALE * np.array([cell[1] - ANT_START[1], cell[0] - ANT_START[0]], np.float64)

    def xy_cell(self, xy: NDArray[Any]) -> tuple[int, int]:
        column, row = np.floor(np.asarray(xy[:2]) / ANT_SCALE + 0.5).astype(int)
        return int(row) + ANT_START[0], int(column) + ANT_START[1]

    def _place(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        random = self.np_random
        # D4RL's two draws one after the other: up to 1, then up to 0.5, towards positive x and y.
        self.goal = self.cell_xy(ANT_GOALS[self.maze]) + random.uniform(0, 1.0, 2) + random.uniform(0, 0.5, 2)
        qpos = self.model.qpos0 + random.uniform(-0.1, 0.1, self.model.nq)
        return qpos, 0.1 * random.standard_normal(self.model.nv)


class AntGoalEnv(AntMazeEnv):
    """The ant on an open plane, sent to a goal up to 10 away: where policies for AntMaze's recordings are trained.

    Observed are the ant without its place, 27 numbers, and the way to the goal, 2; the reward is minus the distance.
    """

    def __init__(self, ant: str = "d4rl") -> None:
        super().__init__("plane", ant)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (29,), np.float64)

    def observation(self) -> NDArray[np.float64]:
        return ant_to_goal(super().observation(), self.goal)

    def _place(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        angle, radius = self.np_random.uniform(0, 2 * np.pi), self.np_random.uniform(0, 10)
        self.goal = radius * np.array([np.cos(angle), np.sin(angle)])
        qpos = self.model.qpos0 + self.np_random.uniform(-0.1, 0.1, self.model.nq)
        return qpos, 0.1 * self.np_random.standard_normal(self.model.nv)

    def _judge(self) -> tuple[float, bool]:
        return -self.distance, False


def ant_to_goal(observation: NDArray[Any], goal: NDArray[Any]) -> NDArray[Any]:
    """What `AntGoalEnv` observes, [29], where `AntMazeEnv` observes `observation` [29] and is to go to `goal` [2]: the
    ant (27), the way (2)."""
    return np.concatenate([observation[2:], goal - observation[:2]])


class PointMazeEnv(MazeEnv):
    """D4RL's Maze2d; rows of the maze along x.

    Args:
        maze: a key of MAZES.
        dense: reward exp(-distance) instead of 1 within GOAL_RADIUS.
        episodic: AntMaze's rules: start at the far end of the maze, end at the goal.
    """

    observed = (2, 2)

    def __init__(self, maze: str, dense: bool = False, episodic: bool = False) -> None:
        super().__init__(maze, _point_xml(maze))
        self.dense, self.episodic = dense, episodic
        self.goal = self.cell_xy(POINT_GOALS[maze])

    def cell_xy(self, cell: tuple[int, int]) -> NDArray[np.float64]:
        return np.array(cell, np.float64)

    def xy_cell(self, xy: NDArray[Any]) -> tuple[int, int]:
        row, column = np.floor(np.asarray(xy[:2]) + POINT_OFFSET + 0.5).astype(int)
        return int(row), int(column)

    def _place(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        random, cells = self.np_random, free_cells(self.maze)
        self.goal = self.cell_xy(POINT_GOALS[self.maze])
        cell = cells[int(random.integers(len(cells)))]
        if self.episodic:
            far = shortest_paths(self.maze, POINT_GOALS[self.maze])
            cell = max(cells, key=lambda c: far[c])
        qpos = self.cell_xy(cell) + random.uniform(-0.1, 0.1, 2)
        return qpos, 0.1 * random.standard_normal(2)

    def _judge(self) -> tuple[float, bool]:
        reached = self.distance <= GOAL_RADIUS
        reward = float(np.exp(-self.distance)) if self.dense else float(reached)
        return reward, reached and self.episodic

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self.set_state(self.data.qpos, np.clip(self.data.qvel, -5.0, 5.0))  # forces alone would speed it up for ever
        return super().step(action)


def shortest_paths(maze: str, to: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Cell -> number of moves to `to`, for every free cell; breadth first."""
    free, distance, front = set(free_cells(maze)), {to: 0}, [to]
    while front:
        following = []
        for i, j in front:
            for near in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if near in free and near not in distance:
                    distance[near] = distance[i, j] + 1
                    following.append(near)
        front = following
    return distance


def _ant_xml(maze: str, ant: str) -> str:
    """Gymnasium's ant with the numbers of ANTS, between the maze's walls."""
    import gymnasium.envs.mujoco

    timestep, torque, contact = ANTS[ant]
    root = ET.parse(Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "ant.xml").getroot()
    option, geom, world = root.find("option"), root.find("default/geom"), root.find("worldbody")
    assert option is not None and geom is not None and world is not None
    option.set("timestep", timestep)
    for motor in root.iter("motor"):
        motor.set("gear", torque)
    if contact is not None:
        geom.set("solref", contact[0])
        geom.set("solimp", contact[1])
    half, height = ANT_SCALE / 2, ANT_SCALE / 4
    for i, row in enumerate(MAZES[maze]):
        for j, cell in enumerate(row):
            if cell == "#":
                x, y = ANT_SCALE * (j - ANT_START[1]), ANT_SCALE * (i - ANT_START[0])
                size, place = f"{half} {half} {height}", f"{x} {y} {height}"
                ET.SubElement(world, "geom", type="box", pos=place, size=size, contype="1", conaffinity="1")
    return ET.tostring(root, encoding="unicode")


def _point_xml(maze: str) -> str:
    """A ball on two slides, pushed by two forces, between the maze's walls."""
    walls = "".join(
        f'<geom type="box" pos="{i + 1} {j + 1} 0" size="0.5 0.5 0.2" conaffinity="1"/>'
        for i, row in enumerate(MAZES[maze])
        for j, cell in enumerate(row)
        if cell == "#"
    )
    at = 1 + POINT_OFFSET
    return f"""<mujoco>
      <compiler inertiafromgeom="true" angle="radian"/>
      <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
      <default>
        <joint damping="1" limited="false"/>
        <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
      </default>
      <worldbody>
        <geom type="plane" size="40 40 0.25" pos="0 0 -0.1" contype="1" conaffinity="0"/>
        <body pos="{at} {at} 0">
          <geom type="sphere" size="0.1" contype="1"/>
          <joint name="x" type="slide" axis="1 0 0"/>
          <joint name="y" type="slide" axis="0 1 0"/>
        </body>
        {walls}
      </worldbody>
      <actuator>
        <motor joint="x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
        <motor joint="y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
      </actuator>
    </mujoco>"""

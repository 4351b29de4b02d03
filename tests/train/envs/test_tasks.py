"""The registry of tasks against d4rl 1.1's own tables, and the environments that it names."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import record_d4rl_infos
from support import d4rl_checkout, needs_robotics

from qcse.config import Preset
from qcse.data.tasks import TASKS, TaskError, cache_folder, find_task, matching
from qcse.envs.episodes import EpisodeRecorder, Evaluator
from qcse.envs.make import make_env, task_for
from qcse.envs.mazes import ANT_GOALS, MAZES, POINT_GOALS, AntMazeEnv, PointMazeEnv, free_cells, shortest_paths
from qcse.envs.robotics import ROBOTICS
from qcse.envs.scores import REFERENCE_SCORES, normalized_score, task_family
from qcse.envs.spaces import flat_parts, goal_is_fixed
from qcse.errors import EnvError

D4RL_TASKS = [task for task in TASKS.values() if task.url]
RECORDED = json.loads((Path(__file__).parent / "d4rl_infos.json").read_text())


# Constants.


def assert_equal_to_d4rl(infos: dict[str, dict[str, str | float | None]]) -> None:
    for task in D4RL_TASKS:
        info = infos[task.name]
        assert task.url == info["url"].replace("http:", "https:"), task.name
        assert task.reference == (info["min"], info["max"]), task.name
        assert task.file == task.url.rsplit("/", 1)[1]


def test_every_address_and_score_equals_d4rl() -> None:
    assert_equal_to_d4rl(RECORDED)


def test_every_address_and_score_equals_the_wheel() -> None:
    if os.environ.get("QCSE_TEST_D4RL_WHEEL") != "1":
        pytest.skip("downloads d4rl 1.1's wheel: set QCSE_TEST_D4RL_WHEEL=1 to run")
    infos = record_d4rl_infos.from_wheel()
    assert infos == RECORDED
    assert_equal_to_d4rl(infos)


def test_the_registry_is_complete() -> None:
    # All of D4RL's current tasks of these families; left out are only the mazes that it has no reference score for.
    wanted = re.compile(
        r"(halfcheetah|hopper|walker2d|ant)-.*-v2|antmaze-.*-v2|(pen|door|hammer|relocate)-.*-v1|"
        r"maze2d-(umaze|medium|large).*-v1|maze2d-open.*"
    )
    assert {task.name for task in D4RL_TASKS} == {name for name in RECORDED if wanted.fullmatch(name)}
    assert {task.preset for task in TASKS.values()} <= set(typing.get_args(Preset))
    families = {task_family(task.env_id) for task in TASKS.values()}
    assert families == set(REFERENCE_SCORES)
    assert float(normalized_score("maze2d-large-dense", 303.4857382709002)) == 100.0
    assert task_family("PointMaze_UMaze-v3") == task_family("AdroitHandDoor-v1") == "other"
    assert task_family("qcse/maze2d-umaze-v1") == "maze2d-umaze"


def test_tasks_are_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_task("antmaze-large-play-v2").preset == "corl"
    with pytest.raises(TaskError, match=r"'hopper-medium'.*hopper-medium-v2.*qcse data list"):
        find_task("hopper-medium")
    assert [task.name for task in matching("antmaze-large")] == ["antmaze-large-play-v2", "antmaze-large-diverse-v2"]
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    assert find_task("hopper-medium-v2").path == tmp_path / "hopper_medium-v2.hdf5"
    monkeypatch.delenv("D4RL_DATASET_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".d4rl" / "datasets"


@pytest.mark.parametrize("env_id", sorted({task.env_id for task in TASKS.values()}))
def test_every_environment_is_as_its_tasks_say(env_id: str) -> None:
    if task_family(env_id) in ("pen", "door", "hammer", "relocate"):
        needs_robotics()
    env = make_env(env_id)
    for task in TASKS.values():
        if task.env_id == env_id:
            assert env.observation_space.shape == (task.observation_dim,)
            assert env.action_space.shape == (task.action_dim,)
            known = task_for(env_id)
            assert (known.max_episode_steps, known.reference) == (task.max_episode_steps, task.reference)
    observation, _ = env.reset(seed=1)
    assert observation.dtype == np.float32 and np.isfinite(observation).all()
    assert np.isfinite(env.step(np.zeros(env.action_space.shape, np.float32))[0]).all()


# Mazes.


@pytest.mark.parametrize("name", ["umaze", "medium", "large", "open"])
def test_walls_equal_those_of_gymnasium_robotics(name: str) -> None:
    needs_robotics()
    maps = importlib.import_module("gymnasium_robotics.envs.maze.maps")
    theirs = {"umaze": maps.U_MAZE, "medium": maps.MEDIUM_MAZE, "large": maps.LARGE_MAZE, "open": maps.OPEN}[name]
    assert [[int(cell == "#") for cell in row] for row in MAZES[name]] == theirs


def test_walls_starts_and_goals_equal_those_of_d4rl() -> None:
    source = (d4rl_checkout() / "d4rl" / "locomotion" / "maze_env.py").read_text()
    for name, theirs in (("umaze", "U_MAZE_TEST"), ("medium", "BIG_MAZE_TEST"), ("large", "HARDEST_MAZE_TEST")):
        rows = re.search(rf"^{theirs} = (\[\[.*?\]\])", source, re.S | re.M)
        assert rows is not None
        cells = eval(rows[1], {"R": "r", "G": "g"})
        assert [[int(cell == "#") for cell in row] for row in MAZES[name]] == [[int(c == 1) for c in r] for r in cells]
        assert cells[1][1] == "r" and cells[ANT_GOALS[name][0]][ANT_GOALS[name][1]] == "g"
        assert sum(cell == "g" for row in cells for cell in row) == 1
    source = (d4rl_checkout() / "d4rl" / "pointmaze" / "maze_model.py").read_text()
    for name, theirs in (("umaze", "U_MAZE"), ("medium", "MEDIUM_MAZE"), ("large", "LARGE_MAZE"), ("open", "OPEN")):
        block = re.search(rf"^{theirs} = \\\n(.*?)\n\n", source, re.S | re.M)
        assert block is not None
        rows = [row for row in re.findall(r"[#OG]{4,}", block[1])]
        assert [row.replace("O", ".").replace("G", ".") for row in rows] == list(MAZES[name])
        i, j = POINT_GOALS[name]
        assert rows[i][j] == "G" and "".join(rows).count("G") == 1


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_antmaze_is_d4rls(maze: str) -> None:
    env = make_env(f"qcse/antmaze-{maze}-v2")
    inner = env.unwrapped
    assert isinstance(inner, AntMazeEnv) and inner.dt == pytest.approx(0.1)
    starts, goals = [], []
    for seed in range(20):
        observation, info = env.reset(seed=seed)
        assert observation.shape == (29,) and not info["success"]
        np.testing.assert_allclose(observation[:15], inner.data.qpos, rtol=1e-6)
        np.testing.assert_allclose(observation[15:], inner.data.qvel, rtol=1e-6)
        starts.append(observation[:2])
        goals.append(info["goal"])
    low = inner.cell_xy(ANT_GOALS[maze])
    assert (np.abs(starts) <= 0.1).all() and (goals >= low).all() and (goals <= low + 1.5).all()
    assert np.ptp(goals, axis=0).min() > 0.5 and inner.xy_cell(low) == ANT_GOALS[maze]
    # walls: a box of side 4 around the centre of each, none over a free cell
    boxes = [i for i in range(inner.model.ngeom) if inner.model.geom_type[i] == 6]
    walls = {inner.xy_cell(inner.model.geom_pos[i]) for i in boxes}
    everywhere = {(i, j) for i, row in enumerate(MAZES[maze]) for j in range(len(row))}
    assert walls == everywhere - set(free_cells(maze)) and np.allclose(inner.model.geom_size[boxes], [2.0, 2.0, 1.0])
    # the goal: reward 1 and the end within 0.5, nothing beyond
    at = inner.cell_xy(ANT_GOALS[maze])
    for gap, reached in ((0.45, True), (0.62, False)):
        env.reset(seed=0, options={"position": at, "goal": at + np.array([gap, 0.0])})
        _, reward, terminated, truncated, info = env.step(np.zeros(8, np.float32))
        assert (reward, terminated, truncated, info["success"]) == (float(reached), reached, False, reached)


def test_antmaze_ends_at_its_limit_and_its_success_is_counted() -> None:
    result = Evaluator("qcse/antmaze-umaze-v2", 1).evaluate(lambda o: np.zeros((1, 8), np.float32), seed=0)
    assert result.lengths.tolist() == [700] and result.returns.tolist() == [0.0] and not result.successes.any()
    steps = 0
    env = make_env("qcse/pointmaze-umaze-v0")
    env.reset(seed=0)
    while True:
        steps += 1
        _, _, terminated, truncated, _ = env.step(np.zeros(2, np.float32))
        if terminated or truncated:
            break
    assert steps == 300 and truncated and not terminated


def test_two_ants_differ_in_what_their_names_say() -> None:
    d4rl, ours = make_env("qcse/antmaze-umaze-v2").unwrapped, make_env("qcse/antmaze-umaze-v4").unwrapped
    assert isinstance(d4rl, AntMazeEnv) and isinstance(ours, AntMazeEnv)
    assert (d4rl.model.opt.timestep, ours.model.opt.timestep) == (0.02, 0.01)
    assert d4rl.model.actuator_gear[:, 0].tolist() == [30.0] * 8 and ours.model.actuator_gear[0, 0] == 150.0
    torso = d4rl.model.geom("torso_geom").id
    np.testing.assert_allclose(d4rl.model.geom_solimp[torso][:3], [0.8, 0.8, 0.01])
    assert d4rl.model.nq == ours.model.nq == 15


@pytest.mark.parametrize("name", ["qcse/antmaze-medium-v2", "qcse/maze2d-umaze-v1"])
def test_an_episode_in_a_maze_is_resumed_to_the_bit(name: str) -> None:
    rng = np.random.default_rng(0)
    env = EpisodeRecorder(name)
    env.reset(3)
    actions = rng.uniform(-1, 1, (40, *env.env.action_space.shape)).astype(np.float32)
    for action in actions[:20]:
        env.step(action)
    other = EpisodeRecorder(name)
    other.load_state_dict(env.state_dict())
    for action in actions[20:]:
        assert np.array_equal(env.step(action)[0], other.step(action)[0])


def test_point_mazes() -> None:
    env = make_env("qcse/maze2d-umaze-v1")
    inner = env.unwrapped
    assert isinstance(inner, PointMazeEnv)
    cells = {inner.xy_cell(env.reset(seed=seed)[0]) for seed in range(60)}
    assert cells == set(free_cells("umaze"))
    env.reset(seed=0, options={"position": [1.0, 1.3]})
    _, reward, terminated, _, info = env.step(np.zeros(2, np.float32))
    assert reward == 1.0 and not terminated and info["success"]
    dense = make_env("qcse/maze2d-umaze-dense-v1")
    dense.reset(seed=0, options={"position": [1.0, 2.0]})
    _, reward, *_ = dense.step(np.zeros(2, np.float32))
    assert reward == pytest.approx(np.exp(-dense.unwrapped.distance)) and 0.3 < reward < 0.45
    # the wall ahead of the ball stops it: its centre stays a radius short of the wall's face
    env.reset(seed=0, options={"position": [1.0, 1.0]})
    for _ in range(100):
        observation, *_ = env.step(np.array([-1.0, 0.0], np.float32))
    assert 0.35 < observation[0] < 0.45 and inner.xy_cell(observation) == (1, 1)
    assert np.abs(observation[2:]).max() <= 5.0 + 1e-6
    own = make_env("qcse/pointmaze-umaze-v0")
    observation, _ = own.reset(seed=0)
    assert own.unwrapped.xy_cell(observation) == (3, 1)
    own.reset(seed=0, options={"position": [1.0, 1.3]})
    _, reward, terminated, _, _ = own.step(np.zeros(2, np.float32))
    assert reward == 1.0 and terminated
    assert shortest_paths("umaze", (1, 1))[3, 1] == 6


def test_a_dropped_pen_ends_the_episode() -> None:
    needs_robotics()
    env = make_env("qcse/pen-v1")
    env.reset(seed=0)
    rng, steps = np.random.default_rng(0), 0
    while True:
        steps += 1
        _, _, terminated, truncated, info = env.step(rng.uniform(-1, 1, 24).astype(np.float32))
        assert "success" in info
        if terminated or truncated:
            break
    assert terminated and steps < 100 and env.unwrapped.data.xpos[env.unwrapped.obj_body_id][2] < 0.075


def adroit_rewards(task: str) -> Iterator[tuple[float, Any, np.ndarray]]:
    """Rewards, simulators and observations in states where each part of the reward counts, or does not."""
    needs_robotics()
    env = make_env(f"qcse/{task.lower()}-v1")
    inner: Any = env.unwrapped
    rng = np.random.default_rng(0)
    for seed in range(30):
        env.reset(seed=seed)
        if task == "Door":
            inner.data.qpos[inner.door_hinge_addrs] = rng.choice([0.1, 0.6, 1.2, 1.5])
        elif task == "Hammer":  # the nail is the first joint behind the hand's 26; the hammer's three lengths follow
            inner.data.qpos[26] = rng.uniform(0.06, 0.09)
            inner.data.qpos[29] += rng.choice([0.0, 0.2])
        else:  # the ball somewhere between its place and the target's
            way = inner.data.site_xpos[inner.target_obj_site_id] - inner.data.xpos[inner.obj_body_id]
            inner.data.qpos[30:33] += rng.choice([0.0, 0.5, 0.8, 1.0]) * way
        observation, reward, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        yield reward, inner, observation


def test_adroit_rewards_by_what_is_observed() -> None:
    bonuses = set()
    for reward, inner, o in adroit_rewards("Door"):  # hinge, palm (3), handle (3), their difference (3), open or not
        hinge, apart = float(o[28]), np.linalg.norm(o[35:38])
        want = -0.1 * apart - 0.1 * (hinge - 1.57) ** 2 - 1e-5 * (inner.data.qvel**2).sum()
        bonus = 2 * (hinge > 0.2) + 8 * (hinge > 1) + 10 * (hinge > 1.35)
        assert reward == pytest.approx(want + bonus, abs=1e-5)
        bonuses.add(bonus)
    assert bonuses == {0, 2, 10, 20}
    bonuses = set()
    for reward, inner, o in adroit_rewards("Relocate"):  # palm to ball (3), palm to target (3), ball to target (3)
        far = np.linalg.norm(o[36:39])
        lifted = inner.data.xpos[inner.obj_body_id][2] > 0.04
        want = -0.1 * np.linalg.norm(o[30:33]) + lifted * (1 - 0.5 * np.linalg.norm(o[33:36]) - 0.5 * far)
        bonus = 10 * (far < 0.1) + 20 * (far < 0.05)
        assert reward == pytest.approx(want + bonus, abs=1e-5)
        bonuses.add((lifted, bonus))
    assert {0, 30} <= {bonus for _, bonus in bonuses} and {lifted for lifted, _ in bonuses} == {False, True}


@pytest.mark.parametrize("task", ["Door", "Hammer", "Relocate"])
def test_adroit_rewards_equal_those_of_d4rls_own_code(task: str) -> None:
    source = (d4rl_checkout() / "d4rl" / "hand_manipulation_suite" / f"{task.lower()}_v0.py").read_text()
    step = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == "step")
    names: dict[str, Any] = {"np": np, "ADD_BONUS_REWARDS": True}
    exec(compile(ast.Module([step], []), "d4rl", "exec"), names)
    seen = set()
    for reward, inner, _ in adroit_rewards(task):
        data = inner.data
        places = {"site_xpos": data.site_xpos, "body_xpos": data.xpos, "qpos": data.qpos, "qvel": data.qvel}
        theirs = SimpleNamespace(data=SimpleNamespace(**places), frame_skip=5, do_simulation=lambda *_: None)
        theirs.get_obs = lambda: None
        if task == "Door":
            theirs.handle_sid, theirs.grasp_sid = inner.handle_site_id, inner.grasp_site_id
            theirs.door_hinge_did = inner.door_hinge_addrs
        else:
            theirs.obj_bid, theirs.S_grasp_sid = inner.obj_body_id, inner.S_grasp_site_id
            theirs.target_obj_sid = inner.target_obj_site_id
        if task == "Hammer":
            theirs.tool_sid, theirs.goal_sid = inner.tool_site_id, inner.goal_site_id
        assert reward == pytest.approx(float(names["step"](theirs, np.zeros(1))[1]), abs=1e-9)
        seen.add(round(reward, -1))
    assert len(seen) > 1  # with and without the bonuses


# Gymnasium-Robotics's own mazes.


@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("maze", ["UMaze", "Medium", "Large"])
def test_gymnasium_robotics_antmaze_has_29_numbers(maze: str, version: str) -> None:
    needs_robotics()
    env = make_env(f"AntMaze_{maze}-{version}")
    observation, info = env.reset(seed=0)
    data = env.unwrapped.data
    np.testing.assert_allclose(observation, np.concatenate([data.qpos, data.qvel]), rtol=1e-6)
    assert observation.shape == (29,) and "success" in info
    row, column = env.unwrapped.maze.cell_xy_to_rowcol(env.unwrapped.goal)
    assert (row, column) == ANT_GOALS[maze.lower()]
    assert task_for(f"AntMaze_{maze}-{version}").max_episode_steps == (700 if maze == "UMaze" else 1000)
    env.unwrapped.goal = observation[:2].astype(np.float64)  # at the goal: reward 1 and the end
    _, reward, terminated, _, info = env.step(np.zeros(8, np.float32))
    assert (reward, terminated, info["success"]) == (1.0, True, True)


def test_goals_that_move_are_observed() -> None:
    needs_robotics()
    for name, size in (("AntMaze_Medium_Diverse_GR-v4", 31), ("PointMaze_UMaze-v3", 4), ("PointMaze_Open-v3", 6)):
        env = make_env(name)
        observation, _ = env.reset(seed=0)
        assert observation.shape == (size,)
        if size in (31, 6):
            np.testing.assert_allclose(observation[-2:], env.unwrapped.goal, rtol=1e-6)
    assert goal_is_fixed([[1, "g"], ["r", 0]]) and not goal_is_fixed([["c", "c"]]) and not goal_is_fixed(None)
    assert flat_parts({"b": 2, "a": 3}, "Any-v0", None) == [("a", 3), ("b", 2)]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    for name in [name for name in gymnasium.registry if ROBOTICS.match(name)]:
        monkeypatch.delitem(gymnasium.registry, name)
    with pytest.raises(EnvError, match=r"Gymnasium-Robotics, which is not installed.*qcse\[maze\]"):
        make_env("AntMaze_UMaze-v4")
    with pytest.raises(EnvError, match=r"qcse/pen-v1 cannot be made.*qcse\[maze\]"):
        make_env("qcse/pen-v1")

"""Collecting in mazes, and training on what was collected: the point maze that improves, AntMaze end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import QUICK

from qcse.cli.main import main
from qcse.collect.maze import collect_maze
from qcse.config import TrainConfig, differences, preset
from qcse.config.commands import MazeCollectArgs
from qcse.data.d4rl import load_d4rl
from qcse.data.physics import check_physics
from qcse.data.tasks import find_task
from qcse.data.transitions import monte_carlo_returns
from qcse.envs.names import is_maze
from qcse.errors import ConfigError

ANT = "qcse/antmaze-umaze-v2"


def record(folder: Path, **options: object) -> Path:
    return collect_maze(MazeCollectArgs(out=folder, **options), progress=False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ant_random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("ant"), env=ANT, rows=900, behaviour="random")


def test_waypoints_lead_to_the_goal(tmp_path: Path) -> None:
    path = record(tmp_path, rows=2000, noise=0.0, goals="task", starts="task")
    data = load_d4rl(path)
    episodes, returns = data.episodes(), data.episode_returns()
    assert path.name == "pointmaze-umaze.hdf5" and len(data) == 2000
    assert (returns[:-1] == 1.0).all() and (data.bootstrap == 0).sum() == len(episodes) - 1
    assert 60 < np.mean([stop - start for start, stop in episodes[:-1]]) < 250
    starts = data.observations[[start for start, _ in episodes]]
    np.testing.assert_allclose(starts[:, :2], np.broadcast_to([3.0, 1.0], (len(starts), 2)), atol=0.1)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["infos/goal"][()], np.broadcast_to([1.0, 1.0], (2000, 2)))
        np.testing.assert_array_equal(file["infos/qpos"][()], data.observations[:, :2])
    assert check_physics(path, "qcse/pointmaze-umaze-v0", progress=False).step_error.high < 1e-5


def test_noise_goals_and_starts(tmp_path: Path) -> None:
    anywhere = load_d4rl(record(tmp_path, rows=3000, name="a", noise=0.5))
    starts = anywhere.observations[[start for start, _ in anywhere.episodes()], :2]
    assert np.ptp(starts, axis=0).min() > 1.0 and 0 < anywhere.episode_returns().mean() < 1
    near = load_d4rl(record(tmp_path, rows=2000, name="b", cells=3, starts="task"))
    assert near.observations[:, 1].max() < 3.5 and near.observations[:, 0].min() > 2.0  # never round the first bend
    assert near.rewards.sum() == 0
    again = load_d4rl(record(tmp_path, rows=3000, name="c", noise=0.5))
    assert again.fingerprint() == anywhere.fingerprint()
    endless = load_d4rl(record(tmp_path, env="qcse/maze2d-medium-v1", rows=700))
    assert endless.episode_end.sum() == 2 and (endless.bootstrap == 1).all()


def test_what_cannot_be_collected_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_maze(ANT) and not is_maze("Hopper-v5") and not is_maze("AntMaze_UMaze-v4")
    for options, message in (
        ({"env": "Hopper-v5"}, "Hopper-v5 is not a maze"),
        ({"rows": 0}, "rows: got 0"),
        ({"noise": -1.0}, "noise: got -1.0"),
        ({"noise": float("nan")}, "noise: got nan"),
        ({"cells": 0}, "cells: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"env": ANT}, "qcse train --algo sac --env qcse/antgoal-v2"),
        ({"policy": tmp_path}, "needs none"),
    ):
        with pytest.raises(ConfigError, match=message):
            record(tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        main(["collect", "--env", ANT, "--help"])
    help_text = capsys.readouterr().out
    assert "--behaviour" in help_text and "--policy" in help_text
    assert list(tmp_path.glob("*.hdf5")) == []


def test_the_ant_is_led_by_a_stored_policy(tmp_path: Path, qcse_here) -> None:
    walk = ["--env", "qcse/antgoal-v2", "--algo", "sac", "--online-steps", 30, "--learning-starts", 10, *QUICK]
    qcse_here("train", *walk, "--out", "walk", check=True)
    qcse_here("collect", "--env", ANT, "--policy", "walk", "--rows", 60, "--noise", 0.2, "--out", ".", check=True)
    path = tmp_path / "antmaze-umaze.hdf5"
    data = load_d4rl(path)
    assert len(data) == 60 and data.observation_dim == 29 and data.metadata["policy"] == "walk"
    assert check_physics(path, ANT, progress=False).matches
    qcse_here("collect", "--env", "qcse/pointmaze-umaze-v0", "--rows", 50, "--out", ".", check=True)
    wrong = qcse_here("collect", "--env", ANT, "--policy", "nowhere", "--rows", 5)
    assert wrong[0] == 1 and "nowhere" in wrong[1]


def test_the_embedded_point_maze_improves_online(tmp_path: Path, qcse_here) -> None:
    task = find_task("pointmaze-umaze")
    assert task.path.stat().st_size < 3 << 20
    data = load_d4rl(task.path)
    assert 0.1 < data.episode_returns().mean() < 0.9 and check_physics(task.path, task.env_id, progress=False).matches
    qcse_here(
        "train", "--algo", "cal_ql", "--task", "pointmaze-umaze", "--bonus", "qcse", "--threads", 1, "--out", "run",
        "--online-steps", 400, "--eval-every", 50, "--eval-episodes", 5, "--seed", 1, check=True,
    )  # fmt: skip
    rows = list(csv.DictReader(open(tmp_path / "run" / "eval.csv")))
    offline = [float(r["normalized_score"]) for r in rows if r["phase"] == "offline"][-1]
    online = max(float(r["normalized_score"]) for r in rows if r["phase"] == "online")
    assert online > offline + 20, rows
    success = list(csv.DictReader(open(tmp_path / "run" / "success.csv")))
    assert [r["step"] for r in success] == [r["step"] for r in rows]
    assert [100 * float(r["success_rate"]) for r in success] == [float(r["normalized_score"]) for r in rows]


@pytest.mark.parametrize("kind", ["corl", "official"])
def test_antmaze_end_to_end(kind: str, ant_random: Path, tmp_path: Path, qcse_here) -> None:
    """Few and narrow steps; the same commands with 1,000 + 1,000 steps and full networks are run by hand."""
    quick = [*QUICK, "--eval-episodes", 1, "--log-every", 20]
    qcse_here("train", "--algo", "cal_ql", "--env", ANT, "--preset", kind, "--dataset", ant_random, "--bonus", "qcse",
         "--offline-steps", 40, "--online-steps", 40, "--out", "run", *quick, check=True)  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["preset"], config["reward_scale"], config["reward_bias"]) == (kind, 10.0, -5.0)
    success = list(csv.DictReader(open(tmp_path / "run" / "success.csv")))
    assert [r["step"] for r in success] == ["0", "40", "80"] and {r["success_rate"] for r in success} == {"0.0"}
    rows = list(csv.DictReader(open(tmp_path / "run" / "train.csv")))
    # official: the updates of an episode come when it is over, which 40 steps are too few for
    assert int(float(rows[-1]["updates"])) == (80 if kind == "corl" else 40)
    record = json.loads(qcse_here("eval", "run", "--episodes", 1, "--json", check=True)[1])
    assert record["success_rate"] == 0.0


def test_returns_of_sparse_episodes(ant_random: Path) -> None:
    data = load_d4rl(ant_random)
    config = preset("cal_ql", ANT)
    rewards = data.rewards * config.reward_scale + config.reward_bias
    returns = monte_carlo_returns(rewards, data.episode_end, data.bootstrap, 0.99, config.reward_bias)
    np.testing.assert_allclose(returns, -500.0, rtol=1e-5)  # no goal seen: -5 for ever


DIFFERENCES = {
    "preset": ("corl", "official"),
    "update_after": ("step", "episode"),
    "net.policy_hidden": ([256] * 3, [256] * 2),
    "net.critic_hidden": ([256] * 5, [256] * 4),
    "cql.clip_difference": (-200.0, None),
    "cql.calibration_online": ("off", "task_return"),
    "eval_episodes": (100, 20),
}


def test_presets_by_name_and_their_differences() -> None:
    corl, official = preset("cal_ql", ANT, "corl"), preset("cal_ql", ANT, "official")
    assert {name: (a, b) for name, a, b in differences(corl, official)} == DIFFERENCES
    changed: list[TrainConfig] = [preset("cal_ql", ANT), corl]
    changed[0].preset = "corl"
    assert differences(*changed) == []  # the default on AntMaze is CORL's
    adroit = preset("cql", "qcse/pen-v1", "corl")
    assert (adroit.cql.alpha, adroit.cql.lagrange, adroit.net.critic_hidden) == (1.0, False, (256,) * 3)
    mujoco = preset("cql", "Hopper-v4", "corl")
    assert (mujoco.cql.alpha, mujoco.cql.max_target_backup, mujoco.policy_lr) == (10.0, False, 3e-5)
    for algo, env, kind in (("cql", "Hopper-v5", "official"), ("sac", ANT, "corl"), ("cql", "Pendulum-v1", "corl")):
        with pytest.raises(ConfigError, match=f"{kind}.*has no constants for {algo} on {env}"):
            preset(algo, env, kind)


def test_the_differences_are_listed_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for name in DIFFERENCES:
        assert f"`{name}`" in text, name

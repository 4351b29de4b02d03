"""The tasks of D4RL (arXiv 2004.07219) and the embedded ones: environment, data, reference scores, preset.

A task is a name that stands for all of these at once: `qcse train --task antmaze-large-play-v2`. Addresses and
reference scores are those of the package `d4rl` 1.1. Environments are named after the data they fit: v4 of Gymnasium's
MuJoCo environments is the model that D4RL recorded in (v5 changed Walker2d's friction and several rewards), and mazes
are laid out in D4RL's coordinates (`envs/mazes.py`).
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ..envs.scores import REFERENCE_SCORES, task_family
from ..errors import QcseError

ARCHIVE = "https://rail.eecs.berkeley.edu/datasets/offline_rl/"

# SHA-256 of files by name. D4RL published none: `download` notes what a file was at its first use.
DIGESTS: dict[str, str] = {
    "hopper-replay.hdf5": "828c601e102b8a5fbec9b21bdf398eb31f7b919fbc0bfceab4c3693e99a20685",
    "pointmaze-umaze.hdf5": "2f1f0ea6e3867c18e060fafa84007a3b4b2326ea22c34cecd9c566419ee87d40",
}


class TaskError(QcseError):
    """No such task."""


@dataclass(frozen=True)
class DatasetTask:
    """Everything that belongs to one dataset.

    Attributes:
        name: as in D4RL, such as "hopper-medium-v2".
        env_id: environment to evaluate and fine-tune in.
        observation_dim: D.
        action_dim: A.
        layout: what the D numbers are.
        max_episode_steps: time limit of the environment.
        reference: return of a random and of an expert policy, for the normalised score.
        url: address of the file, "" for a file that is installed with the package.
        file: its name in the cache folder, or in the package.
        preset: name of the preset that `--task` chooses.
    """

    name: str
    env_id: str
    observation_dim: int
    action_dim: int
    layout: str
    max_episode_steps: int
    reference: tuple[float, float]
    url: str
    file: str
    preset: str = "default"

    @property
    def path(self) -> Path:
        """Where the file is, or will be once it is downloaded."""
        return cache_folder() / self.file if self.url else embedded(self.file)


def embedded(file: str) -> Path:
    """A file of data that is installed with the package."""
    return Path(str(files("qcse") / "data" / "embedded" / file))


def cache_folder() -> Path:
    """D4RL's own folder for datasets, so that earlier downloads are found: $D4RL_DATASET_DIR, or ~/.d4rl/datasets."""
    named = os.environ.get("D4RL_DATASET_DIR")
    return Path(named) if named else Path.home() / ".d4rl" / "datasets"


# family -> (environment, D, A, layout)
_MUJOCO = {
    "halfcheetah": ("HalfCheetah-v4", 17, 6, "qpos without x (8), qvel (9)"),
    "hopper": ("Hopper-v4", 11, 3, "qpos without x (5), qvel clipped to +-10 (6)"),
    "walker2d": ("Walker2d-v4", 17, 6, "qpos without x (8), qvel clipped to +-10 (9)"),
    "ant": ("qcse/ant-v4", 111, 8, "qpos without x, y (13), qvel (14), contact forces clipped to +-1 (84)"),
}

_ADROIT = {
    "pen": ("qcse/pen-v1", 45, 24, 100, "hand joints (24), pen and target (21)"),
    "door": ("qcse/door-v1", 39, 28, 200, "hand joints (27), latch, door, palm and handle (12)"),
    "hammer": ("qcse/hammer-v1", 46, 26, 200, "hand joints (26), velocities clipped (6), nail and hammer (14)"),
    "relocate": ("qcse/relocate-v1", 39, 30, 200, "hand joints (30), palm, object and target differences (9)"),
}

_ANT_LAYOUT = "x, y (2), the other qpos (13), qvel (14)"
_POINT_LAYOUT = "x, y (2), their velocities (2)"

# maze -> (limit of Maze2d, that of AntMaze, name in AntMaze's file names)
_MAZES = {"umaze": (300, 700, "u-maze"), "medium": (600, 1000, "big-maze"), "large": (800, 1000, "hardest-maze")}


def _build() -> dict[str, DatasetTask]:
    tasks: list[DatasetTask] = []

    def add(name: str, env: str, sizes: tuple[int, int], layout: str, limit: int, url: str, preset: str) -> None:
        reference = REFERENCE_SCORES[task_family(env)]
        file = url.rsplit("/", 1)[-1]
        tasks.append(DatasetTask(name, env, *sizes, layout, limit, reference, ARCHIVE + url, file, preset))

    for family, (env, d, a, layout) in _MUJOCO.items():
        for kind in ("random", "medium", "medium-replay", "medium-expert", "expert", "full-replay"):
            url = f"gym_mujoco_v2/{family}_{kind.replace('-', '_')}-v2.hdf5"
            add(f"{family}-{kind}-v2", env, (d, a), layout, 1000, url, "default")
    for maze, (_, limit, word) in _MAZES.items():
        for kind in ("", "diverse") if maze == "umaze" else ("play", "diverse"):
            starts, goals = maze != "umaze" or kind == "diverse", kind == "diverse"
            url = f"ant_maze_v2/Ant_maze_{word}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed.hdf5"
            name = "-".join(filter(None, ("antmaze", maze, kind, "v2")))
            add(name, f"qcse/antmaze-{maze}-v2", (29, 8), _ANT_LAYOUT, limit, url, "corl")
    for family, (env, d, a, limit, layout) in _ADROIT.items():
        for kind in ("human", "cloned", "expert"):
            name = f"{family}-{kind}-v1"
            add(name, env, (d, a), layout, limit, f"hand_dapg_v1/{name}.hdf5", "corl")
    for dense in (False, True):
        word = "-dense" if dense else ""
        url = f"maze2d/maze2d-open-{'dense' if dense else 'sparse'}.hdf5"
        add(f"maze2d-open{word}-v0", f"qcse/maze2d-open{word}-v0", (4, 2), _POINT_LAYOUT, 150, url, "default")
        for maze, (limit, _, _) in _MAZES.items():
            url = f"maze2d/maze2d-{maze}-{'dense' if dense else 'sparse'}-v1.hdf5"
            env = f"qcse/maze2d-{maze}{word}-v1"
            add(f"maze2d-{maze}{word}-v1", env, (4, 2), _POINT_LAYOUT, limit, url, "default")
    embedded = (
        DatasetTask(
            "hopper-replay", "Hopper-v5", 11, 3, _MUJOCO["hopper"][3], 1000, REFERENCE_SCORES["hopper"], "",
            "hopper-replay.hdf5",
        ),
        DatasetTask(
            "pointmaze-umaze", "qcse/pointmaze-umaze-v0", 4, 2, _POINT_LAYOUT, 300, REFERENCE_SCORES["pointmaze"], "",
            "pointmaze-umaze.hdf5",
        ),
    )  # fmt: skip
    return {task.name: task for task in (*tasks, *embedded)}


TASKS: dict[str, DatasetTask] = _build()


def find_task(name: str) -> DatasetTask:
    """The task of that name.

    Raises:
        TaskError: none; the message has near matches.
    """
    task = TASKS.get(name)
    if task is None:
        near = difflib.get_close_matches(name.lower(), TASKS, n=3, cutoff=0.5)
        hint = f"; near matches: {', '.join(near)}" if near else ""
        raise TaskError(f"task: no task is called {name!r}{hint}; `qcse data list` shows all {len(TASKS)}")
    return task


def matching(words: str) -> list[DatasetTask]:
    """Tasks whose name contains `words`, in the registry's order."""
    return [task for task in TASKS.values() if words.lower() in task.name]

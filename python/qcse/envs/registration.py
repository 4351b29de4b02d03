"""Registers this package's own environments."""

from __future__ import annotations

import gymnasium


def register() -> None:
    """Register the environments of this package, under qcse/."""
    mazes, adroit = f"{__package__}.mazes:", f"{__package__}.adroit:"
    for maze, limit in (("umaze", 700), ("medium", 1000), ("large", 1000)):
        for version, ant in (("v2", "d4rl"), ("v4", "gymnasium")):
            gymnasium.register(
                f"qcse/antmaze-{maze}-{version}",
                entry_point=f"{mazes}AntMazeEnv",
                max_episode_steps=limit,
                kwargs={"maze": maze, "ant": ant},
            )
    for version, ant in (("v2", "d4rl"), ("v4", "gymnasium")):
        gymnasium.register(
            f"qcse/antgoal-{version}", entry_point=f"{mazes}AntGoalEnv", max_episode_steps=200, kwargs={"ant": ant}
        )
    for maze, limit in (("open", 150), ("umaze", 300), ("medium", 600), ("large", 800)):
        version = "v0" if maze == "open" else "v1"
        for word, dense in (("", False), ("-dense", True)):
            gymnasium.register(
                f"qcse/maze2d-{maze}{word}-{version}",
                entry_point=f"{mazes}PointMazeEnv",
                max_episode_steps=limit,
                kwargs={"maze": maze, "dense": dense},
            )
    gymnasium.register(
        "qcse/pointmaze-umaze-v0",
        entry_point=f"{mazes}PointMazeEnv",
        max_episode_steps=300,
        kwargs={"maze": "umaze", "episodic": True},
    )
    gymnasium.register(
        "qcse/ant-v4",
        entry_point="gymnasium.envs.mujoco.ant_v4:AntEnv",
        max_episode_steps=1000,
        kwargs={"use_contact_forces": True},
    )
    for task, limit in (("pen", 100), ("door", 200), ("hammer", 200), ("relocate", 200)):
        gymnasium.register(
            f"qcse/{task}-v1",
            entry_point=f"{adroit}make_hand",
            max_episode_steps=limit,
            kwargs={"task": task.capitalize()},
        )

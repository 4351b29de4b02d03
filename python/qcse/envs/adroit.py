"""Adroit's hand with D4RL's rewards."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from .robotics import register_robotics


class _AdroitHand(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gymnasium-Robotics's hand with D4RL's rewards and, for the pen, D4RL's end: where it falls below the palm."""

    def __init__(self, env: gymnasium.Env[Any, Any], task: str) -> None:
        super().__init__(env)
        self.task = task

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        inner: Any = self.env.unwrapped
        if self.task == "Pen":
            terminated |= bool(inner.data.xpos[inner.obj_body_id][2] < 0.075)
        else:
            reward = adroit_reward(self.task, inner)
        return observation, reward, terminated, truncated, info


def adroit_reward(task: str, env: Any) -> float:
    """D4RL's reward of "Door", "Hammer" or "Relocate" in the simulator's present state.

    Gymnasium-Robotics 1.2.1 to 1.4.2 turn the sign of its first term: they reward a palm that stays away.
    """
    data, places = env.data, env.data.site_xpos

    def gap(a: NDArray[Any], b: NDArray[Any]) -> float:
        return float(np.linalg.norm(a - b))

    if task == "Door":
        opened = float(data.qpos[env.door_hinge_addrs])
        reward = -0.1 * gap(places[env.grasp_site_id], places[env.handle_site_id])
        reward -= 0.1 * (opened - 1.57) ** 2 + 1e-5 * float(np.square(data.qvel).sum())
        return reward + 2.0 * (opened > 0.2) + 8.0 * (opened > 1.0) + 10.0 * (opened > 1.35)
    palm, thing, target = places[env.S_grasp_site_id], data.xpos[env.obj_body_id], places[env.target_obj_site_id]
    reward = -0.1 * gap(palm, thing)
    if task == "Hammer":
        head, left = places[env.tool_site_id], gap(target, places[env.goal_site_id])
        reward -= gap(head, target) + 10.0 * left + 0.01 * float(np.linalg.norm(data.qvel))
        lifted = bool(thing[2] > 0.04 and head[2] > 0.04)
        return reward + 2.0 * lifted + 25.0 * (left < 0.02) + 75.0 * (left < 0.01)
    left = gap(thing, target)
    if thing[2] > 0.04:
        reward += 1.0 - 0.5 * gap(palm, target) - 0.5 * left
    return reward + 10.0 * (left < 0.1) + 20.0 * (left < 0.05)


def make_hand(task: str) -> gymnasium.Env[Any, Any]:
    """Gymnasium-Robotics's hand without its time limit."""
    if f"AdroitHand{task}-v1" not in gymnasium.registry:
        register_robotics()
    env = gymnasium.make(f"AdroitHand{task}-v1", max_episode_steps=-1, disable_env_checker=True)
    return _AdroitHand(env, task)

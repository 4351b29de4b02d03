"""What tests of several packages share: quick options, recorded data, processes that hold a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from qcse.collect.recording import Recording
from qcse.config import TrainConfig, preset
from qcse.data.d4rl import write_d4rl
from qcse.envs.make import make_env
from qcse.envs.robotics import register_robotics

# Networks and batches that make a step take about a millisecond; nothing that changes what is tested.
QUICK = [
    "--net.policy-hidden", "16", "16", "--net.critic-hidden", "16", "16", "--batch-size", "32", "--cql.actions", "2",
    "--bonus.k", "5", "--eval-episodes", "2", "--threads", "1", "--device", "cpu",
]  # fmt: skip


def qcse_command(*words: object) -> Sequence[str]:
    return [sys.executable, "-P", "-m", "qcse", *map(str, words)]


def record_random_policy(env_id: str, rows: int, path: Path, seed: int = 0) -> Path:
    env = Recording(make_env(env_id))
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(rows):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    write_d4rl(path, env.arrays(), {"env_id": env_id, "algorithm": "uniform random actions"}, compression=None)
    return path


def shared_data(name: str) -> Path:
    """An independent dataset from QCSE_SHARED_DATA, or ../shared/data beside the checkout; skips where it is absent."""
    named = os.environ.get("QCSE_SHARED_DATA")
    path = (Path(named) if named else Path(__file__).parents[3] / "shared" / "data") / name
    if not path.is_file():
        pytest.skip(f"independent data absent: no {path} (QCSE_SHARED_DATA names the folder)")
    return path


def d4rl_checkout() -> Path:
    """The folder of a checkout of D4RL; skips where none is named."""
    folder = os.environ.get("QCSE_D4RL_CHECKOUT")
    if not folder:
        pytest.skip("compares with D4RL's sources: set QCSE_D4RL_CHECKOUT to the folder of a checkout of D4RL")
    return Path(folder)


def needs_robotics() -> None:
    """Register Gymnasium-Robotics's environments, or skip the test where they are not installed."""
    try:
        register_robotics()
    except ImportError:
        pytest.skip("needs Gymnasium-Robotics: pip install 'qcse[maze]'")


class Countdown(gym.Env):
    """State (position, time). An episode of reward -1 a step ends at position > 1 (terminal) or after 10 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.time = float(self.np_random.uniform(-0.1, 0.1)), 0
        return self._state(), {}

    def step(self, action):
        self.position += 0.2 * float(action[0])
        self.time += 1
        return self._state(), -1.0, self.position > 1.0, False, {}

    def _state(self):
        return np.array([self.position, self.time / 10], np.float32)


gym.register("QcseCountdown-v0", entry_point=Countdown, max_episode_steps=10)


def quick(algo: str, env: str = "QcseCountdown-v0", **changes: object) -> TrainConfig:
    config = preset(algo, env)
    config.net.policy_hidden = config.net.critic_hidden = (16,)
    config.batch_size, config.cql.actions, config.eval_episodes, config.threads = 16, 2, 1, 1
    config.updates_per_step = min(config.updates_per_step, 2)
    config.offline_steps, config.online_steps, config.learning_starts, config.random_steps = 0, 60, 0, 0
    config.device = "cpu"
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


HOLD = """
import sys, time
from qcse.files import own
with own(sys.argv[1], sys.argv[2] == "folder"):
    print("mine", flush=True)
    time.sleep(60)
"""


def holder(path: Path, folder: bool = True) -> subprocess.Popen[str]:
    """A process that owns a path until it is killed."""
    words = [sys.executable, "-P", "-c", HOLD, str(path), "folder" if folder else "file"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    return process

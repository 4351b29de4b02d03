"""`qcse collect`: train SAC from scratch, write what it saw and what its final policy does in D4RL's layout."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from . import __version__
from .config import NetworkConfig, preset
from .datasets import write_d4rl
from .envs import make_env, task_for
from .errors import ConfigError
from .train import RunInterrupted, Trainer, check_folder

if TYPE_CHECKING:
    from .cli import CollectArgs

COLUMNS = ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts", "qpos", "qvel")


class Recording(gym.Wrapper):
    """Keeps every transition that passes; qpos and qvel are those before the step, where the simulator has them."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._observation, info = self.env.reset(**kwargs)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        data = getattr(self.env.unwrapped, "data", None)
        before = {} if data is None else {"qpos": data.qpos.copy(), "qvel": data.qvel.copy()}
        observation, reward, terminated, truncated, info = self.env.step(action)
        row = {
            "observations": self._observation,
            "next_observations": observation,
            "actions": np.array(action),
            "rewards": reward,
            "terminals": terminated,
            "timeouts": truncated and not terminated,  # D4RL's meaning: cut at the limit, not ended by the task
            **before,
        }
        for name, value in row.items():
            self.rows[name].append(value)
        self._observation = observation
        return observation, reward, terminated, truncated, info

    def arrays(self, last: int | None = None) -> dict[str, np.ndarray]:
        """The columns in D4RL's layout; with `last`, the last so many rows from the start of an episode on."""
        ends = np.array(self.rows["terminals"], bool) | np.array(self.rows["timeouts"], bool)
        first = 0
        if last is not None and last < len(ends):
            starts = np.flatnonzero(ends[:-1]) + 1
            first = int(next((s for s in starts if s >= len(ends) - last), len(ends) - last))
        arrays = {}
        for name, values in self.rows.items():
            if values:
                dtype = bool if name in ("terminals", "timeouts") else np.float32
                key = f"infos/{name}" if name in ("qpos", "qvel") else name
                arrays[key] = np.asarray(values[first:], dtype)
        return arrays


def collect(args: CollectArgs) -> list[Path]:
    """Run the collection that `args` describes; returns the files written."""
    for name, low in (("steps", 1), ("policy_rows", 0), ("learning_starts", 1), ("eval_every", 1)):
        if getattr(args, name) < low:
            raise ConfigError(f"{name}: got {getattr(args, name)}, expected {low} or more")
    if args.replay_rows is not None and args.replay_rows < 1:
        raise ConfigError(f"replay_rows: got {args.replay_rows}, expected 1 or more")
    config = preset("sac", args.env)
    config.online_steps, config.eval_every, config.seed, config.threads = (
        args.steps,
        args.eval_every,
        args.seed,
        args.threads,
    )
    config.learning_starts = config.random_steps = args.learning_starts
    config.net = NetworkConfig(args.hidden, args.hidden)
    name = args.name or task_for(args.env).family
    recordings: list[Recording] = []

    def record(env: gym.Env) -> gym.Env:
        recordings.append(Recording(env))
        return recordings[-1]

    check_folder(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sac-", dir=args.out) as folder:
        trainer = Trainer(config, Path(folder), wrap_env=record, stop_at_return=args.stop_return)
        try:
            trainer.run()
        except RunInterrupted as stop:  # what was recorded so far is written all the same
            print(f"{stop}; writing what was recorded", file=sys.stderr)
    metadata = {
        "env_id": args.env,
        "algorithm": f"qcse {__version__} SAC",
        "steps": trainer.step,
        "seed": args.seed,
        "final_return": trainer.last_return_mean,
    }
    replay = args.out / f"{name}-replay.hdf5"
    write_d4rl(replay, recordings[0].arrays(args.replay_rows), metadata)
    if args.policy_rows == 0:
        return [replay]
    policy = args.out / f"{name}-policy.hdf5"
    write_d4rl(policy, _rollouts(trainer, args), metadata | {"algorithm": f"qcse {__version__} SAC rollouts"})
    return [replay, policy]


def _rollouts(trainer: Trainer, args: CollectArgs) -> dict[str, np.ndarray]:
    """Transitions of the stochastic policy, `args.policy_rows` of them."""
    env = Recording(make_env(args.env))
    observation, _ = env.reset(seed=args.seed + 1)
    for _ in range(args.policy_rows):
        states = torch.from_numpy(np.asarray(observation, np.float32)).to(trainer.device).view(1, 1, -1)
        noise = trainer.streams.normal("exploration", (1, trainer.action_dim))
        action = trainer.agent.act(states, noise)[0, 0].cpu().numpy()
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
    return env.arrays()

"""`qcse collect`: train SAC from scratch, write what it saw and what its final policy does in D4RL's layout."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from .. import __version__
from ..config import NetworkConfig, TrainConfig, preset
from ..config.commands import CollectArgs
from ..config.ranges import check_least
from ..data.d4rl import write_d4rl
from ..envs.make import make_env, task_for
from ..errors import ConfigError
from ..runs import checkpoint
from ..runs.experiment import Experiment
from ..runs.launch import rows as rows_of
from ..runs.signals import stoppable
from ..runs.trainer import RunInterrupted, Trainer
from .recording import Recording, recording, stored_arrays, stored_rows

FLUSH_ROWS = 10_000  # of the rollouts, at once on the disk


def collect(args: CollectArgs) -> list[Path]:
    """Run the collection that `args` describes; returns the files written."""
    check_least(args, 1, "steps", "learning_starts", "eval_every", "replay_rows")
    check_least(args, 0, "policy_rows")
    config = preset("sac", args.env)
    config.online_steps, config.eval_every = args.steps, args.eval_every
    config.seed, config.threads = args.seed, args.threads
    config.learning_starts = config.random_steps = args.learning_starts
    config.net = NetworkConfig(args.hidden, args.hidden)
    name = args.name or task_for(args.env).family
    replay, policy = args.out / f"{name}-replay.hdf5", args.out / f"{name}-policy.hdf5"
    targets = [replay] if args.policy_rows == 0 else [replay, policy]
    with recording(args, name, targets) as folder:
        made: list[Recording] = []
        if not args.finish:
            trainer = _train(config, folder, made, args)
        rows = stored_rows(folder / "replay")
        if rows == 0:
            raise ConfigError(f"finish: nothing is recorded in {folder} yet")
        metadata = {
            "env_id": args.env,
            "algorithm": f"qcse {__version__} SAC",
            "action_units": "unit",
            "steps": rows,
            "seed": args.seed,
            "final_return": _last_return(folder / "run"),
        }
        written = _write(replay, folder / "replay", args.replay_rows, metadata)
        if not args.finish and args.policy_rows > 0:
            _roll_out(trainer.experiment, folder / "policy", args)
        rollouts = metadata | {"algorithm": f"qcse {__version__} SAC rollouts"}
        return [*written, *_write(policy, folder / "policy", None, rollouts)]


def _train(config: TrainConfig, folder: Path, made: list[Recording], args: CollectArgs) -> Trainer:
    """SAC's run, begun or gone on with; its transitions lie in the folder whatever ends it."""
    state = checkpoint.load_run(folder / "run")
    # Resumed, the episode in progress is lived through again, and recorded anew with it.
    kept = 0
    if state is not None:
        (lived,) = state["environments"]
        kept = state["buffer"]["added"] - len(lived.get("actions", ()))

    def record(env: gym.Env) -> gym.Env:
        made.append(Recording(env, folder / "replay"))
        made[0].keep(kept)
        return made[0]

    trainer = Trainer(
        config,
        folder / "run",
        state,
        wrap_env=record,
        stop_at_return=args.stop_return,
        before_save=lambda: made[0].flush(),
    )
    try:
        trainer.run()
    finally:
        made[0].flush()
    return trainer


def _last_return(run: Path) -> float:
    """Mean return of the last evaluation, NaN where there was none."""
    evaluations = rows_of(run / "eval.csv")
    return float(evaluations[-1]["return_mean"]) if evaluations else float("nan")


def _write(path: Path, folder: Path, last: int | None, metadata: dict[str, Any]) -> list[Path]:
    """The dataset of a folder's rows, if it holds any."""
    if stored_rows(folder) == 0:
        return []
    if not path.exists():  # a recording that was stopped behind this goes on behind it
        write_d4rl(path, stored_arrays(folder, last), metadata)
    return [path]


def _roll_out(sac: Experiment, folder: Path, args: CollectArgs) -> None:
    """Record `args.policy_rows` transitions of the stochastic policy; what an earlier try had is recorded anew, to the
    same bits."""
    env = Recording(make_env(args.env), folder)
    env.keep(0)
    with stoppable() as stopped:
        try:
            episode = itertools.count(args.seed + 1)
            observation, _ = env.reset(seed=next(episode))
            while len(env) < args.policy_rows:
                states = torch.from_numpy(np.asarray(observation, np.float32)).to(sac.device).view(1, 1, -1)
                noise = sac.streams.normal("exploration", (1, sac.action_dim))
                action = sac.agent.act(states, noise)[0, 0].cpu().numpy()
                observation, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    observation, _ = env.reset(seed=next(episode))
                if len(env.rows) >= FLUSH_ROWS:
                    env.flush()
                if stopped():
                    raise RunInterrupted(len(env))
        finally:
            env.flush()

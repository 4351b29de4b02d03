"""`qcse collect`: train SAC from scratch, write what it saw and what its final policy does in D4RL's layout."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from . import __version__, checkpoint
from .config import NetworkConfig, TrainConfig, preset
from .datasets import write_d4rl
from .envs import make_env, task_for
from .errors import ConfigError
from .recording import Recording, recording, stored_arrays, stored_rows
from .signals import stoppable
from .sweep import rows as rows_of
from .train import RunInterrupted, Trainer

if TYPE_CHECKING:
    from .cli import CollectArgs

FLUSH_ROWS = 10_000  # of the rollouts, at once on the disk


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
            _roll_out(trainer, folder / "policy", args)
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


def _roll_out(trainer: Trainer, folder: Path, args: CollectArgs) -> None:
    """Record `args.policy_rows` transitions of the stochastic policy; what an earlier try had is recorded anew, to the
    same bits."""
    env = Recording(make_env(args.env), folder)
    env.keep(0)
    with stoppable() as stopped:
        try:
            episode = itertools.count(args.seed + 1)
            observation, _ = env.reset(seed=next(episode))
            while len(env) < args.policy_rows:
                states = torch.from_numpy(np.asarray(observation, np.float32)).to(trainer.device).view(1, 1, -1)
                noise = trainer.streams.normal("exploration", (1, trainer.action_dim))
                action = trainer.agent.act(states, noise)[0, 0].cpu().numpy()
                observation, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    observation, _ = env.reset(seed=next(episode))
                if len(env.rows) >= FLUSH_ROWS:
                    env.flush()
                if stopped():
                    raise RunInterrupted(len(env))
        finally:
            env.flush()

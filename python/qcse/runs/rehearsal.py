"""Each phase tried once before a run begins, so that nothing fails for the first time after hours of the other."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import torch

from ..learn.update import WARM_UP
from . import checkpoint
from .experiment import Experiment
from .interaction import Interaction


def rehearse(experiment: Experiment, out: Path) -> None:
    """Do once what each phase of a run will do.

    What takes part is thrown away: networks, generators, environments and a buffer of its own, with as many rows as
    the bonus's search needs. Evaluation is not in it: the untrained policy's comes first in any run.

    Args:
        experiment: the run's parts; its dataset is used.
        out: its folder, where a checkpoint is tried.
    """
    config, rows = experiment.config, experiment.reward.rows
    short = dataclasses.replace(
        config,
        offline_steps=min(config.offline_steps, 1),
        online_steps=max(rows, config.bonus.reference_size),
        online_buffer=max(rows, config.bonus.reference_size),
        learning_starts=0,
        random_steps=min(config.random_steps, rows - 1),
        updates_per_step=1,
    )
    held = random.getstate(), np.random.get_state()  # environments may draw from these
    with torch.random.fork_rng():
        trial = Experiment(short, dataset_of=experiment)
        interaction = Interaction(trial)
        if config.init_from is None and short.offline_steps:
            trial.update_step(online=False)
        trial.agent.updates = short.offline_steps
        trial.reward.start_online()
        for taken in range(rows):
            interaction.step(taken)
        for s, slots in enumerate(interaction.slots):
            if slots:
                interaction.end_episode(s, terminal=False)
        trial.buffer.online["observations"][:, :rows] += 1e-3 * torch.arange(rows, device=trial.device).view(-1, 1)
        turns = short.policy_every or 1  # until the policy has moved; a graph is captured once it is warm
        for _ in range(turns if trial.device.type == "cpu" else max(turns, WARM_UP + 2)):
            trial.update_step(online=True)
        path = out / ".rehearsal.partial"  # a name that is swept away, should this process be killed here
        state = trial.state_dict() | {"episodes": interaction.state_dict()}
        checkpoint.save(path, state | {"rows": trial.buffer.rows_of(0, rows)})
        path.unlink()
    random.setstate(held[0])
    np.random.set_state(held[1])
    for env in trial.envs:
        env.env.close()

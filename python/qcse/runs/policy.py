"""The policy of a run folder, to be evaluated or acted with; neither its dataset nor its device is needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import TrainConfig
from ..envs import trust
from ..envs.episodes import EvalResult, Evaluator
from ..errors import CheckpointError, ConfigError
from . import checkpoint
from .experiment import Experiment
from .folder import check_stored, group_of, stored_config
from .layout import seed_folders

HOST = ("device", "threads")  # options that evaluation may choose anew


class StoredPolicy:
    """What a run has learnt up to its last checkpoint.

    Args:
        out: a run folder, also one of several seeds that were trained together.
        device, threads: as `TrainConfig` has them; they need not be those of the run.

    Attributes:
        experiment: the parts that evaluation needs, of all seeds that were trained together.
        folders: the run folders of these seeds.
        position: which of these seeds is meant; None: `out` holds several.
        step: of the checkpoint.

    Raises:
        CheckpointError: no run folder, no checkpoint yet, or one that does not fit its configuration.
        TrustError: the run's environment is code, and nothing shows that this user started it.
    """

    def __init__(self, out: Path, device: str = "auto", threads: int | None = None) -> None:
        self.out = out
        own, group = stored_config(out), group_of(out)
        folder = out if group is None else group
        config = dataclasses.replace(stored_config(folder), device=device, threads=threads)
        trust.check_run(folder, config.env)
        state = checkpoint.load_run(folder, buffer=False)
        if state is None:
            raise CheckpointError(f"checkpoint: {folder} has none yet; train on with `qcse train --resume {folder}`")
        checkpoint.check_parameters(config, state, folder)
        self.config: TrainConfig = config
        self.experiment = Experiment(config, learns=False)
        with checkpoint.fitting(folder):
            check_stored(state, config, folder, may_differ=HOST)
            self.experiment.load_policy(state)
            self.step = int(state["step"])
        self.folders = seed_folders(folder, self.experiment.seeds)
        several = group is None and len(self.folders) > 1
        self.position = None if several else own.seed - config.seed

    def check_single(self) -> int:
        """Which of the seeds is meant; ConfigError where the folder holds several."""
        if self.position is None:
            folders = ", ".join(map(str, self.folders))
            raise ConfigError(f"run: {self.out} holds several runs; name one of {folders}")
        return self.position

    def evaluate(self, episodes: int, seed: int) -> EvalResult:
        """Episodes of the deterministic policy; episode i starts from seed + i.

        Raises:
            ConfigError: the folder holds several runs.
        """
        position = self.check_single()
        # Every seed's policy is asked, for they are evaluated in one product; one seed's episodes count.
        count = len(self.experiment.seeds)
        result = self.experiment.evaluate(Evaluator(self.config.env, episodes * count), [seed] * count)
        part = slice(position * episodes, (position + 1) * episodes)
        successes = None if result.successes is None else result.successes[part]
        return EvalResult(result.returns[part], result.lengths[part], successes)

    def act(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        """The deterministic action [A] for an observation [D] in the environment's own units.

        Raises:
            ConfigError: the folder holds several runs.
        """
        position = self.check_single()
        experiment = self.experiment
        states = torch.from_numpy(experiment.normalized(observation)).to(experiment.device)
        actions = experiment.agent.act(states.expand(len(experiment.seeds), 1, -1))
        action: NDArray[np.float32] = actions[position, 0].cpu().numpy()
        return action

"""Random network distillation (arXiv 1810.12894), batched over seeds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...config.bonuses.rnd import DistillationOptions
from ..buffer import Batch, ReplayBuffer
from ..nets import BatchedMLP
from ..optimizer import make_adam
from ..streams import Streams
from .base import Learner
from .moments import RunningMoments

CLIP = 5.0  # standardised states beyond this are clipped, as published


class RandomNetworkDistillation:
    """Mean squared error between a predictor's features of the next state and those of a random network.

    The predictor, two layers deeper as in the published code, learns on the eligible rows of each batch after their
    bonus was taken. States are standardised by running statistics and clipped to [-5, 5]. The published code divides
    the error by the running spread of its discounted sum; the squash 'scaled', the default here, divides it by its own
    running spread, as a batch of single transitions has no sums.
    """

    rows = 2

    def __init__(self, config: DistillationOptions, agent: Learner, buffer: ReplayBuffer, streams: Streams) -> None:
        state_dim = buffer.online["observations"].shape[-1]
        generators, device = streams.generators("initialisation"), streams.device
        sizes = [state_dim, *config.hidden, config.embedding]
        self.target = BatchedMLP(sizes, generators, orthogonal=True).requires_grad_(False)
        deeper = [state_dim, *config.hidden, config.hidden[-1], config.hidden[-1], config.embedding]
        self.predictor = BatchedMLP(deeper, generators, orthogonal=True)
        group = {"params": list(self.predictor.parameters()), "lr": config.predictor_lr}
        self.optimizer = make_adam([group], device)
        self.states = RunningMoments((len(streams), state_dim), config.statistics_horizon, device)

    def check_limits(self) -> None:
        pass

    def start_online(self) -> None:
        pass

    def compute(
        self, batch: Batch, eligible: Tensor, references: Tensor | None = None, learn: bool = True
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Bonus`. Diagnostics, where it learns: loss/predictor, the mean error over the covered rows."""
        # A row that is not finite has no bonus; a NaN in the input would reach the predictor's gradient even behind a
        # mask on the error.
        finite = batch.next_observations.isfinite().all(-1)
        covered = eligible & finite
        if learn:
            self.states.update(batch.next_observations, eligible)
        states = self.states.standardise(batch.next_observations).clamp(-CLIP, CLIP)
        states = torch.where(finite.unsqueeze(-1), states, 0.0)
        with torch.set_grad_enabled(learn):
            error = (self.predictor(states) - self.target(states)).square().mean(-1)
        novelty = torch.where(covered, error.detach(), 0.0)
        if not learn:
            return novelty, covered, {}
        loss = torch.where(covered, error, 0.0).sum(1) / covered.sum(1).clamp(min=1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        self.optimizer.step()
        return novelty, covered, {"loss/predictor": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "states": self.states.state_dict(),
            "target": self.target.state_dict(),
            "predictor": self.predictor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)

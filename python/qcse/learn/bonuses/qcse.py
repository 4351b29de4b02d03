"""Entropy of states conditioned on their Q: QCSE's bonus, and VCSE's."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from qcse_ext.bonus import batch_entropy

from ...config.bonuses.neighbours import ValueOptions
from ..buffer import Batch, ReplayBuffer
from ..nets import Critics
from ..streams import Streams
from .base import Learner
from .moments import RunningMoments
from .neighbours import Neighbours


class QConditionedEntropy(Neighbours):
    """h(s | Q(s, a)) = digamma(count + 1) / D + log(2 radius + offset), in the joint space of states and min Q.

    QCSE (arXiv 2310.19805) and VCSE (arXiv 2305.19476) are both of this form. They differ in which Q is meant, in how
    states and Q are scaled and in the squash, all of which are options. VCSE's critics learn from the task's reward
    alone; here Q is the learner's own, of the reward with the bonus.

    A further diagnostic, neighbour_share: mean count / candidates; where it is near 1, Q conditions nothing.
    """

    more_diagnostics = ("bonus/neighbour_share",)
    config: ValueOptions

    def __init__(self, config: ValueOptions, agent: Learner, buffer: ReplayBuffer, streams: Streams) -> None:
        super().__init__(config, agent, buffer, streams)
        self.q = RunningMoments((self.seeds,), config.statistics_horizon, self.device)
        self.joint: RunningMoments | None = None  # of states and Q, which then are views of it: one update for both
        if config.state_scale.startswith("standardised") and config.value_scale == "standardised":
            self.joint = RunningMoments((self.seeds, self.state_dim + 1), config.statistics_horizon, self.device)
            self.states, self.q = self.joint.part(slice(self.state_dim)), self.joint.part(self.state_dim)
        self.frozen: Critics | None = None

    def start_online(self) -> None:
        if self.config.critic == "frozen":
            self.frozen = copy.deepcopy(self.agent.critics).requires_grad_(False)

    def values(self, batch: Batch) -> Tensor:
        agent = self.agent
        critics = {"online": agent.critics, "target": agent.targets, "frozen": self.frozen or agent.critics}
        actions = agent.act(batch.observations) if self.config.action == "policy" else batch.actions
        return agent.min_q(batch.observations, actions, critics[self.config.critic])

    def scale_values(self, values: Tensor, batch_values: Tensor, eligible: Tensor) -> Tensor:
        if self.config.value_scale == "standardised":
            return self.q.standardise(values)
        if self.config.value_scale == "batch":
            rows = eligible.sum(1, keepdim=True).clamp(min=1)
            mean = torch.where(eligible, batch_values, 0.0).sum(1, keepdim=True) / rows
            variance = torch.where(eligible, (batch_values - mean).square(), 0.0).sum(1, keepdim=True) / rows
            return (values - mean) / (variance + 1e-5).sqrt()
        return values

    @torch.no_grad()
    def compute(
        self, batch: Batch, eligible: Tensor, references: Tensor | None = None, learn: bool = True
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        moments = self.joint
        if moments is None or references is not None or batch.index.shape[1] <= self.others:
            return super().compute(batch, eligible, references, learn)
        entropy, covered, shares = batch_entropy(
            batch.observations, self.values(batch), batch.index, eligible, moments.mean, moments.variance,
            moments.batches, self.others, self.config.count_self, learn, float(moments.horizon), self.divisor,
            self.config.offset,
        )  # fmt: skip
        names = ("bonus/zero_radius", "bonus/covered", *self.more_diagnostics)
        return entropy, covered, dict(zip(names, shares.unbind(), strict=True))

    def novelty(self, radius: Tensor, count: Tensor) -> Tensor:
        digamma = torch.digamma(count.to(radius.dtype) + 1.0)
        return digamma / self.state_dim + torch.log(2.0 * radius + self.config.offset)

    def observe(self, batch: Batch, values: Tensor, eligible: Tensor) -> None:
        if self.joint is not None:
            self.joint.update(torch.cat([batch.observations, values.unsqueeze(-1)], dim=-1), eligible)
            return
        super().observe(batch, values, eligible)
        if self.config.value_scale == "standardised":
            self.q.update(values, eligible)

    def state_dict(self) -> dict[str, Any]:
        frozen = None if self.frozen is None else self.frozen.state_dict()
        return super().state_dict() | {"q": self.q.state_dict(), "frozen": frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.q.load_state_dict(state["q"])
        if state["frozen"] is not None:
            self.frozen = copy.deepcopy(self.agent.critics).requires_grad_(False)
            self.frozen.load_state_dict(state["frozen"])

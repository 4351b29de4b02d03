"""Bonuses from k nearest neighbours: the entropy of states conditioned on their Q, and that of states alone."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcse_ext
from qcse_ext.bonus import batch_entropy, knn_distinct

from ..buffer import Batch, ReplayBuffer
from ..config import BonusConfig
from ..errors import ConfigError
from ..nets import BatchedMLP
from ..streams import Streams
from .moments import RunningMoments

if TYPE_CHECKING:
    from . import Learner


class Neighbours:
    """What both share: scaled states, and the exact search among distinct transitions.

    Candidates are distinct transitions: one that was drawn twice stands once among the neighbours, and never
    among its own. Where fewer than k candidates are left, a row is not covered.
    """

    def __init__(self, config: BonusConfig, agent: Learner, buffer: ReplayBuffer, streams: Streams) -> None:
        self.config, self.agent, self.buffer = config, agent, buffer
        self.state_dim = buffer.online["observations"].shape[-1]
        self.seeds, self.device = len(streams), streams.device
        self.states = RunningMoments((self.seeds, self.state_dim), config.statistics_horizon, self.device)
        # The k-th neighbour by a count that starts with the point itself is the (k-1)-th other point.
        self.others = config.k - int(config.count_self)

    def start_online(self) -> None:
        pass

    def check_limits(self) -> None:
        """ConfigError where the operator does not take such states or so many neighbours."""
        states = self.features(torch.zeros(self.seeds, self.others + 1, self.state_dim, device=self.device))
        try:
            qcse_ext.knn(states, torch.zeros_like(states[..., 0]), self.others)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"bonus: {self.config.kind} cannot be computed for states of {states.shape[-1]} numbers and k "
                f"{self.config.k} ({str(error).splitlines()[0]}); choose --bonus rnd or none, or other options"
            ) from error

    def features(self, observations: Tensor) -> Tensor:
        """Where a state lies: [S, N, D] -> [S, N, features]."""
        if self.config.state_scale.startswith("standardised"):
            observations = self.states.standardise(observations)
        return observations / self.divisor

    @property
    def divisor(self) -> float:
        """Of the states, once they are standardised where they are to be."""
        d = self.state_dim
        return {"standardised_sqrt_d": math.sqrt(d), "standardised_d": d, "d": d}.get(self.config.state_scale, 1.0)

    def values(self, batch: Batch) -> Tensor:
        """The second coordinate [S, N], before it is scaled."""
        raise NotImplementedError

    def scale_values(self, values: Tensor, batch_values: Tensor, eligible: Tensor) -> Tensor:
        return values

    def novelty(self, radius: Tensor, count: Tensor) -> Tensor:
        """The bonus of a neighbourhood [S, N]."""
        raise NotImplementedError

    def observe(self, batch: Batch, values: Tensor, eligible: Tensor) -> None:
        """Update the running statistics."""
        if self.config.state_scale.startswith("standardised"):
            self.states.update(batch.observations, eligible)

    @torch.no_grad()
    def compute(
        self, batch: Batch, eligible: Tensor, references: Tensor | None = None, learn: bool = True
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Bonus`. Diagnostics: covered (share of eligible rows), zero_radius (share of radii that are 0)."""
        rows = batch.index if references is None else references
        if rows.shape[1] <= self.others:
            zero = batch.rewards.new_zeros(self.seeds)
            names = ("bonus/zero_radius", "bonus/covered", *self.more_diagnostics)
            return torch.zeros_like(batch.rewards), torch.zeros_like(eligible), dict.fromkeys(names, zero)
        values = self.values(batch)
        # A row that is not finite is left out, and it alone.
        finite = eligible & batch.observations.isfinite().all(-1) & values.isfinite()
        if learn:
            self.observe(batch, values, finite)

        features = self.features(batch.observations)
        scaled = self.scale_values(values, values, finite)
        among = None
        if references is not None:
            candidates = self.buffer.gather(references)
            candidate_values = self.scale_values(self.values(candidates), values, finite)
            among = self.features(candidates.observations), candidate_values, references
        radius, count, distinct = knn_distinct(features, scaled, batch.index, finite, self.others, among)
        covered = (count >= 0) & (distinct > self.others)
        if self.config.count_self:  # at distance 0 of itself: strictly closer unless the radius is 0
            count = count + (radius > 0)
        novelty = torch.where(covered, self.novelty(radius, count), 0.0)
        sums = torch.stack([covered, eligible, (radius == 0) & covered, covered * count]).sum(-1)
        rows_covered, rows_eligible = sums[:2].clamp(min=1)
        diagnostics = {"bonus/zero_radius": sums[2] / rows_covered, "bonus/covered": sums[0] / rows_eligible}
        if self.more_diagnostics:
            diagnostics["bonus/neighbour_share"] = sums[3] / (rows_covered * distinct.squeeze(1).clamp(min=1))
        return novelty, covered, diagnostics

    more_diagnostics: tuple[str, ...] = ()

    def state_dict(self) -> dict:
        return {"states": self.states.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.states.load_state_dict(state["states"])


class QConditionedEntropy(Neighbours):
    """h(s | Q(s, a)) = digamma(count + 1) / D + log(2 radius + offset), in the joint space of states and min Q.

    QCSE (arXiv 2310.19805) and VCSE (arXiv 2305.19476) are both of this form. They differ in which Q is meant, in how
    states and Q are scaled and in the squash, all of which are options. VCSE's critics learn from the task's reward
    alone; here Q is the learner's own, of the reward with the bonus.

    A further diagnostic, neighbour_share: mean count / candidates; where it is near 1, Q conditions nothing.
    """

    more_diagnostics = ("bonus/neighbour_share",)

    def __init__(self, config: BonusConfig, agent: Learner, buffer: ReplayBuffer, streams: Streams) -> None:
        super().__init__(config, agent, buffer, streams)
        self.q = RunningMoments((self.seeds,), config.statistics_horizon, self.device)
        self.joint: RunningMoments | None = None  # of states and Q, which then are views of it: one update for both
        if config.state_scale.startswith("standardised") and config.value_scale == "standardised":
            self.joint = RunningMoments((self.seeds, self.state_dim + 1), config.statistics_horizon, self.device)
            self.states, self.q = self.joint.part(slice(self.state_dim)), self.joint.part(self.state_dim)
        self.frozen: nn.Module | None = None

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

    def state_dict(self) -> dict:
        frozen = None if self.frozen is None else self.frozen.state_dict()
        return super().state_dict() | {"q": self.q.state_dict(), "frozen": frozen}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.q.load_state_dict(state["q"])
        if state["frozen"] is not None:
            self.frozen = copy.deepcopy(self.agent.critics).requires_grad_(False)
            self.frozen.load_state_dict(state["frozen"])


class StateEntropy(Neighbours):
    """log(1 + distance to the k-th nearest state): RE3's bonus (arXiv 2102.09430, equation 2), APT's with its last
    neighbour in place of the mean over k (arXiv 2103.04551).

    The distance is taken behind a random network that never learns (`encoder` 'random': RE3's 50 layer-normalised
    features, made by a perceptron where RE3 has images), or between the scaled states themselves ('none'). Each seed
    has its own network.
    """

    def __init__(self, config: BonusConfig, agent: Learner, buffer: ReplayBuffer, streams: Streams) -> None:
        super().__init__(config, agent, buffer, streams)
        self.encoder: BatchedMLP | None = None
        if config.encoder == "random":
            sizes = [self.state_dim, *config.hidden, config.embedding]
            self.encoder = BatchedMLP(sizes, streams.generators("initialisation"), orthogonal=True)
            self.encoder.requires_grad_(False)

    def features(self, observations: Tensor) -> Tensor:
        scaled = super().features(observations)
        if self.encoder is None:
            return scaled
        return F.layer_norm(self.encoder(scaled), (self.config.embedding,))

    def values(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.rewards)

    def novelty(self, radius: Tensor, count: Tensor) -> Tensor:
        return torch.log1p(radius)

    def state_dict(self) -> dict:
        return super().state_dict() | {"encoder": None if self.encoder is None else self.encoder.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.encoder is not None:
            self.encoder.load_state_dict(state["encoder"])

"""The intrinsic reward: scaling, the entropy operator, the squash, and the numbers that tell whether it says anything.

r' = r + weight * squash(h(s | Q(s, a))), h the k-nearest-neighbour estimate of the entropy of states conditioned on
their Q (arXiv 2310.19805; operator: `qcse_ext.knn`). What the paper leaves open are options of `BonusConfig`.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

import qcse_ext

from .agents.sac import SAC
from .buffer import Batch, ReplayBuffer
from .config import BonusConfig
from .nets import Critics
from .streams import Streams

SATURATED = 0.95  # |squash(h)| beyond which the bonus hardly distinguishes states
_COMPUTED = ("bonus/saturated", "bonus/zero_radius", "bonus/neighbour_share", "bonus/covered")


class RunningMoments:
    """Mean and standard deviation of a stream of masked batches, per seed and channel.

    The rate of batch t is max(1 / t, 1 / horizon): exact over the first `horizon` batches when they are equally
    large, an exponential average after that. A batch without a valid row changes nothing.
    """

    def __init__(self, shape: tuple[int, ...], horizon: int, device: torch.device) -> None:
        self.mean = torch.zeros(shape, device=device)
        self.variance = torch.ones(shape, device=device)
        self.batches = torch.zeros(shape[0], device=device)
        self.horizon = horizon

    def update(self, x: Tensor, valid: Tensor) -> None:
        """x [S, N, C] (or [S, N] where the shape is [S]), valid [S, N] bool."""
        mask = valid if x.dim() == 2 else valid.unsqueeze(-1)
        rows = valid.sum(1).to(x.dtype)
        rows_c = rows.view(-1, *[1] * (x.dim() - 2))
        x = torch.where(mask, x, 0.0)
        mean = x.sum(1) / rows_c.clamp(min=1.0)
        variance = torch.where(mask, (x - mean.unsqueeze(1)).square(), 0.0).sum(1) / rows_c.clamp(min=1.0)
        some = (rows > 0).to(x.dtype)
        self.batches += some
        rate = some * torch.clamp(1.0 / self.batches.clamp(min=1.0), min=1.0 / self.horizon)
        rate = rate.view(-1, *[1] * (x.dim() - 2))
        shift = mean - self.mean
        # Mixture of two groups: within-group variances plus the spread between their means. The first batch
        # replaces the initial values entirely (rate 1).
        self.variance = (1.0 - rate) * self.variance + rate * variance + rate * (1.0 - rate) * shift.square()
        self.mean = self.mean + rate * shift

    def standardise(self, x: Tensor) -> Tensor:
        """(x - mean) / spread; a channel that hardly varies is only centred."""
        spread = self.variance.sqrt().unsqueeze(1)
        return (x - self.mean.unsqueeze(1)) / torch.where(spread > 1e-6, spread, 1.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "variance": self.variance, "batches": self.batches}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in ("mean", "variance", "batches"):
            getattr(self, name).copy_(state[name])


class IntrinsicReward:
    """Computes the weighted bonus of a batch and keeps the running statistics that its scaling needs.

    Candidates are distinct transitions: one that was drawn twice stands once among the neighbours, and never
    among its own. Where fewer than k candidates are left, the bonus is 0. No gradient flows through it.
    """

    def __init__(
        self, config: BonusConfig, state_dim: int, seeds: int, reward_scale: float, device: torch.device
    ) -> None:
        self.config = config
        self.state_dim, self.device = state_dim, device
        self.states = RunningMoments((seeds, state_dim), config.statistics_horizon, device)
        self.values = RunningMoments((seeds,), config.statistics_horizon, device)
        self.entropies = RunningMoments((seeds,), config.statistics_horizon, device)
        self.frozen: Critics | None = None
        self.online = False
        self.updates = 0  # online updates so far; the weight decays with them
        # r' = scale * (r + b) + bias where the bonus joins before the task's transform
        self.join_factor = reward_scale if config.join == "before" else 1.0

    @property
    def active(self) -> bool:
        return self.config.kind != "none"

    def start_online(self, agent: SAC) -> None:
        """Called once, when pre-training ends: keeps its critics where the bonus asks for them."""
        self.online = True
        if self.active and self.config.critic == "frozen":
            self.frozen = copy.deepcopy(agent.critics).requires_grad_(False)

    @property
    def weight(self) -> float:
        """The factor of the bonus in the reward that the learner sees, at this update."""
        return self.join_factor * self.config.weight * (1.0 - self.config.decay) ** self.updates

    def add_to(self, batch: Batch, agent: SAC, buffer: ReplayBuffer, streams: Streams) -> dict[str, Tensor]:
        """Replace `batch.rewards` by rewards plus weighted bonus; returns diagnostics, [S] each.

        Names, each with the prefix 'bonus/': mean, std (of the eligible rows, before the weight), saturated (share
        of bonuses beyond 0.95 in size), zero_radius (share of radii that are 0), neighbour_share (mean count /
        candidates: where it is near 1, Q conditions nothing), covered (share of eligible rows that got a bonus),
        weight. Computed when stored: mean, std and weight only.
        """
        config = self.config
        eligible = batch.online if config.transitions == "online" else torch.ones_like(batch.online)
        if config.when == "store":
            bonus, diagnostics = batch.bonus, {}
        else:
            references = self._references(batch, eligible, buffer, streams)
            bonus, diagnostics = self._compute(batch, eligible, references, agent, buffer, learn=True)
        weight = self.weight
        batch.rewards = batch.rewards + weight * bonus
        self.updates += int(self.online)
        return self._moments(bonus, eligible) | diagnostics | {"bonus/weight": torch.full_like(bonus[:, 0], weight)}

    def of_stored(
        self, index: Tensor, agent: SAC, buffer: ReplayBuffer, streams: Streams, learn: bool = True
    ) -> Tensor:
        """Unweighted bonus [S, B] of online transitions given by global row number [S, B], against the references
        of the moment (the whole online buffer where they are 'batch'). `learn`: update the running statistics."""
        batch = buffer.gather(index)
        if self.config.references == "sample":
            references = self._references(batch, batch.online, buffer, streams)
        else:
            rows = buffer.all_online()
            references = rows, torch.ones_like(rows, dtype=torch.bool)
        return self._compute(batch, batch.online, references, agent, buffer, learn)[0]

    def _references(
        self, batch: Batch, eligible: Tensor, buffer: ReplayBuffer, streams: Streams
    ) -> tuple[Tensor, Tensor]:
        """Global row numbers of the candidates [S, M] and which of them count [S, M]."""
        if self.config.references == "batch":
            return batch.index, eligible
        if self.config.references == "sample" and buffer.size > 0:
            rows = buffer.sample_online(streams, self.config.reference_size)
        else:
            rows = buffer.all_online()
        return rows, torch.ones_like(rows, dtype=torch.bool)

    @torch.no_grad()
    def _compute(
        self,
        batch: Batch,
        eligible: Tensor,
        references: tuple[Tensor, Tensor],
        agent: SAC,
        buffer: ReplayBuffer,
        learn: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Unweighted bonus [S, B], 0 on rows that are not eligible or not covered; diagnostics [S]."""
        config = self.config
        if references[0].shape[1] <= config.k:
            zero = batch.rewards.new_zeros(len(batch.rewards))
            return torch.zeros_like(batch.rewards), dict.fromkeys(_COMPUTED, zero)
        values = self._q(batch.observations, batch.actions, agent)
        if learn and config.state_scale.startswith("standardised"):
            self.states.update(batch.observations, eligible)
        if learn and config.value_scale == "standardised":
            self.values.update(values, eligible)

        # Sorted row numbers make duplicates adjacent and let each query find itself, without a host read.
        rows, order = torch.where(references[1], references[0], -1).sort(dim=1)
        counts = rows >= 0
        counts[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        if config.references == "batch" and references[0] is batch.index:
            reference_states = batch.observations.gather(1, order.unsqueeze(-1).expand(-1, -1, self.state_dim))
            reference_values = values.gather(1, order)
        else:
            candidates = buffer.gather(rows.clamp(min=0))
            reference_states = candidates.observations
            reference_values = self._q(reference_states, candidates.actions, agent)
        position = torch.searchsorted(rows, batch.index).clamp_(max=rows.shape[1] - 1)
        self_index = torch.where(rows.gather(1, position) == batch.index, position, -1)

        # A row whose value is NaN is nobody's neighbour, and a query with one has no answer.
        radius, count = qcse_ext.knn(
            self._scale_states(batch.observations),
            self._scale_values(values).masked_fill(~eligible, float("nan")),
            config.k,
            self._scale_states(reference_states),
            self._scale_values(reference_values).masked_fill(~counts, float("nan")),
            self_index,
        )
        distinct = counts.sum(1, keepdim=True)
        covered = (count >= 0) & (distinct > config.k)
        entropy = torch.digamma(count.to(radius.dtype) + 1.0) / self.state_dim + torch.log(2.0 * radius + config.offset)
        entropy = torch.where(covered, entropy, 0.0)
        if learn and config.squash == "standardised_tanh":
            self.entropies.update(entropy, covered)
        bonus = torch.where(covered, self._squash(entropy), 0.0)
        rows_covered = covered.sum(1).clamp(min=1)
        neighbours = torch.where(covered, count, 0).sum(1) / rows_covered
        return bonus, {
            "bonus/saturated": ((bonus.abs() > SATURATED) & covered).sum(1) / rows_covered,
            "bonus/zero_radius": ((radius == 0) & covered).sum(1) / rows_covered,
            "bonus/neighbour_share": neighbours / distinct.squeeze(1).clamp(min=1),
            "bonus/covered": covered.sum(1) / eligible.sum(1).clamp(min=1),
        }

    def _moments(self, bonus: Tensor, eligible: Tensor) -> dict[str, Tensor]:
        rows = eligible.sum(1).clamp(min=1)
        mean = torch.where(eligible, bonus, 0.0).sum(1) / rows
        variance = torch.where(eligible, (bonus - mean.unsqueeze(1)).square(), 0.0).sum(1) / rows
        return {"bonus/mean": mean, "bonus/std": variance.sqrt()}

    def _q(self, states: Tensor, actions: Tensor, agent: SAC) -> Tensor:
        critics = {"online": agent.critics, "target": agent.targets, "frozen": self.frozen or agent.critics}
        if self.config.action == "policy":
            actions = agent.act(states)
        return agent.min_q(states, actions, critics[self.config.critic])

    def _scale_states(self, states: Tensor) -> Tensor:
        scale = self.config.state_scale
        if scale.startswith("standardised"):
            states = self.states.standardise(states)
        divisors = {"standardised_sqrt_d": math.sqrt(self.state_dim), "standardised_d": self.state_dim}
        return states / (divisors | {"d": self.state_dim}).get(scale, 1.0)

    def _scale_values(self, values: Tensor) -> Tensor:
        return self.values.standardise(values) if self.config.value_scale == "standardised" else values

    def _squash(self, entropy: Tensor) -> Tensor:
        if self.config.squash == "tanh":
            return torch.tanh(entropy)
        return torch.tanh(self.entropies.standardise(entropy)) if self.config.squash == "standardised_tanh" else entropy

    def state_dict(self) -> dict:
        moments = {"states": self.states, "values": self.values, "entropies": self.entropies}
        return {
            "moments": {name: m.state_dict() for name, m in moments.items()},
            "frozen": None if self.frozen is None else self.frozen.state_dict(),
            "updates": self.updates,
            "online": self.online,
        }

    def load_state_dict(self, state: dict, agent: SAC) -> None:
        for name, moments in (("states", self.states), ("values", self.values), ("entropies", self.entropies)):
            moments.load_state_dict(state["moments"][name])
        if state["frozen"] is not None:
            self.frozen = copy.deepcopy(agent.critics).requires_grad_(False)
            self.frozen.load_state_dict(state["frozen"])
        self.updates, self.online = state["updates"], state["online"]

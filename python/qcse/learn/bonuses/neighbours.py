"""What the bonuses from k nearest neighbours share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import qcse_ext
from qcse_ext.bonus import knn_distinct

from ...config.bonuses.neighbours import NeighbourOptions
from ...errors import ConfigError
from ..buffer import Batch, ReplayBuffer
from ..streams import Streams
from .base import Learner
from .moments import RunningMoments


class Neighbours:
    """Scaled states, and the exact search among distinct transitions.

    Candidates are distinct transitions: one that was drawn twice stands once among the neighbours, and never
    among its own. Where fewer than k candidates are left, a row is not covered.
    """

    def __init__(self, config: NeighbourOptions, agent: Learner, buffer: ReplayBuffer, streams: Streams) -> None:
        self.config, self.agent, self.buffer = config, agent, buffer
        self.state_dim = buffer.online["observations"].shape[-1]
        self.seeds, self.device = len(streams), streams.device
        self.states = RunningMoments((self.seeds, self.state_dim), config.statistics_horizon, self.device)
        # The k-th neighbour by a count that starts with the point itself is the (k-1)-th other point.
        self.others = config.k - int(config.count_self)
        self.rows = config.k + 1

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
        """The second coordinate as it enters the distance: values [S, M], scaled as the batch's [S, N] are."""
        return values

    def novelty(self, radius: Tensor, count: Tensor) -> Tensor:
        """The bonus of a neighbourhood [S, N]."""
        raise NotImplementedError

    def observe(self, batch: Batch, values: Tensor, eligible: Tensor) -> None:
        """Update the running statistics by a batch's values [S, N], the eligible [S, N] of them."""
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

    def state_dict(self) -> dict[str, Any]:
        return {"states": self.states.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.states.load_state_dict(state["states"])

"""Conservative Q-learning, CQL(H) (arXiv 2006.04779), on top of soft actor-critic."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qcse_ext.nets.critic import conservative_loss
from qcse_ext.nets.tanh_gaussian import tanh_gaussian

from ...config.algorithms.cql import CqlOptions
from ..buffer import Batch
from ..streams import Streams
from .sac import SAC, Noise


class CQL(SAC):
    """SAC whose critics are pushed down on sampled actions and up on the data's.

    The conservative term of critic e is alpha * (T log sum_a exp(Q_e(s, a) / T) - Q_e(s, a_data)), the sum over n
    uniform actions, n of the policy at s and n of the policy at s', each with its log-density subtracted
    (importance sampling). All 3n + 1 actions of a state pass through the critics in one product.
    """

    config: CqlOptions
    calibrated = False

    def __init__(self, state_dim: int, action_dim: int, config: CqlOptions, streams: Streams) -> None:
        self.log_multiplier = nn.Parameter(torch.ones(len(streams), device=streams.device))
        super().__init__(state_dim, action_dim, config, streams)

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.config.cql.lagrange:
            groups[1]["params"].append(self.log_multiplier)
        return groups

    def multipliers(self) -> dict[str, nn.Parameter]:
        return super().multipliers() | {"log_multiplier": self.log_multiplier}

    def noise_shapes(self, batch_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        cql = self.config.cql
        many = (batch_size, cql.actions, self.action_dim)
        shapes = super().noise_shapes(batch_size)
        if cql.max_target_backup:
            shapes["backup"] = ("normal", many)
        return shapes | {"random": ("uniform", many), "current": ("normal", many), "next": ("normal", many)}

    def critic_loss(
        self, batch: Batch, noise: Noise, mean: Tensor, log_std: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        cql = self.config.cql
        with torch.no_grad():
            next_mean, next_log_std = self.policy(batch.next_observations)
            target = self.bellman_target(batch, next_mean, next_log_std, noise, temperature)
            current, current_log_prob = tanh_gaussian(mean, log_std, noise["current"])
            following, following_log_prob = tanh_gaussian(next_mean, next_log_std, noise["next"])
            actions = torch.cat([batch.actions.unsqueeze(-2), noise["random"], following, current], dim=-2)
            uniform = self.constant(-self.action_dim * math.log(2.0), current_log_prob)  # in [-1, 1]^A
            offsets = -torch.cat([uniform, following_log_prob, current_log_prob], dim=-1)
            if not cql.importance_sampling:
                offsets = torch.zeros_like(offsets)
        weight = self.constant(cql.alpha, temperature)
        if cql.lagrange:
            multiplier = self.log_multiplier.exp().clamp(max=1e6)
            weight = cql.alpha * multiplier.detach()
        weights, biases, norms = self.critics.net.layers()
        loss, statistics = conservative_loss(
            batch.observations, actions, weights, biases, target, offsets, self.bound(batch), weight, cql.temperature,
            cql.clip_difference, not cql.importance_sampling, self.critics.bf16, norms, self.subset(noise),
        )  # fmt: skip
        gap = statistics["gap"]
        multiplier_loss = self.constant(0.0, loss)
        metrics = {"q/target": target.mean(-1)}
        if cql.lagrange:
            excess = cql.alpha * (gap.mean(-1) - cql.target_gap) * self.critics.members
            loss = loss - self.critics.members * weight * cql.target_gap  # a constant; the loss as it is published
            multiplier_loss = -0.5 * multiplier * excess
            metrics["cql/multiplier"] = multiplier.detach()
        metrics |= {
            "loss/bellman": statistics["error"].sum(-1),
            "cql/gap": gap.mean(-1),
            "q/data": statistics["q_data"].mean(-1),
            "q/random_actions": statistics["q_uniform"].mean(-1),
            "q/policy_actions": statistics["q_policy"].mean(-1),
        }
        if self.calibrated:
            metrics["cal_ql/bound_share"] = statistics["bound_share"].mean(-1)
        return loss, multiplier_loss, metrics

    def bound(self, batch: Batch) -> Tensor:
        """Lower bound [S, B] of the policy actions' Q in the conservative term; CQL has none."""
        return self.constant(-math.inf, batch.rewards)

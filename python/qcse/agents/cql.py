"""Conservative Q-learning, CQL(H) (arXiv 2006.04779), on top of soft actor-critic."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..buffer import Batch
from ..config import TrainConfig
from ..nets import tanh_gaussian_sample
from ..streams import Streams
from .sac import SAC, Noise


class CQL(SAC):
    """SAC whose critics are pushed down on sampled actions and up on the data's.

    The conservative term of critic e is alpha * (T log sum_a exp(Q_e(s, a) / T) - Q_e(s, a_data)), the sum over n
    uniform actions, n of the policy at s and n of the policy at s', each with its log-density subtracted
    (importance sampling). All 3n + 1 actions of a state pass through the critics in one product.
    """

    def __init__(self, state_dim: int, action_dim: int, config: TrainConfig, streams: Streams) -> None:
        self.log_multiplier = nn.Parameter(torch.ones(len(streams), device=streams.device))
        super().__init__(state_dim, action_dim, config, streams)

    def parameter_groups(self) -> list[dict]:
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
            target = self.bellman_target(batch, next_mean, next_log_std, noise["backup"], temperature)
            current, current_log_prob = tanh_gaussian_sample(mean, log_std, noise["current"])
            following, following_log_prob = tanh_gaussian_sample(next_mean, next_log_std, noise["next"])
            actions = torch.cat([batch.actions.unsqueeze(-2), noise["random"], following, current], dim=-2)
        q = self.critics(batch.observations, actions)  # [S, E, B, 1 + 3n]
        predicted, random, sampled = q.split([1, cql.actions, 2 * cql.actions], dim=-1)
        predicted = predicted.squeeze(-1)
        sampled, metrics = self.calibrate(sampled, batch)
        if cql.importance_sampling:
            random = random - self.action_dim * math.log(0.5)
            sampled = sampled - torch.cat([following_log_prob, current_log_prob], dim=-1).unsqueeze(1)
        else:  # as in public code, the data's action is then one of those in the sum
            random = torch.cat([random, predicted.unsqueeze(-1)], dim=-1)
        out_of_data = torch.cat([random, sampled], dim=-1)
        difference = torch.logsumexp(out_of_data / cql.temperature, dim=-1) * cql.temperature - predicted
        if cql.clip_difference is not None:
            difference = difference.clamp(min=cql.clip_difference)
        gap = difference.mean(-1)  # [S, E]
        conservative = (cql.alpha * gap).sum(-1)
        multiplier_loss = torch.zeros_like(conservative)
        if cql.lagrange:
            multiplier = self.log_multiplier.exp().clamp(max=1e6)
            excess = cql.alpha * (gap - cql.target_gap)
            conservative = (multiplier.detach().unsqueeze(-1) * excess).sum(-1)
            multiplier_loss = -0.5 * (multiplier.unsqueeze(-1) * excess.detach()).sum(-1)
            metrics["cql/multiplier"] = multiplier.detach()
        error = self.bellman_error(predicted, target)
        metrics |= self.q_metrics(predicted, target)
        metrics |= {
            "loss/bellman": error.detach(),
            "cql/gap": gap.detach().mean(-1),
            "q/random_actions": q[..., 1 : 1 + cql.actions].detach().mean((1, 2, 3)),
            "q/policy_actions": q[..., 1 + cql.actions :].detach().mean((1, 2, 3)),
        }
        return error + conservative, multiplier_loss, metrics

    def calibrate(self, sampled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The Q of the policy's actions [S, E, B, 2n] as the conservative term sees it; CQL takes it as it is."""
        return sampled, {}

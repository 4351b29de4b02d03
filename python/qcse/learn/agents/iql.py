"""Implicit Q-learning (arXiv 2110.06169): expectile regression, advantage-weighted regression."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...config.algorithms.iql import IqlOptions
from ..buffer import Batch
from ..nets import BatchedMLP, GaussianPolicy, gaussian_log_prob
from ..streams import Streams
from .sac import SAC, Losses, Noise

WEIGHT_MAX = 100.0  # of exp(advantage * beta), as in all public code of IQL and AWAC


class IQL(SAC):
    """Critics that never see an action outside the data; nothing but the data's actions is imitated.

    With A = min_e Q'_e(s, a) - V(s)::

        loss of V = mean |expectile - 1(A < 0)| A^2
        loss of Q = mean over e of mean (Q_e(s, a) - r - gamma * bootstrap * V(s'))^2
        loss of the policy = -mean min(exp(beta * A), 100) log pi(a|s)

    V has the critics' hidden layers. The policy is a Gaussian with mean tanh(network) and a standard deviation that
    does not depend on the state. Neither temperature nor random numbers take part in an update.
    """

    config: IqlOptions
    has_temperature = False

    def __init__(self, state_dim: int, action_dim: int, config: IqlOptions, streams: Streams) -> None:
        net, generators = config.net, streams.generators("initialisation")
        sizes = [state_dim, *net.critic_hidden, 1]
        self.value = BatchedMLP(sizes, generators, 1, net.orthogonal_init, net.critic_layer_norm)
        super().__init__(state_dim, action_dim, config, streams)

    def make_policy(self, state_dim: int, generators: list[torch.Generator]) -> GaussianPolicy:
        net = self.config.net
        return GaussianPolicy(
            state_dim, self.action_dim, net.policy_hidden, generators, net.orthogonal_init, net.policy_layer_norm
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        groups[1]["params"] += self.value.parameters()
        return groups

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"value": self.value}

    def noise_shapes(self, batch_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {}

    def losses(self, batch: Batch, noise: Noise) -> Losses:
        iql, config, actions = self.config.iql, self.config, batch.actions.unsqueeze(-2)
        with torch.no_grad():
            q = self.targets.values(batch.observations, actions).amin(1).squeeze(-1)
            following = self.value(batch.next_observations).squeeze(-1)
            target = batch.rewards + config.discount * batch.bootstrap * following
        advantage = q - self.value(batch.observations).squeeze(-1)
        value_loss = (torch.where(advantage < 0, 1.0 - iql.expectile, iql.expectile) * advantage.square()).mean(-1)
        predicted = self.critics(batch.observations, actions).squeeze(-1)
        q_loss = self.bellman_error(predicted, target) / self.critics.members
        metrics = self.q_metrics(predicted, target) | {
            "loss/value": value_loss.detach(),
            "loss/critic": q_loss.detach(),
            "iql/advantage": advantage.detach().mean(-1),
        }
        policy_loss = self.constant(0.0, q_loss)
        if self.policy_turn:
            weight = (iql.beta * advantage.detach()).exp().clamp(max=WEIGHT_MAX)
            mean, log_std = self.policy(batch.observations)
            policy_loss = -(weight * gaussian_log_prob(mean, log_std, batch.actions)).mean(-1)
            metrics |= {"loss/policy": policy_loss.detach(), "policy/weight": weight.mean(-1)}
        return Losses(policy_loss, q_loss + value_loss, self.constant(0.0, q_loss), metrics)

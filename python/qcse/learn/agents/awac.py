"""Advantage-weighted actor-critic (arXiv 2006.09359)."""

from __future__ import annotations

import torch

from ...config.algorithms.awac import AwacOptions
from ..buffer import Batch
from ..nets import GaussianPolicy, gaussian_log_prob
from .iql import WEIGHT_MAX
from .sac import SAC, Losses, Noise


class AWAC(SAC):
    """Critics as in SAC without entropy; a policy that imitates the data's actions, the better ones more.

    With b ~ pi(s), b' ~ pi(s'), both cut to [-1, 1], and A = min_e Q_e(s, a) - min_e Q_e(s, b)::

        loss of Q = sum over e of mean (Q_e(s, a) - r - gamma * bootstrap * min_e Q'_e(s', b'))^2
        loss of the policy = -mean min(exp(A / lambda), 100) log pi(a|s)

    The policy is a Gaussian whose mean is unbounded and whose standard deviation does not depend on the state.
    """

    config: AwacOptions
    has_temperature = False

    def make_policy(self, state_dim: int, generators: list[torch.Generator]) -> GaussianPolicy:
        net, bounded = self.config.net, False
        layers = (net.policy_hidden, generators, net.orthogonal_init, net.policy_layer_norm)
        return GaussianPolicy(state_dim, self.action_dim, *layers, bounded)

    def noise_shapes(self, batch_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        one = (batch_size, self.action_dim)
        return {"policy": ("normal", one), "backup": ("normal", one)}

    def losses(self, batch: Batch, noise: Noise) -> Losses:
        config = self.config
        with torch.no_grad():
            following = self.policy.explore(batch.next_observations, noise["backup"]).unsqueeze(-2)
            value = self.targets.values(batch.next_observations, following).amin(1).squeeze(-1)
            target = batch.rewards + config.discount * batch.bootstrap * value
        predicted = self.critics(batch.observations, batch.actions.unsqueeze(-2)).squeeze(-1)
        q_loss = self.bellman_error(predicted, target)
        metrics = self.q_metrics(predicted, target) | {"loss/critic": q_loss.detach()}
        policy_loss = self.constant(0.0, q_loss)
        if self.policy_turn:
            mean, log_std = self.policy(batch.observations)
            own = (mean + log_std.exp() * noise["policy"]).clamp(-1.0, 1.0).detach()
            advantage = predicted.detach().amin(1) - self.min_q(batch.observations, own)
            weight = (advantage / config.awac.temperature).exp().clamp(max=WEIGHT_MAX)
            policy_loss = -(weight * gaussian_log_prob(mean, log_std, batch.actions)).mean(-1)
            metrics |= {
                "loss/policy": policy_loss.detach(),
                "policy/weight": weight.mean(-1),
                "awac/advantage": advantage.mean(-1),
            }
        return Losses(policy_loss, q_loss, self.constant(0.0, q_loss), metrics)

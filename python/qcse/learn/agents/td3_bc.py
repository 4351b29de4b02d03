"""TD3+BC (arXiv 2106.06860): TD3 (arXiv 1802.09477) whose policy is held near the data's actions."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...config.algorithms.td3_bc import Td3BcOptions
from ..buffer import Batch
from ..nets import DeterministicPolicy
from ..streams import Streams
from .sac import SAC, Losses, Noise


class TD3BC(SAC):
    """A deterministic policy with a target of its own, smoothed target actions, delayed policy and targets.

    With e = clip(policy_noise * standard normal, +-noise_clip), pi' the policy's target::

        loss of Q = sum over e of mean (Q_e(s, a) - r - gamma * bootstrap * min_e Q'_e(s', clip(pi'(s') + e, +-1)))^2
        loss of the policy = -alpha * mean Q_1(s, pi(s)) / mean |Q_1(s, pi(s))| + mean (pi(s) - a)^2

    the last mean over action dimensions, too. The policy and all targets move at every `policy_every`-th update.
    Online the same losses go on; exploration adds Gaussian noise to the action (`td3_bc.exploration_noise`).
    """

    config: Td3BcOptions
    has_temperature = False

    def __init__(self, state_dim: int, action_dim: int, config: Td3BcOptions, streams: Streams) -> None:
        super().__init__(state_dim, action_dim, config, streams)
        self.policy_target = copy.deepcopy(self.policy).requires_grad_(False)
        self.first = torch.zeros(self.seeds, 1, dtype=torch.int64, device=self.device)  # number of the first critic

    def make_policy(self, state_dim: int, generators: list[torch.Generator]) -> DeterministicPolicy:
        net, noise = self.config.net, self.config.td3_bc.exploration_noise
        layers = (net.policy_hidden, generators, net.orthogonal_init, net.policy_layer_norm)
        return DeterministicPolicy(state_dim, self.action_dim, *layers, noise)

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"policy_target": self.policy_target}

    def noise_shapes(self, batch_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"backup": ("normal", (batch_size, self.action_dim))}

    def losses(self, batch: Batch, noise: Noise) -> Losses:
        config, td3 = self.config, self.config.td3_bc
        with torch.no_grad():
            smoothing = (td3.policy_noise * noise["backup"]).clamp(-td3.noise_clip, td3.noise_clip)
            following = (self.policy_target(batch.next_observations) + smoothing).clamp(-1.0, 1.0).unsqueeze(-2)
            value = self.targets.values(batch.next_observations, following).amin(1).squeeze(-1)
            target = batch.rewards + config.discount * batch.bootstrap * value
        predicted = self.critics(batch.observations, batch.actions.unsqueeze(-2)).squeeze(-1)
        q_loss = self.bellman_error(predicted, target)
        metrics = self.q_metrics(predicted, target) | {"loss/critic": q_loss.detach()}
        policy_loss = self.constant(0.0, q_loss)
        if self.policy_turn:
            own = self.policy(batch.observations)
            q = self.critics(batch.observations, own.unsqueeze(-2), frozen=True, subset=self.first).squeeze((1, -1))
            imitation = (own - batch.actions).square().mean((-2, -1))
            policy_loss = imitation - td3.alpha * q.mean(-1) / q.detach().abs().mean(-1)
            metrics |= {"loss/policy": policy_loss.detach(), "td3_bc/imitation": imitation.detach()}
        return Losses(policy_loss, q_loss, self.constant(0.0, q_loss), metrics)

    def followers(self) -> tuple[list[Tensor], list[Tensor]]:
        if not self.policy_turn:
            return [], []
        targets, followed = super().followers()
        return [*targets, *self.policy_target.parameters()], [*followed, *self.policy.parameters()]

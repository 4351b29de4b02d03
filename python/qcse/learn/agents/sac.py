"""Soft actor-critic (arXiv 1801.01290, 1812.05905) for S independent seeds; the base of all other algorithms."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from qcse_ext.nets.actor_critic import actor_loss, bellman_target
from qcse_ext.nets.tanh_gaussian import tanh_gaussian

from ...config.algorithms.base import Options
from ..buffer import Batch, Episode, ReplayBuffer
from ..nets import (
    Critics,
    DeterministicPolicy,
    GaussianPolicy,
    TanhGaussianPolicy,
    tanh_gaussian_log_prob,
)
from ..optimizer import make_adam, step_with_targets
from ..reward import IntrinsicReward
from ..side import SideStream
from ..streams import Streams

Noise = dict[str, Tensor]
Policy = TanhGaussianPolicy | GaussianPolicy | DeterministicPolicy


@dataclass
class Losses:
    """Losses per seed, [S] each. No parameter gets gradient from more than one of them."""

    policy: Tensor
    critic: Tensor
    multipliers: Tensor  # of the entropy temperature, and of what a subclass learns beside it
    metrics: dict[str, Tensor]  # [S] each, detached


class SAC:
    """An ensemble of critics, their targets, a tanh-Gaussian policy and a learnt temperature; all seeds in one set of
    tensors.

    One update is: `noise = agent.draw_noise(streams, B)`, `agent.update(batch, noise)`. It reads nothing back to
    the host. All losses are taken at the parameters before the update, then all parameters move: those of policy and
    temperature only where it is their turn, which the host's count of updates decides.

    Args:
        state_dim, action_dim: D and A.
        config: the run's options.
        streams: random streams of the S seeds; 'initialisation' is used here.
    """

    has_temperature = True  # an algorithm whose policy is not rewarded for its entropy has none to learn
    entropy_per_dimension = -1.0  # what the temperature aims at, unless `target_entropy` says otherwise

    def __init__(self, state_dim: int, action_dim: int, config: Options, streams: Streams) -> None:
        self.config = config
        self.action_dim = action_dim
        self.seeds, self.device = len(streams), streams.device
        self.side = SideStream(streams.device)
        generators, net = streams.generators("initialisation"), config.net
        self.policy: Policy = self.make_policy(state_dim, generators)
        self.critics = Critics(
            state_dim, action_dim, net.critic_hidden, generators, net.critics, net.orthogonal_init,
            net.critic_layer_norm, config.precision == "bf16",
        )  # fmt: skip
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.zeros(self.seeds, device=self.device))
        default = self.entropy_per_dimension * action_dim
        self.target_entropy = default if config.target_entropy is None else config.target_entropy
        self.updates = 0
        self._constants: dict[tuple[float, tuple[int, ...], torch.dtype], Tensor] = {}
        self.optimizer = make_adam(self.parameter_groups(), self.device)

    # What an algorithm is made of; subclasses change these.

    def make_policy(self, state_dim: int, generators: list[torch.Generator]) -> Policy:
        net = self.config.net
        return TanhGaussianPolicy(
            state_dim, self.action_dim, net.policy_hidden, generators, net.orthogonal_init, net.policy_layer_norm
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        config, temperature = self.config, [self.log_temperature] if self.has_temperature else []
        return [
            {"params": [*self.policy.parameters(), *temperature], "lr": config.policy_lr},
            {"params": list(self.critics.parameters()), "lr": config.critic_lr},
        ]

    def noise_shapes(self, batch_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (law, shape without the seed dimension) of every random number of one update."""
        one = (batch_size, 1, self.action_dim)
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {"policy": ("normal", one), "backup": ("normal", one)}
        if self.config.critic_subset is not None:
            shapes["subset"] = ("uniform", (self.critics.members,))
        return shapes

    def losses(self, batch: Batch, noise: Noise) -> Losses:
        """All losses of one update at the current parameters; 0 for policy and temperature unless it is their turn."""
        turn = self.policy_turn
        temperature = self.log_temperature.detach().exp()
        policy_loss = temperature_loss = self.constant(0.0, temperature)
        of_policy: dict[str, Tensor] = {}
        # The policy's loss and the critics' need the policy's output and nothing else of each other. Autograd takes
        # each back on the stream on which it came.
        with self.side.fork(), torch.set_grad_enabled(turn):
            mean, log_std = self.policy(batch.observations)
        self.side.join()
        if turn:
            with self.side.fork():
                actions, log_prob = tanh_gaussian(mean, log_std, noise["policy"])
                log_prob = log_prob.squeeze(-1)
                policy_loss, mean_log_prob = self.policy_loss(batch, mean, log_std, actions, log_prob, temperature)
                temperature_loss = self.log_temperature * -(log_prob.detach() + self.target_entropy).mean(-1)
                of_policy = {
                    "loss/policy": policy_loss.detach(),
                    "loss/temperature": temperature_loss.detach(),
                    "policy/entropy": -mean_log_prob,
                }
        critic_loss, multiplier_loss, metrics = self.critic_loss(batch, noise, mean, log_std, temperature)
        self.side.join()
        metrics |= {"loss/critic": critic_loss.detach(), "policy/temperature": temperature} | of_policy
        return Losses(policy_loss, critic_loss, temperature_loss + multiplier_loss, metrics)

    def policy_loss(
        self, batch: Batch, mean: Tensor, log_std: Tensor, actions: Tensor, log_prob: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """E[temperature * log pi - Q], Q the least or the mean of the ensemble's, [S]; and E[log pi] [S], detached."""
        if self.updates < self.config.behaviour_cloning_steps:
            gain = tanh_gaussian_log_prob(mean, log_std, batch.actions)
            return (temperature.unsqueeze(-1) * log_prob - gain).mean(-1), log_prob.detach().mean(-1)
        q = self.critics(batch.observations, actions, frozen=True).squeeze(-1)
        return actor_loss(q, log_prob, temperature, self.config.policy_value == "min")

    def critic_loss(
        self, batch: Batch, noise: Noise, mean: Tensor, log_std: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Squared Bellman error summed over the critics [S], loss of further multipliers [S], metrics."""
        predicted = self.critics(batch.observations, batch.actions.unsqueeze(-2)).squeeze(-1)
        with torch.no_grad():
            next_mean, next_log_std = self.policy(batch.next_observations)
            target = self.bellman_target(batch, next_mean, next_log_std, noise, temperature)
        error = self.bellman_error(predicted, target)
        return error, self.constant(0.0, error), self.q_metrics(predicted, target)

    def returns_of(
        self, rewards: NDArray[np.float32], episode_end: NDArray[np.bool_], bootstrap: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """Monte-Carlo returns [N] of successive transitions, [N] each; None: this algorithm does not look at them."""
        return None

    def prepare(self, batch: Batch, online: bool) -> None:
        """Change what a batch holds before an update of the given phase, in place."""

    def episode_end(self, episode: Episode, buffer: ReplayBuffer, reward: IntrinsicReward) -> None:
        """Called when an online episode has ended and its last transition lies in the buffer."""

    @property
    def variant(self) -> tuple[bool, ...]:
        """What the host decides about the next update: where it is equal, two updates do the same operations."""
        return self.online, self.policy_turn, self.updates < self.config.behaviour_cloning_steps

    # Shared pieces.

    @property
    def online(self) -> bool:
        """Whether the next update is one of the online phase; an offline step is one update."""
        return self.updates >= self.config.offline_steps

    @property
    def policy_turn(self) -> bool:
        """Whether the next update moves the policy, and what moves along with it: each `policy_every`-th of a phase."""
        every = self.config.policy_every or self.config.updates_per_step
        done = self.updates - self.config.offline_steps if self.online else self.updates
        return (done + 1) % every == 0

    def constant(self, value: float, like: Tensor) -> Tensor:
        """A tensor of this number and of the shape and dtype of another, [...]; made once, and never to be changed."""
        key = value, tuple(like.shape), like.dtype
        if key not in self._constants:
            self._constants[key] = torch.full_like(like, value, requires_grad=False)
        return self._constants[key]

    def subset(self, noise: Noise) -> Tensor | None:
        """The `critic_subset` members that this update draws for each seed, without replacement, [S, K]; None: all."""
        count = self.config.critic_subset
        return None if count is None else noise["subset"].argsort(-1)[:, :count]

    def bellman_target(
        self, batch: Batch, next_mean: Tensor, next_log_std: Tensor, noise: Noise, temperature: Tensor
    ) -> Tensor:
        """r + gamma * bootstrap * min_e Q'_e(s', a'), e over this update's members; [S, B].

        The noise 'backup' draws n actions a' per state; the one with the best min_e Q' is taken (n = 1: plain backup).
        """
        actions, log_prob = tanh_gaussian(next_mean, next_log_std, noise["backup"])
        values = self.targets.values(batch.next_observations, actions, self.subset(noise))
        config = self.config
        return bellman_target(
            values, log_prob, batch.rewards, batch.bootstrap, temperature, config.discount, config.entropy_backup
        )

    @staticmethod
    def bellman_error(predicted: Tensor, target: Tensor) -> Tensor:
        """predicted [S, E, B], target [S, B] -> mean squared error summed over the critics, [S]."""
        return F.mse_loss(predicted, target.unsqueeze(1).expand_as(predicted), reduction="none").mean(-1).sum(-1)

    @staticmethod
    def q_metrics(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Means [S] of predicted [S, E, B] and target [S, B]."""
        return {"q/data": predicted.detach().mean((-2, -1)), "q/target": target.mean(-1)}

    def draw_noise(self, streams: Streams, batch_size: int) -> Noise:
        """Every random number of one update, from the 'update' stream."""
        return streams.draw("update", self.noise_shapes(batch_size))

    def update(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """One gradient step of everything; returns metrics [S] on the device."""
        losses = self.losses(batch, noise)
        self.optimizer.zero_grad(set_to_none=True)
        learnt = [loss for loss in (losses.policy, losses.critic, losses.multipliers) if loss.requires_grad]
        torch.autograd.backward(learnt, [self.constant(1.0, loss) for loss in learnt])  # joins what it has forked
        batch.settle()  # the bonus reads what the step changes
        step_with_targets(self.optimizer, *self.followers(), self.config.target_rate)
        self.updates += 1
        return losses.metrics

    def followers(self) -> tuple[list[Tensor], list[Tensor]]:
        """The targets' parameters [...] that move at this update, and those [...] that they follow."""
        return list(self.targets.parameters()), list(self.critics.parameters())

    # Use.

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor | None = None) -> Tensor:
        """observations [S, B, D] -> actions [S, B, A]: the mode, or with noise [S, B, A] one that explores."""
        return self.policy.mode(observations) if noise is None else self.policy.explore(observations, noise)

    @torch.no_grad()
    def min_q(self, observations: Tensor, actions: Tensor, critics: Critics | None = None) -> Tensor:
        """min_e Q_e(s, a) of the current critics, or of those given; [S, B]."""
        critics = self.critics if critics is None else critics
        return critics.values(observations, actions.unsqueeze(-2)).amin(1).squeeze(-1)

    def modules(self) -> dict[str, nn.Module]:
        return {"policy": self.policy, "critics": self.critics, "targets": self.targets}

    def multipliers(self) -> dict[str, nn.Parameter]:
        """Learnt scalars [S] beside the networks."""
        return {"log_temperature": self.log_temperature} if self.has_temperature else {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": {name: module.state_dict() for name, module in self.modules().items()},
            "multipliers": {name: value.detach().clone() for name, value in self.multipliers().items()},
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, module in self.modules().items():
            module.load_state_dict(state["modules"][name])
        for name, value in self.multipliers().items():
            value.copy_(state["multipliers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]

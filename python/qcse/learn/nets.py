"""Policies and critics whose every parameter has a leading seed dimension, evaluated as batched products.

Shapes: S seeds, E ensemble members, B states, n actions per state, D and A the sizes of a state and an action.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcse_ext.nets.actor_critic import gaussian_head
from qcse_ext.nets.critic import critic_mlp, critic_values
from qcse_ext.nets.mlp import Norm, mlp

from .streams import Generators

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class BatchedMLP(nn.Module):
    """M independent fully connected ReLU networks, evaluated together; weights [M, in, out], biases [M, 1, out].

    Args:
        sizes: input size, hidden sizes, output size.
        generators: one generator per seed; the M = S * members networks are drawn seed by seed, so that the
            weights of seed s depend on its own generator alone. They are moved to the generators' device, which for
            those of `Streams` may be another than where they draw.
        members: networks per seed.
        orthogonal: orthogonal weights with gain sqrt(2) and zero biases in every layer. Otherwise
            torch.nn.Linear's uniform law, and Xavier's with gain 0.01 for the weights of the last layer (what
            public CQL code does).
        layer_norm: normalise each hidden layer before its ReLU, with learnt scale and shift, [M, 1, width] each.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        members: int = 1,
        orthogonal: bool = False,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.norm_scales = nn.ParameterList()
        self.norm_shifts = nn.ParameterList()
        layers, device = list(itertools.pairwise(sizes)), device_of(generators)
        nets = [
            [_draw_linear(i, o, n + 1 == len(layers), orthogonal, g) for n, (i, o) in enumerate(layers)]
            for g in generators
            for _ in range(members)
        ]
        for layer in range(len(layers)):
            self.weights.append(nn.Parameter(torch.stack([net[layer][0] for net in nets]).to(device)))
            self.biases.append(nn.Parameter(torch.stack([net[layer][1] for net in nets]).to(device)))
            if layer_norm and layer + 1 < len(layers):
                self.norm_scales.append(nn.Parameter(torch.ones_like(self.biases[-1])))
                self.norm_shifts.append(nn.Parameter(torch.zeros_like(self.biases[-1])))

    def layers(self, frozen: bool = False) -> tuple[list[Tensor], list[Tensor], list[Norm]]:
        """Weights [M, in, out] and biases [M, 1, out] of every layer, scale and shift [M, 1, width] of the hidden
        layers' norms where there are any.

        `frozen`: detached, so that gradient flows to the input only.
        """

        def take(parameters: nn.ParameterList) -> list[Tensor]:
            return [p.detach() for p in parameters] if frozen else list(parameters)

        norms = list(zip(take(self.norm_scales), take(self.norm_shifts), strict=True))
        return take(self.weights), take(self.biases), norms

    def forward(self, x: Tensor) -> Tensor:
        """[M, rows, in] -> [M, rows, out]."""
        weights, biases, norms = self.layers()
        return mlp(x, weights, biases, norms=norms)


def device_of(generators: Sequence[torch.Generator]) -> torch.device:
    """Where what they draw belongs."""
    return generators.device if isinstance(generators, Generators) else generators[0].device


def _draw_linear(
    fan_in: int, fan_out: int, last: bool, orthogonal: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    weight = torch.empty(fan_out, fan_in, device=generator.device)
    bias = torch.zeros(1, fan_out, device=generator.device)
    if orthogonal:
        nn.init.orthogonal_(weight, math.sqrt(2.0), generator=generator)
    else:
        bound = 1.0 / math.sqrt(fan_in)
        if last:
            nn.init.xavier_uniform_(weight, 1e-2, generator=generator)
        else:
            weight.uniform_(-bound, bound, generator=generator)
        bias.uniform_(-bound, bound, generator=generator)
    return weight.t().contiguous(), bias


class TanhGaussianPolicy(nn.Module):
    """pi(a|s): tanh of a diagonal Gaussian whose mean and log standard deviation are one network's outputs.

    log_std = clamp(multiplier * output + offset, -20, 2), multiplier and offset being learnt scalars per seed.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generators: Sequence[torch.Generator],
        orthogonal: bool = False,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.net = BatchedMLP([state_dim, *hidden, 2 * action_dim], generators, 1, orthogonal, layer_norm)
        shape, device = (len(generators), 1, 1), device_of(generators)
        self.log_std_multiplier = nn.Parameter(torch.full(shape, 1.0, device=device))
        self.log_std_offset = nn.Parameter(torch.full(shape, -1.0, device=device))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states [S, B, D] -> mean and log_std before the tanh, [S, B, A] each."""
        raw = self.net(states)
        return gaussian_head(raw, self.log_std_multiplier, self.log_std_offset, LOG_STD_MIN, LOG_STD_MAX)

    def mode(self, states: Tensor) -> Tensor:
        """The deterministic action tanh(mean), [S, B, A]."""
        return torch.tanh(self(states)[0])

    def explore(self, states: Tensor, noise: Tensor) -> Tensor:
        """A sample, [S, B, A], from standard normal noise [S, B, A]."""
        mean, log_std = self.forward(states)
        return torch.tanh(mean + log_std.exp() * noise)


class GaussianPolicy(nn.Module):
    """pi(a|s): a diagonal Gaussian whose log standard deviation is learnt but the same in all states.

    The density is that of the Gaussian; actions are cut to [-1, 1] when they are taken.

    Args:
        bounded: the mean passes through a tanh.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generators: Sequence[torch.Generator],
        orthogonal: bool = False,
        layer_norm: bool = False,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        self.net = BatchedMLP([state_dim, *hidden, action_dim], generators, 1, orthogonal, layer_norm)
        self.log_std = nn.Parameter(torch.zeros(len(generators), 1, action_dim, device=device_of(generators)))
        self.bounded = bounded

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states [S, B, D] -> mean [S, B, A] and log_std [S, 1, A]."""
        mean = self.net(states)
        return torch.tanh(mean) if self.bounded else mean, self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def mode(self, states: Tensor) -> Tensor:
        """The mean, cut to [-1, 1], [S, B, A]."""
        return self.forward(states)[0].clamp(-1.0, 1.0)

    def explore(self, states: Tensor, noise: Tensor) -> Tensor:
        """A sample, cut to [-1, 1], [S, B, A], from standard normal noise [S, B, A]."""
        mean, log_std = self.forward(states)
        return (mean + log_std.exp() * noise).clamp(-1.0, 1.0)


class DeterministicPolicy(nn.Module):
    """a = tanh of a network's output.

    Args:
        exploration_noise: standard deviation of the Gaussian noise that `explore` adds.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generators: Sequence[torch.Generator],
        orthogonal: bool = False,
        layer_norm: bool = False,
        exploration_noise: float = 0.1,
    ) -> None:
        super().__init__()
        self.net = BatchedMLP([state_dim, *hidden, action_dim], generators, 1, orthogonal, layer_norm)
        self.exploration_noise = exploration_noise

    def forward(self, states: Tensor) -> Tensor:
        """states [S, B, D] -> actions [S, B, A]."""
        return torch.tanh(self.net(states))

    def mode(self, states: Tensor) -> Tensor:
        """The action, [S, B, A]."""
        return self.forward(states)

    def explore(self, states: Tensor, noise: Tensor) -> Tensor:
        """The action plus scaled noise, cut to [-1, 1], [S, B, A]; noise standard normal, [S, B, A]."""
        return (self.forward(states) + self.exploration_noise * noise).clamp(-1.0, 1.0)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-density of actions [S, B, A] under the diagonal Gaussian; [S, B]."""
    noise = (actions - mean) * torch.exp(-log_std)
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def tanh_gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-density of given actions [S, B, A], which are kept 1e-6 inside the open interval; [S, B]."""
    limit = 1.0 - 1e-6
    before = torch.atanh(actions.clamp(-limit, limit))
    noise = (before - mean) * torch.exp(-log_std)
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    log_prob = log_prob - 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
    return log_prob.sum(-1)


class Critics(nn.Module):
    """E Q-functions per seed, Q_e(s, a), evaluated in one batched product.

    `bf16`: products between hidden layers are taken of numbers rounded to bfloat16; float32 inputs only.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generators: Sequence[torch.Generator],
        members: int = 2,
        orthogonal: bool = False,
        layer_norm: bool = False,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.members, self.bf16 = members, bf16
        self.net = BatchedMLP([state_dim + action_dim, *hidden, 1], generators, members, orthogonal, layer_norm)

    def forward(self, states: Tensor, actions: Tensor, frozen: bool = False, subset: Tensor | None = None) -> Tensor:
        """states [S, B, D], actions [S, B, n, A] -> [S, E, B, n].

        Args:
            frozen: no gradient to the parameters.
            subset: int64 numbers [S, K] of the members to evaluate; the result is [S, K, B, n].
        """
        weights, biases, norms = self.net.layers(frozen)
        return critic_mlp(states, actions, weights, biases, self.bf16, norms, subset)

    def values(self, states: Tensor, actions: Tensor, subset: Tensor | None = None) -> Tensor:
        """`forward` without a gradient, [S, E, B, n]."""
        weights, biases, norms = self.net.layers()
        return critic_values(states, actions, weights, biases, self.bf16, norms, subset)

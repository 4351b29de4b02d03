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

from qcse_ext import critic


class BatchedMLP(nn.Module):
    """M independent fully connected ReLU networks, evaluated together; weights [M, in, out], biases [M, 1, out].

    Args:
        sizes: input size, hidden sizes, output size.
        generators: one generator per seed; the M = S * members networks are drawn seed by seed, so that the
            weights of seed s depend on its own generator alone.
        members: networks per seed.
        orthogonal: orthogonal weights with gain sqrt(2) and zero biases in every layer. Otherwise
            torch.nn.Linear's uniform law, and Xavier's with gain 0.01 for the weights of the last layer (what
            public CQL code does).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        members: int = 1,
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        layers = list(itertools.pairwise(sizes))
        nets = [
            [_draw_linear(i, o, n + 1 == len(layers), orthogonal, g) for n, (i, o) in enumerate(layers)]
            for g in generators
            for _ in range(members)
        ]
        for layer in range(len(layers)):
            self.weights.append(nn.Parameter(torch.stack([net[layer][0] for net in nets])))
            self.biases.append(nn.Parameter(torch.stack([net[layer][1] for net in nets])))

    def layers(self, frozen: bool = False) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of each layer; detached where `frozen`, so that gradient flows to the input only."""
        pairs = zip(self.weights, self.biases, strict=True)
        return [(w.detach(), b.detach()) if frozen else (w, b) for w, b in pairs]

    def forward(self, x: Tensor) -> Tensor:
        """[M, rows, in] -> [M, rows, out]."""
        return run_layers(x, self.layers())


def run_layers(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Affine layers with a ReLU between each two; x [M, rows, in]."""
    for index, (weight, bias) in enumerate(layers):
        x = torch.baddbmm(bias, x, weight)
        if index + 1 < len(layers):
            x = F.relu_(x)  # in place: the gradient needs the output alone
    return x


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

    LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generators: Sequence[torch.Generator],
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.net = BatchedMLP([state_dim, *hidden, 2 * action_dim], generators, orthogonal=orthogonal)
        shape, device = (len(generators), 1, 1), generators[0].device
        self.log_std_multiplier = nn.Parameter(torch.full(shape, 1.0, device=device))
        self.log_std_offset = nn.Parameter(torch.full(shape, -1.0, device=device))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states [S, B, D] -> mean and log_std before the tanh, [S, B, A] each."""
        mean, log_std = self.net(states).split(self.action_dim, dim=-1)
        log_std = self.log_std_multiplier * log_std + self.log_std_offset
        return mean, log_std.clamp(self.LOG_STD_MIN, self.LOG_STD_MAX)

    def mode(self, states: Tensor) -> Tensor:
        """The deterministic action tanh(mean), [S, B, A]."""
        return torch.tanh(self(states)[0])


def tanh_gaussian_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised actions and their log-densities, from one evaluation of the policy per state.

    Args:
        mean, log_std: [S, B, A].
        noise: standard normal numbers, [S, B, n, A] for n actions per state.

    Returns:
        actions [S, B, n, A] in (-1, 1), log-densities [S, B, n].
    """
    mean, log_std = mean.unsqueeze(-2), log_std.unsqueeze(-2)
    before = mean + log_std.exp() * noise
    # log N(before) = -noise^2/2 - log_std - log(2 pi)/2, and log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)).
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    log_prob = log_prob - 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
    return torch.tanh(before), log_prob.sum(-1)


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

    The first layer is split in its state half and its action half, so that n actions of one state share the former.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generators: Sequence[torch.Generator],
        members: int = 2,
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        self.state_dim, self.members = state_dim, members
        self.net = BatchedMLP([state_dim + action_dim, *hidden, 1], generators, members, orthogonal)

    def forward(self, states: Tensor, actions: Tensor, frozen: bool = False) -> Tensor:
        """states [S, B, D], actions [S, B, n, A] -> [S, E, B, n]. `frozen`: no gradient to the parameters."""
        seeds, batch, count, action_dim = actions.shape
        (weight, bias), *rest = self.net.layers(frozen)
        state_part = torch.baddbmm(bias, self._repeat(states), weight[:, : self.state_dim])
        flat = self._repeat(actions.reshape(seeds, batch * count, action_dim))
        action_part = torch.bmm(flat, weight[:, self.state_dim :])
        width = weight.shape[-1]
        hidden = state_part.unsqueeze(2) + action_part.view(-1, batch, count, width)
        hidden = F.relu_(hidden).view(-1, batch * count, width)
        return run_layers(hidden, rest).view(seeds, self.members, batch, count)

    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        """`forward` without a gradient, fused on a CPU."""
        if critic.is_supported(states):
            return critic.critic_values(states, actions, list(self.net.weights), list(self.net.biases))
        with torch.no_grad():
            return self(states, actions)

    def _repeat(self, x: Tensor) -> Tensor:
        """[S, rows, c] -> [S * E, rows, c]"""
        seeds, rows, channels = x.shape
        return x.unsqueeze(1).expand(seeds, self.members, rows, channels).reshape(-1, rows, channels)

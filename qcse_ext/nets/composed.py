"""The networks' operators as batched matrix products, which are torch's, and what :mod:`qcse_ext.nets.pointwise` fuses
between them: what a GPU computes. Ordinary functions of tensors on any device; they check nothing and differentiate
nothing, ask for memory from torch's allocator alone, and read nothing back, so that a CUDA graph may hold them.

Layers are as in :func:`qcse_ext.nets.mlp.mlp`: 2 or more, weights ``[M, inputs, outputs]`` and biases ``[M, 1,
outputs]``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcse_ext.nets.pointwise import (
    action_relu,
    action_relu_backward_,
    bias_relu_,
    conservative_head,
    outer_relu_backward,
    relu_backward_,
    relu_dot,
)

__all__ = [
    "ConservativeStep",
    "conservative_backward",
    "conservative_forward",
    "conservative_loss",
    "critic_values",
    "kept_numbers",
    "mlp_backward",
    "mlp_forward",
    "pairs_of",
]

_ALIGNED = 64  # numbers between which the kept activations of a layer begin: whole vectors

# A product has a block for each tile of its result, about 64 x 64, however much it sums. So many keep a large GPU busy;
# the sum over many rows of few small results is divided until there are as many, but not below so many rows.
_TILE, _BLOCKS, _FEWEST_ROWS = 64, 512, 256


def kept_numbers(nets: int, rows: int, weights: Sequence[Tensor]) -> int:
    """How many numbers :func:`mlp_forward` keeps of layers ``[M, inputs, outputs]``."""
    return sum(_padded(nets * rows * w.shape[-1]) for w in weights[:-1])


def _padded(count: int) -> int:
    return (count + _ALIGNED - 1) // _ALIGNED * _ALIGNED


def _hidden_layers(kept: Tensor, nets: int, rows: int, weights: Sequence[Tensor]) -> list[Tensor]:
    """What is kept of each hidden layer [M, R, width], views: activations, but the last one's product where
    :func:`relu_dot` takes it."""
    layers, at = [], 0
    for w in weights[:-1]:
        width = w.shape[-1]
        layers.append(kept[at : at + nets * rows * width].view(nets, rows, width))
        at += _padded(nets * rows * width)
    return layers


# --- Networks ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mlp_forward(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], keep: bool = False
) -> tuple[Tensor, Tensor]:
    """x ``[M, R, inputs]`` through M networks.

    Returns:
        ``[M, R, outputs]``, and what the way back needs; empty unless `keep`.
    """
    nets, rows, _ = x.shape
    kept = x.new_empty(kept_numbers(nets, rows, weights) if keep else 0)
    hidden = _hidden_layers(kept, nets, rows, weights) if keep else None
    for layer, weight in enumerate(weights[:-1]):
        x = torch.bmm(x, weight) if hidden is None else torch.bmm(x, weight, out=hidden[layer])
        if layer + 2 == len(weights) and weights[-1].shape[-1] == 1:
            return relu_dot(x, biases[layer], weights[-1], biases[-1]), kept
        bias_relu_(x, biases[layer])
    return torch.baddbmm(biases[-1], x, weights[-1]), kept


@torch.no_grad()
def mlp_backward(
    y_grad: Tensor,
    x: Tensor,
    kept: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    input_wanted: bool,
    parameters_wanted: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradients of ``sum(y_grad * y)``, y ``[M, R, outputs]``, for what :func:`mlp_forward` was given and kept.

    Returns:
        Those of x ``[M, R, inputs]``, of the weights and of the biases; empty where they are not wanted.
    """
    nets, rows, _ = x.shape
    inputs = [x, *_hidden_layers(kept, nets, rows, weights)]
    grad, weight_grads, bias_grads = _last_layer(y_grad, inputs[-1], biases[-2], weights[-1], parameters_wanted)
    for layer in range(len(weights) - 2, -1, -1):
        if parameters_wanted:
            weight_grads.insert(0, _sum_over_rows(inputs[layer], grad))
        if layer > 0:
            grad = torch.bmm(grad, weights[layer].mT)
            _mask_(grad, inputs[layer], bias_grads, parameters_wanted)
    x_grad = torch.bmm(grad, weights[0].mT) if input_wanted else x.new_empty(0)
    return x_grad, weight_grads, bias_grads


def _last_layer(
    y_grad: Tensor, hidden: Tensor, bias: Tensor, weight: Tensor, parameters_wanted: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradient in front of the last hidden layer's ReLU [M, R, width]; those of the last weight; of the last two
    biases. `hidden` is what is kept of that layer, `bias` is its own."""
    if weight.shape[-1] == 1:
        grad, bias_grad, weight_grad, last = outer_relu_backward(
            y_grad.contiguous(), hidden, bias, weight, None, parameters_wanted
        )
        return grad, [weight_grad] if parameters_wanted else [], [bias_grad, last] if parameters_wanted else []
    weight_grads = [_sum_over_rows(hidden, y_grad)] if parameters_wanted else []
    bias_grads = [y_grad.sum(1, keepdim=True)] if parameters_wanted else []
    grad = torch.bmm(y_grad, weight.mT)
    _mask_(grad, hidden, bias_grads, parameters_wanted)
    return grad, weight_grads, bias_grads


def _mask_(grad: Tensor, hidden: Tensor, bias_grads: list[Tensor], parameters_wanted: bool) -> None:
    if parameters_wanted:
        bias_grads.insert(0, relu_backward_(grad, hidden))
    else:
        torch.ops.aten.threshold_backward.grad_input(grad, hidden, 0.0, grad_input=grad)


def _sum_over_rows(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a layer's weight: x ``[M, R, inputs]``, grad ``[M, R, outputs]``, the result ``[M, inputs,
    outputs]``."""
    nets, rows, inputs = x.shape
    outputs = grad.shape[-1]
    blocks = nets * math.ceil(inputs / _TILE) * math.ceil(outputs / _TILE)
    parts = 1
    while blocks * parts < _BLOCKS and rows % (2 * parts) == 0 and rows // (2 * parts) >= _FEWEST_ROWS:
        parts *= 2
    if parts == 1:
        return torch.bmm(x.mT, grad)
    x, grad = (t.reshape(nets * parts, rows // parts, -1) for t in (x, grad))
    return torch.bmm(x.mT, grad).view(nets, parts, inputs, outputs).sum(1)


# --- Critics ----------------------------------------------------------------------------------------------------------


def pairs_of(states: Tensor, actions: Tensor, members: int) -> Tensor:
    """Each state with each of its actions, for each of a seed's critics, in one copy.

    Args:
        states: ``[S, B, D]``.
        actions: ``[S, B, n, A]``.
        members: E.

    Returns:
        ``[S * E, B * n, D + A]``.
    """
    seeds, batch, count, _ = actions.shape
    if count == 1:  # four dimensions: torch then needs one launch
        parts = [x.unsqueeze(1).expand(-1, members, -1, -1) for x in (states, actions.squeeze(2))]
        return torch.cat(parts, -1).view(seeds * members, batch, -1)
    parts = [
        states[:, None, :, None].expand(-1, members, -1, count, -1),
        actions.unsqueeze(1).expand(-1, members, -1, -1, -1),
    ]
    return torch.cat(parts, -1).view(seeds * members, batch * count, -1)


def _for_each_member(states: Tensor, members: int) -> Tensor:
    """[S * E, B, D]: a view where it is one, otherwise a copy."""
    seeds = len(states)
    if seeds > 1 and members > 1:
        return torch.stack([states] * members, 1).flatten(0, 1)
    return states.expand(seeds * members, -1, -1)


def _first_layer(states: Tensor, actions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What stands behind the first ReLU, [S * E, B * n, width], of states [S * E, B, D], actions [S, B, n, A]."""
    dim = states.shape[-1]
    return action_relu(actions, weight[:, dim:], torch.bmm(states, weight[:, :dim]), bias)


def _values(hidden: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The layers behind the first, whose activations are given: Q [S * E, B * n, 1]; and of each hidden layer its
    activations, but of the last one, if it is not the first, the product without bias and ReLU."""
    kept = [hidden]
    last = len(weights) - 1
    for layer in range(1, last):
        x = torch.bmm(kept[-1], weights[layer])
        kept.append(x)
        if layer < last - 1:
            bias_relu_(x, biases[layer])
    return relu_dot(kept[-1], _bias_behind(biases), weights[last], biases[last]), kept


def _bias_behind(biases: Sequence[Tensor]) -> Tensor | None:
    """The bias that what _values keeps of the last hidden layer lacks."""
    return biases[-2] if len(biases) > 2 else None


@torch.no_grad()
def critic_values(states: Tensor, actions: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Q_e(s, a): states ``[S, B, D]``, actions ``[S, B, n, A]``, the result ``[S, E, B, n]``."""
    seeds, batch, count, _ = actions.shape
    members = weights[0].shape[0] // seeds
    if count == 1:  # nothing to share: the whole first layer is one product
        q = mlp_forward(pairs_of(states, actions, members), weights, biases)[0]
    else:
        hidden = _first_layer(_for_each_member(states, members), actions, weights[0], biases[0])
        q = _values(hidden, weights, biases)[0]
    return q.view(seeds, members, batch, count)


@dataclass
class ConservativeStep:
    """What the way back of the conservative loss needs of the way forward."""

    q_grad: Tensor  # [S, E, B, 1 + 3n], at a gradient of the loss of 1
    states: Tensor  # [S * E, B, D]
    actions: Tensor  # [S, B, 1 + 3n, A]
    hidden: list[Tensor]  # of each hidden layer [S * E, B (1 + 3n), width], as _values keeps them

    def tensors(self) -> list[Tensor]:
        """All of them, in order; the last is ``[S * E, B (1 + 3n), width]``."""
        return [self.q_grad, self.states, self.actions, *self.hidden]


@torch.no_grad()
def conservative_forward(
    states: Tensor,
    actions: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    offsets: Tensor,
    bound: Tensor,
    weight: Tensor,
    temperature: float,
    floor: float,
    include_data: bool,
) -> tuple[Tensor, Tensor, ConservativeStep]:
    """The loss of :func:`qcse_ext.nets.critic.conservative_loss` ``[S]``, its statistics ``[6, S, E]`` in the order of
    :func:`qcse_ext.nets.pointwise.conservative_head`, and what the way back needs. A floor of -inf is none."""
    seeds, batch, count, _ = actions.shape
    members = weights[0].shape[0] // seeds
    states, actions = _for_each_member(states, members), actions.contiguous()
    q, kept = _values(_first_layer(states, actions, weights[0], biases[0]), weights, biases)
    loss, statistics, q_grad = conservative_head(
        q.view(seeds, members, batch, count), target, offsets, bound, weight, temperature, floor, include_data
    )
    return loss, statistics, ConservativeStep(q_grad, states, actions, kept)


@torch.no_grad()
def conservative_backward(
    step: ConservativeStep, weights: Sequence[Tensor], biases: Sequence[Tensor], loss_grad: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of ``sum(loss_grad * loss)`` for weights ``[S * E, inputs, outputs]`` and biases ``[S * E, 1,
    outputs]``; loss_grad ``[S]``, None: 1."""
    nets, rows, _ = step.hidden[-1].shape
    grad, bias_grad, weight_grad, last = outer_relu_backward(
        step.q_grad.view(nets, rows, 1), step.hidden[-1], _bias_behind(biases), weights[-1], loss_grad, True
    )
    weight_grads, bias_grads = [weight_grad], [bias_grad, last]
    for layer in range(len(weights) - 2, 0, -1):
        below = step.hidden[layer - 1]
        weight_grads.insert(0, _sum_over_rows(below, grad))
        grad = torch.bmm(grad, weights[layer].mT)
        if layer > 1:
            bias_grads.insert(0, relu_backward_(grad, below))
    first_grad, first_bias = _first_layer_backward(step, weights[0], grad)
    if len(weights) > 2:
        bias_grads.insert(0, first_bias)
    return [first_grad, *weight_grads], bias_grads


def _first_layer_backward(step: ConservativeStep, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the first layer's weight and bias; grad [S * E, B * n, width]."""
    dim = step.states.shape[-1]
    weight_grad = weight.new_empty(weight.shape)
    state_grad, bias_grad = action_relu_backward_(weight_grad[:, dim:], grad, step.hidden[0], step.actions)
    torch.bmm(step.states.mT, state_grad, out=weight_grad[:, :dim])
    return weight_grad, bias_grad


def conservative_loss(
    states: Tensor,
    actions: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    offsets: Tensor,
    bound: Tensor,
    weight: Tensor,
    temperature: float,
    floor: float,
    include_data: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Statistics and gradients at once, as ``torch.ops.qcse.conservative_loss`` gives them; ``[6, S, E]``, those of the
    weights, those of the biases."""
    settings = (target, offsets, bound, weight, temperature, floor, include_data)
    _, statistics, step = conservative_forward(states, actions, weights, biases, *settings)
    return statistics, *conservative_backward(step, weights, biases, None)

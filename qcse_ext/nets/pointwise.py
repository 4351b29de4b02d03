"""What lies between the matrix products of fully connected ReLU networks, each in one pass over memory.

For devices whose products are a library's (CUDA: cuBLAS's): :mod:`qcse_ext.nets.composed` makes the networks'
operators of those products and of these. Each function computes its operator where one is registered for the device,
and its definition in plain torch elsewhere. M networks have R rows each; h is what a ReLU gave. Float32 and float64,
and nothing is empty. No gradient flows; a function whose name ends in an underscore changes its first argument. What a
function changes, and activations and their gradients, are contiguous.
"""

import math

import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.registration import register_fake, without_autograd

__all__ = [
    "action_relu",
    "action_relu_backward_",
    "bias_relu_",
    "conservative_head",
    "outer_relu_backward",
    "relu_backward_",
    "relu_dot",
]


# --- Forward ----------------------------------------------------------------------------------------------------------


def bias_relu_(x: Tensor, bias: Tensor) -> None:
    """``x = max(x + bias, 0)``.

    Args:
        x: ``[M, R, W]``.
        bias: ``[M, 1, W]``.
    """
    if registration.has_kernel("bias_relu_", x):
        torch.ops.qcse.bias_relu_(x, bias)
    else:
        x.add_(bias).relu_()


def action_relu(actions: Tensor, weight: Tensor, state: Tensor, bias: Tensor) -> Tensor:
    """``max(actions weight + (state + bias), 0)``: the first layer of critics, whose state's half n actions share.

    Args:
        actions: ``[F, B, n, A]``, of M / F networks that follow each other.
        weight: the actions' half, ``[M, A, W]``; networks may lie apart, as in a view of the whole weight.
        state: the product of the states and their half, ``[M, B, W]``, contiguous.
        bias: ``[M, 1, W]``.

    Returns:
        ``[M, B * n, W]``.
    """
    if registration.has_kernel("action_relu", state):
        h: Tensor = torch.ops.qcse.action_relu(actions, weight, state, bias)
        return h
    nets, batch, width = state.shape
    products = torch.bmm(_for_networks(actions, nets), weight).view(nets, batch, -1, width)
    return products.add_((state + bias).unsqueeze(2)).relu_().view(nets, -1, width)


def _for_networks(actions: Tensor, nets: int) -> Tensor:
    """``[F, B, n, A]`` as ``[M, B * n, A]``."""
    flat = actions.flatten(1, 2)
    return flat.unsqueeze(1).expand(-1, nets // len(flat), -1, -1).flatten(0, 1)


def relu_dot(x: Tensor, bias: Tensor | None, weight: Tensor, last_bias: Tensor) -> Tensor:
    """The last ReLU and the layer of one output behind it: ``max(x + bias, 0) weight + last_bias``.

    Args:
        x: ``[M, R, W]``.
        bias: ``[M, 1, W]``; None: 0.
        weight: ``[M, W, 1]``.
        last_bias: ``[M, 1, 1]``.

    Returns:
        ``[M, R, 1]``.
    """
    if registration.has_kernel("relu_dot", x):
        y: Tensor = torch.ops.qcse.relu_dot(x, bias, weight, last_bias)
        return y
    return torch.baddbmm(last_bias, _activated(x, bias), weight)


def _activated(x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.relu(x if bias is None else x + bias)


# --- Backward ---------------------------------------------------------------------------------------------------------


def relu_backward_(grad: Tensor, h: Tensor) -> Tensor:
    """``grad = 0`` where ``h <= 0``.

    Args:
        grad, h: ``[M, R, W]``.

    Returns:
        The sum of grad over the rows, ``[M, 1, W]``.
    """
    if registration.has_kernel("relu_backward_", grad):
        bias_grad: Tensor = torch.ops.qcse.relu_backward_(grad, h)
        return bias_grad
    return grad.masked_fill_(h <= 0, 0.0).sum(1, keepdim=True)


def action_relu_backward_(weight_grad: Tensor, grad: Tensor, h: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`action_relu`, of ``g = grad``, 0 where ``h <= 0``; g is written nowhere.

    Args:
        weight_grad: becomes that of the weight, ``[M, A, W]``; networks may lie apart, as in a view of the whole
            weight's.
        grad, h: ``[M, B * n, W]``.
        actions: ``[F, B, n, A]``, of M / F networks that follow each other.

    Returns:
        The sum of g over the actions of a state, ``[M, B, W]``, and over all rows, ``[M, 1, W]``.
    """
    if registration.has_kernel("action_relu_backward_", grad):
        state_grad, bias_grad = torch.ops.qcse.action_relu_backward_(weight_grad, grad, h, actions)
        return state_grad, bias_grad
    g = grad.masked_fill(h <= 0, 0.0)
    torch.bmm(_for_networks(actions, len(g)).mT, g, out=weight_grad)
    state_grad = g.unflatten(1, actions.shape[1:3]).sum(2)
    return state_grad, state_grad.sum(1, keepdim=True)


def outer_relu_backward(
    y_grad: Tensor, x: Tensor, bias: Tensor | None, weight: Tensor, factor: Tensor | None, sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of :func:`relu_dot`: ``g = y_grad * factor``, ``grad = g * weight``, 0 where its h is.

    ``h = max(x + bias, 0)`` is computed again, which costs less than to have kept it.

    Args:
        y_grad: ``[M, R, 1]``.
        x: ``[M, R, W]``.
        bias: ``[M, 1, W]``; None: 0.
        weight: ``[M, W, 1]``.
        factor: ``[F]``, one for every M / F networks that follow each other; None: 1.
        sums: whether the parameters' gradients are wanted; otherwise they are empty.

    Returns:
        grad ``[M, R, W]``, its sum over the rows ``[M, 1, W]``, the gradients of the weight ``[M, W, 1]`` and of the
        layer's bias ``[M, 1, 1]``.
    """
    if registration.has_kernel("outer_relu_backward", x):
        results = torch.ops.qcse.outer_relu_backward(y_grad, x, bias, weight, factor, sums)
        return results[0], results[1], results[2], results[3]
    g, h = y_grad, _activated(x, bias)
    if factor is not None:
        g = g * factor.repeat_interleave(len(h) // len(factor)).view(-1, 1, 1)
    grad = (g * weight.mT).masked_fill_(h <= 0, 0.0)
    if not sums:
        bias_grad, weight_grad, last_bias_grad = _no_sums(h)
        return grad, bias_grad, weight_grad, last_bias_grad
    return grad, grad.sum(1, keepdim=True), torch.bmm(h.mT, g), g.sum(1, keepdim=True)


def _no_sums(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    width = h.shape[-1]
    return h.new_empty(0, 1, width), h.new_empty(0, width, 1), h.new_empty(0, 1, 1)


# --- The conservative loss --------------------------------------------------------------------------------------------


def conservative_head(
    q: Tensor,
    target: Tensor,
    offsets: Tensor,
    bound: Tensor,
    weight: Tensor,
    temperature: float,
    floor: float,
    include_data: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of :func:`qcse_ext.nets.critic.conservative_loss` and its gradient with respect to the critics' values.

    Args:
        q: ``[S, E, B, 1 + 3n]``.
        target, bound: ``[S, B]``.
        offsets: ``[S, B, 3n]``.
        weight: ``[S]``.
        temperature: above 0.
        floor: -inf: none.
        include_data: as there.

    Returns:
        loss ``[S]``; ``[6, S, E]``: error, gap, q_data, q_uniform, q_policy, bound_share; the gradient of the loss
        ``[S, E, B, 1 + 3n]``.
    """
    if registration.has_kernel("conservative_head", q):
        settings = (temperature, floor, include_data)
        loss, statistics, q_grad = torch.ops.qcse.conservative_head(q, target, offsets, bound, weight, *settings)
        return loss, statistics, q_grad
    count, batch = (q.shape[-1] - 1) // 3, q.shape[2]
    data, uniform, policy = q.split([1, count, 2 * count], dim=-1)
    bound, share = bound[:, None, :, None], weight[:, None, None, None] / batch
    values = torch.cat([uniform, torch.maximum(policy, bound)], dim=-1) + offsets.unsqueeze(1)
    if include_data:
        values = torch.cat([data, values], dim=-1)
    values = values / temperature
    total = torch.logsumexp(values, dim=-1, keepdim=True)
    difference, error = temperature * total - data, data - target[:, None, :, None]
    # torch's clamp passes the gradient where a number lies on the bound, and none of NaN.
    share = torch.where(difference >= floor, share, 0.0) if floor > -math.inf else share.expand_as(difference)
    of_values = share * (values - total).exp()
    of_data = 2.0 * error / batch - share
    if include_data:
        of_data = of_data + of_values[..., :1]
    of_uniform, of_policy = of_values.split([of_values.shape[-1] - 2 * count, 2 * count], dim=-1)
    # torch's maximum gives each of two equal values half of the gradient.
    of_policy = torch.where(policy == bound, of_policy / 2, of_policy).masked_fill(policy < bound, 0.0)
    means = [error.square(), difference.clamp(min=floor), data, uniform, policy, (policy < bound).to(q.dtype)]
    statistics = torch.stack([x.mean((-2, -1)) for x in means])
    loss = (statistics[0] + weight.unsqueeze(-1) * statistics[1]).sum(-1)
    return loss, statistics, torch.cat([of_data, of_uniform[..., -count:], of_policy], dim=-1)


# --- The kernels' shapes ----------------------------------------------------------------------------------------------

without_autograd(*__all__)


@register_fake("bias_relu_")
def _bias_relu_fake(x: Tensor, bias: Tensor) -> None:
    return None


@register_fake("action_relu")
def _action_relu_fake(actions: Tensor, weight: Tensor, state: Tensor, bias: Tensor) -> Tensor:
    nets, states, width = state.shape
    return state.new_empty(nets, states * actions.shape[2], width)


@register_fake("relu_dot")
def _relu_dot_fake(x: Tensor, bias: Tensor | None, weight: Tensor, last_bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], 1)


@register_fake("relu_backward_")
def _relu_backward_fake(grad: Tensor, h: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0], 1, grad.shape[2])


@register_fake("action_relu_backward_")
def _action_relu_backward_fake(weight_grad: Tensor, grad: Tensor, h: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    nets, _, width = grad.shape
    return grad.new_empty(nets, actions.shape[1], width), grad.new_empty(nets, 1, width)


@register_fake("outer_relu_backward")
def _outer_relu_backward_fake(
    y_grad: Tensor, x: Tensor, bias: Tensor | None, weight: Tensor, factor: Tensor | None, sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nets, _, width = x.shape
    some = (x.new_empty(nets, 1, width), x.new_empty(nets, width, 1), x.new_empty(nets, 1, 1))
    return x.new_empty(x.shape), *(some if sums else _no_sums(x))


@register_fake("conservative_head")
def _conservative_head_fake(
    q: Tensor, target: Tensor, offsets: Tensor, bound: Tensor, weight: Tensor, *_: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape[:1]), q.new_empty(6, *q.shape[:2]), q.new_empty(q.shape)

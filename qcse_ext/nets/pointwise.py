"""What lies between the matrix products of fully connected ReLU networks, each in one pass over memory.

For devices whose products are a library's (CUDA: cuBLAS's): :mod:`qcse_ext.nets.composed` makes the networks'
operators of those products and of these. Each function computes its operator where one is registered for the device,
and its definition in plain torch elsewhere. M networks have R rows each; h is what a ReLU gave. Float32 and float64,
and nothing is empty. No gradient flows; a function whose name ends in an underscore changes its first argument, which
is contiguous.
"""

import math

import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.registration import register_fake, without_autograd

__all__ = [
    "bias_relu_",
    "conservative_head",
    "outer_relu_backward",
    "relu_backward_",
    "relu_dot_",
    "state_relu_",
    "state_relu_backward_",
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


def state_relu_(x: Tensor, state: Tensor, bias: Tensor) -> None:
    """``x = max(x + (state + bias), 0)``: the first layer of critics, whose state's half n actions share.

    Args:
        x: the actions' half, ``[M, B, n, W]``.
        state: ``[M, B, W]``.
        bias: ``[M, 1, W]``.
    """
    if registration.has_kernel("state_relu_", x):
        torch.ops.qcse.state_relu_(x, state, bias)
    else:
        x.add_((state + bias).unsqueeze(2)).relu_()


def relu_dot_(x: Tensor, bias: Tensor | None, weight: Tensor, last_bias: Tensor, keep: bool) -> Tensor:
    """The last ReLU and the layer of one output behind it: ``h = max(x + bias, 0)``, returned ``h weight + last_bias``.

    Args:
        x: ``[M, R, W]``; h takes its place where that is to be kept, otherwise it stays.
        bias: ``[M, 1, W]``; None: 0.
        weight: ``[M, W, 1]``.
        last_bias: ``[M, 1, 1]``.
        keep: whether h is needed.

    Returns:
        ``[M, R, 1]``.
    """
    if registration.has_kernel("relu_dot_", x):
        y: Tensor = torch.ops.qcse.relu_dot_(x, bias, weight, last_bias, keep)
        return y
    h = torch.relu(x if bias is None else x + bias)
    if keep:
        x.copy_(h)
    return torch.baddbmm(last_bias, h, weight)


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


def state_relu_backward_(grad: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """``grad = 0`` where ``h <= 0``.

    Args:
        grad, h: ``[M, B, n, W]``.

    Returns:
        Its sum over the actions, ``[M, B, W]``, and over states and actions, ``[M, 1, W]``.
    """
    if registration.has_kernel("state_relu_backward_", grad):
        state_grad, bias_grad = torch.ops.qcse.state_relu_backward_(grad, h)
        return state_grad, bias_grad
    state_grad = grad.masked_fill_(h <= 0, 0.0).sum(2)
    return state_grad, state_grad.sum(1, keepdim=True)


def outer_relu_backward(
    y_grad: Tensor, h: Tensor, weight: Tensor, factor: Tensor | None, sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient behind a layer of one output: ``g = y_grad * factor``, ``grad = g * weight``, 0 where ``h <= 0``.

    Args:
        y_grad: ``[M, R, 1]``.
        h: ``[M, R, W]``.
        weight: ``[M, W, 1]``.
        factor: ``[F]``, one for every M / F networks that follow each other; None: 1.
        sums: whether the parameters' gradients are wanted; otherwise they are empty.

    Returns:
        grad ``[M, R, W]``, its sum over the rows ``[M, 1, W]``, the gradients of the weight ``[M, W, 1]`` and of the
        layer's bias ``[M, 1, 1]``.
    """
    if registration.has_kernel("outer_relu_backward", h):
        results = torch.ops.qcse.outer_relu_backward(y_grad, h, weight, factor, sums)
        return results[0], results[1], results[2], results[3]
    g = y_grad
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


@register_fake("state_relu_")
def _state_relu_fake(x: Tensor, state: Tensor, bias: Tensor) -> None:
    return None


@register_fake("relu_dot_")
def _relu_dot_fake(x: Tensor, bias: Tensor | None, weight: Tensor, last_bias: Tensor, keep: bool) -> Tensor:
    return x.new_empty(*x.shape[:2], 1)


@register_fake("relu_backward_")
def _relu_backward_fake(grad: Tensor, h: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0], 1, grad.shape[2])


@register_fake("state_relu_backward_")
def _state_relu_backward_fake(grad: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    nets, states, _, width = grad.shape
    return grad.new_empty(nets, states, width), grad.new_empty(nets, 1, width)


@register_fake("outer_relu_backward")
def _outer_relu_backward_fake(
    y_grad: Tensor, h: Tensor, weight: Tensor, factor: Tensor | None, sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nets, _, width = h.shape
    some = (h.new_empty(nets, 1, width), h.new_empty(nets, width, 1), h.new_empty(nets, 1, 1))
    return h.new_empty(h.shape), *(some if sums else _no_sums(h))


@register_fake("conservative_head")
def _conservative_head_fake(
    q: Tensor, target: Tensor, offsets: Tensor, bound: Tensor, weight: Tensor, *_: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape[:1]), q.new_empty(6, *q.shape[:2]), q.new_empty(q.shape)

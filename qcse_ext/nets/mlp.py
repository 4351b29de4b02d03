"""Fully connected ReLU networks on the CPU: many of equal shape at once, zeros left out, differentiable.

Behind a ReLU half of the numbers are zero. Rows are taken a few at a time through the layers, and a hidden unit that is
zero in all of them is not multiplied, on the way forward and back.
"""

from typing import Any, cast

import torch
from torch import Tensor

from qcse_ext.registration import (
    once_differentiable,
    refuse_forward_mode,
    register_fake,
    without_autograd,
)

__all__ = ["mlp"]


def mlp(x: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool = False) -> Tensor:
    """M independent networks ``h_{l+1} = relu(h_l W_l + b_l)``, without the ReLU behind the last layer.

    Gradients flow to x, weights and biases, once, backward; a forward-mode or second derivative raises, and so does a
    functorch transform. That of x, and those of the parameters together, are left out where none is asked for. A
    parameter's gradient needs an equal number of threads to have equal bits.

    Args:
        x: ``[M, rows, inputs]``, float32 or float64, on the CPU.
        weights: one ``[M, inputs, outputs]`` for each of 2 to 16 layers.
        biases: ``[M, 1, outputs]`` for each layer.
        bf16: round the factors of the products between hidden layers, forward and back, to bfloat16, and sum in
            float32 (float32 only; :func:`qcse_ext.nets.critic.has_bf16` tells whether the CPU can).

    Returns:
        ``[M, rows, outputs]``.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it. A derivative that is not
            offered was asked for.
    """
    refuse_forward_mode("mlp", x, weights, biases)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases)):
        return cast(Tensor, _Mlp.apply(x, bf16, len(weights), *weights, *biases))
    return cast(Tensor, torch.ops.qcse.mlp_forward(x, weights, biases, bf16, False)[0])


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bf16: bool, layers: int, *parameters: Tensor) -> Tensor:
        y, hidden = torch.ops.qcse.mlp_forward(x, parameters[:layers], parameters[layers:], bf16, True)
        ctx.save_for_backward(x, hidden, *parameters[:layers])
        ctx.bf16 = bf16
        return cast(Tensor, y)

    @staticmethod
    @once_differentiable("mlp")
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, *weights = ctx.saved_tensors
        x_wanted, parameters_wanted = ctx.needs_input_grad[0], any(ctx.needs_input_grad[3:])
        x_grad, weight_grads, bias_grads = torch.ops.qcse.mlp_backward(
            y_grad, x, hidden, weights, ctx.bf16, x_wanted, parameters_wanted
        )
        none = [None] * (2 * len(weights))
        return x_grad if x_wanted else None, None, None, *([*weight_grads, *bias_grads] or none)


# Gradients are _Mlp's.
without_autograd("mlp_forward", "mlp_backward")


@register_fake("mlp_forward")
def _mlp_forward_fake(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    nets, rows, _ = x.shape
    per_row = 1 + sum((w.shape[-1] + 31) // 32 * 32 for w in weights[:-1])
    hidden = x.new_empty(nets if keep else 0, (rows + 63) // 64, 64, per_row)  # csrc/mlp.h
    return x.new_empty(nets, rows, weights[-1].shape[-1]), hidden


@register_fake("mlp_backward")
def _mlp_backward_fake(
    y_grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    weights: list[Tensor],
    bf16: bool,
    input_wanted: bool,
    parameters_wanted: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    wanted = weights if parameters_wanted else []
    weight_grads = [w.new_empty(w.shape) for w in wanted]
    bias_grads = [w.new_empty(w.shape[0], 1, w.shape[2]) for w in wanted]
    return x.new_empty(x.shape if input_wanted else 0), weight_grads, bias_grads

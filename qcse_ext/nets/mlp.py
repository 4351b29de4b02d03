"""Fully connected ReLU networks, many of equal shape at once, differentiable.

Behind a ReLU half of the numbers are zero. The CPU's kernel takes rows a few at a time through the layers, and does not
multiply a hidden unit that is zero in all of them, on the way forward and back. On a GPU the products are cuBLAS's, and
what lies between them is fused (:mod:`qcse_ext.nets.composed`).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from qcse_ext import registration
from qcse_ext.arguments import expect, expect_float
from qcse_ext.nets import composed
from qcse_ext.registration import compose, once_differentiable, refuse_forward_mode, register_fake, without_autograd

__all__ = ["Norm", "mlp", "mlp_in_torch"]

Norm = tuple[Tensor, Tensor]  # scale and shift of a layer norm, [M, 1, width] each

MAX_LAYERS = 16  # that the kernels take; csrc/nets/mlp.h
NORM_EPSILON = 1e-6  # flax's, which the public code of RLPD and WSRL runs with


def mlp(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool = False, norms: Sequence[Norm] = ()
) -> Tensor:
    """M independent networks ``h_{l+1} = relu(norm(h_l W_l + b_l))``, without norm and ReLU behind the last layer.

    A kernel computes it where one is registered for the device, for 2 to 16 layers without norms, float32 or float64,
    and at least one number in x, on a GPU without `bf16`; :func:`mlp_in_torch` everything else.

    Gradients flow to x, weights, biases and norms. Through a kernel they do so once, backward: a second derivative
    raises, and so does a functorch transform of the gradient; the gradient of x, and those of the parameters together,
    are left out where none is asked for; a parameter's gradient needs an equal number of threads to have equal bits. A
    forward-mode derivative raises everywhere.

    Args:
        x: ``[M, rows, inputs]``.
        weights: one ``[M, inputs, outputs]`` for each layer.
        biases: ``[M, 1, outputs]`` for each layer.
        bf16: round the factors of the products between hidden layers, forward and back, to bfloat16, and sum in
            float32 (float32 only; :func:`qcse_ext.nets.critic.has_bf16` tells whether the CPU's kernel can).
        norms: scale and shift ``[M, 1, width]`` of each hidden layer's layer norm (arXiv 1607.06450); empty: no norm.

    Returns:
        ``[M, rows, outputs]``.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it. A derivative that is not
            offered was asked for.
    """
    refuse_forward_mode("mlp", x, weights, biases, norms)
    if not kernel_takes("mlp_forward", weights, norms, bf16, x):
        return mlp_in_torch(x, weights, biases, bf16, norms)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases)):
        return cast(Tensor, _Mlp.apply(x, bf16, len(weights), *weights, *biases))
    return cast(Tensor, torch.ops.qcse.mlp_forward(x, weights, biases, bf16, False)[0])


def kernel_takes(operator: str, weights: Sequence[Tensor], norms: Sequence[Norm], bf16: bool, *inputs: Tensor) -> bool:
    """Whether there is a kernel of this operator on networks that takes such layers, ``[M, inputs, outputs]`` each, and
    inputs, ``[...]``.

    What the CPU's kernels take; one for another device has to take the same, but on a GPU products of bfloat16 are left
    to torch: its TF32 is what there is for speed.
    """
    return not norms and _taken(weights, bf16, *inputs) and registration.has_kernel(operator, inputs[0])


def _taken(weights: Sequence[Tensor], bf16: bool, *inputs: Tensor) -> bool:
    return (
        2 <= len(weights) <= MAX_LAYERS
        and inputs[0].dtype in (torch.float32, torch.float64)
        and all(x.numel() > 0 for x in inputs)
        and not (bf16 and inputs[0].device.type == "cuda")
    )


def refuse_unless_taken(operator: str, weights: Sequence[Tensor], bf16: bool, *inputs: Tensor) -> None:
    """Raise a RuntimeError where a GPU's kernel is called directly with layers ``[M, inputs, outputs]`` or inputs
    ``[...]`` that are the definition's."""
    if not _taken(weights, bf16, *inputs):
        raise RuntimeError(
            f"qcse::{operator}: on a GPU it takes 2 to {MAX_LAYERS} layers, float32 or float64, inputs that are not "
            f"empty, and bf16=False; got {len(weights)} layers, {inputs[0].dtype}, shape {list(inputs[0].shape)}, "
            f"bf16={bf16}. qcse_ext.nets computes everything else by torch"
        )


# --- The definition ---------------------------------------------------------------------------------------------------


def mlp_in_torch(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool = False, norms: Sequence[Norm] = ()
) -> Tensor:
    """:func:`mlp` in plain torch, for any device, floating-point dtype, number of layers and rows."""
    _check("mlp", x, weights, biases, bf16, norms)
    x = torch.baddbmm(biases[0], x, weights[0])
    if len(weights) == 1:
        return x
    return later_layers(F.relu_(normalised(x, norms, 0)), weights, biases, bf16, norms)


def later_layers(
    hidden: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool, norms: Sequence[Norm]
) -> Tensor:
    """The layers behind the first, whose output ``[M, rows, width]``, behind norm and ReLU, is given."""
    last = len(weights) - 1
    for layer in range(1, last):
        weight, bias = weights[layer], biases[layer]
        if bf16:
            product = torch.baddbmm(bias.bfloat16(), hidden.bfloat16(), weight.bfloat16()).float()
        else:
            product = torch.baddbmm(bias, hidden, weight)
        hidden = F.relu_(normalised(product, norms, layer))  # in place: the gradient needs the output alone
    return torch.baddbmm(biases[last], hidden, weights[last])


def normalised(x: Tensor, norms: Sequence[Norm], layer: int) -> Tensor:
    """x ``[M, rows, width]`` behind the layer's norm; x itself where there are none."""
    if not norms:
        return x
    scale, shift = norms[layer]
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON), scale)


def _check(
    function: str,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bf16: bool = False,
    norms: Sequence[Norm] = (),
) -> None:
    expect_float(function, "x", x, "[networks, rows, inputs]")
    check_layers(function, ("x", x), x.shape[-1], weights, biases, bf16, norms)
    expect(function, "x", x, (weights[0].shape[0], *x.shape[1:]), ("x", x))


def check_layers(
    function: str,
    like: tuple[str, Tensor],
    inputs: int,
    weights: list[Tensor],
    biases: list[Tensor],
    bf16: bool,
    norms: Sequence[Norm],
) -> None:
    """Raise a RuntimeError that names what does not fit: layers ``[M, inputs, outputs]``, the first of `inputs`."""
    name, x = like
    if len(weights) < 1 or len(biases) != len(weights) or len(norms) not in (0, len(weights) - 1):
        raise RuntimeError(
            f"qcse_ext.{function}: weights and biases must be as many, 1 or more, and norms one fewer or none; got "
            f"{len(weights)}, {len(biases)} and {len(norms)}"
        )
    if bf16 and x.dtype != torch.float32:
        raise RuntimeError(f"qcse_ext.{function}: {name} must be float32 where bf16 is true")
    nets = weights[0].shape[0]
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        outputs = weight.shape[-1]
        expect(function, f"weights[{layer}]", weight, (nets, inputs, outputs), like)
        expect(function, f"biases[{layer}]", bias, (nets, 1, outputs), like)
        for part in norms[layer] if layer < len(norms) else ():
            expect(function, f"norms[{layer}]", part, (nets, 1, outputs), like)
        inputs = outputs


# --- The kernel's gradient and shapes ---------------------------------------------------------------------------------


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bf16: bool, layers: int, *parameters: Tensor) -> Tensor:
        y, hidden = torch.ops.qcse.mlp_forward(x, parameters[:layers], parameters[layers:], bf16, True)
        ctx.save_for_backward(x, hidden, *parameters)
        ctx.bf16, ctx.layers = bf16, layers
        return cast(Tensor, y)

    @staticmethod
    @once_differentiable("mlp")
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, *parameters = ctx.saved_tensors
        weights, biases = parameters[: ctx.layers], parameters[ctx.layers :]
        x_wanted, parameters_wanted = ctx.needs_input_grad[0], any(ctx.needs_input_grad[3:])
        x_grad, weight_grads, bias_grads = torch.ops.qcse.mlp_backward(
            y_grad, x, hidden, weights, biases, ctx.bf16, x_wanted, parameters_wanted
        )
        none = [None] * len(parameters)
        return x_grad if x_wanted else None, None, None, *([*weight_grads, *bias_grads] or none)


# Gradients are _Mlp's.
without_autograd("mlp_forward", "mlp_backward")


@register_fake("mlp_forward")
def _mlp_forward_fake(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    nets, rows, _ = x.shape
    y = x.new_empty(nets, rows, weights[-1].shape[-1])
    if x.device.type == "cuda":
        return y, x.new_empty(composed.kept_numbers(nets, rows, weights) if keep else 0)
    per_row = 1 + sum((w.shape[-1] + 31) // 32 * 32 for w in weights[:-1])
    hidden = x.new_empty(nets if keep else 0, (rows + 63) // 64, 64, per_row)  # csrc/nets/mlp.h
    return y, hidden


@register_fake("mlp_backward")
def _mlp_backward_fake(
    y_grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bf16: bool,
    input_wanted: bool,
    parameters_wanted: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    wanted = weights if parameters_wanted else []
    weight_grads = [w.new_empty(w.shape) for w in wanted]
    bias_grads = [w.new_empty(w.shape[0], 1, w.shape[2]) for w in wanted]
    return x.new_empty(x.shape if input_wanted else 0), weight_grads, bias_grads


# --- On a GPU ---------------------------------------------------------------------------------------------------------


def _mlp_forward_composed(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    refuse_unless_taken("mlp_forward", weights, bf16, x)
    _check("mlp", x, weights, biases)
    return composed.mlp_forward(x, weights, biases, keep)


def _mlp_backward_composed(
    y_grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bf16: bool,
    input_wanted: bool,
    parameters_wanted: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    refuse_unless_taken("mlp_backward", weights, bf16, x)
    nets, rows, _ = x.shape
    expect("mlp", "y_grad", y_grad, (nets, rows, weights[-1].shape[-1]), ("x", x))
    expect("mlp", "hidden", hidden, (composed.kept_numbers(nets, rows, weights),), ("x", x))
    return composed.mlp_backward(y_grad, x, hidden, weights, biases, input_wanted, parameters_wanted)


compose("mlp_forward", "CUDA", "bias_relu_", _mlp_forward_composed)
compose("mlp_backward", "CUDA", "bias_relu_", _mlp_backward_composed)

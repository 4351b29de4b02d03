"""Fully connected networks in plain torch, for the tests of the fused ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class RoundedProduct(torch.autograd.Function):
    """x w with all factors, forward and back, rounded to bfloat16; sums in float64."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = x.bfloat16().double(), weight.bfloat16().double()
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad = grad.bfloat16().double()
        return grad @ weight.mT, x.mT @ grad


def layers_in_torch(x: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool = False) -> Tensor:
    """x [M, rows, inputs] through M networks; with `bf16` products between hidden layers are rounded."""
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        between_hidden = 0 < layer < len(weights) - 1
        x = (RoundedProduct.apply(x, weight) if bf16 and between_hidden else x @ weight) + bias
        if layer + 1 < len(weights):
            x = x.relu()
    return x


def in_double(p: dict[str, object]) -> dict[str, object]:
    exact = {k: v.double() if isinstance(v, Tensor) else v for k, v in p.items()}
    return exact | {name: [t.detach().double() for t in p[name]] for name in ("weights", "biases")}


def error_of(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest relative error of a tensor's norm; infinite where it is not finite, or should vanish and does not."""
    errors = []
    for a, b in zip(got, want, strict=True):
        a, b = a.detach().double(), b.detach()
        error = float((a - b).norm() / b.norm()) if b.norm() > 0 else (0.0 if not a.any() else math.inf)
        errors.append(error if math.isfinite(error) else math.inf)
    return max(errors)

"""Reparameterised samples of a tanh-squashed Gaussian policy with their log-densities."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qcse_ext import registration
from qcse_ext.arguments import expect, expect_float
from qcse_ext.registration import once_differentiable, refuse_forward_mode, register_fake, without_autograd

__all__ = ["tanh_gaussian", "tanh_gaussian_in_torch"]


def tanh_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """n actions for each state, and their log-densities::

        u = mean + exp(log_std) * noise,  action = tanh(u)
        log_prob = sum over A of  -noise^2 / 2 - log_std - log(2 pi) / 2 - log(1 - tanh(u)^2)

    A kernel computes it in one pass where one is registered for the device, for float32 and float64 and at least one
    action; :func:`tanh_gaussian_in_torch` everything else.

    Gradients flow to mean and log_std, and none to noise. Through a kernel they do so once, backward: a second
    derivative raises, and so does a functorch transform of the gradient. A forward-mode derivative raises everywhere.

    Args:
        mean, log_std: ``[..., A]``.
        noise: standard normal numbers, ``[..., n, A]``.

    Returns:
        actions ``[..., n, A]`` in [-1, 1], log-densities ``[..., n]``.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it. A derivative that is not
            offered was asked for.

    Source:
        arXiv 1812.05905, appendix C.
    """
    refuse_forward_mode("tanh_gaussian", mean, log_std, noise)
    known = mean.dtype in (torch.float32, torch.float64) and noise.numel() > 0
    if not (known and registration.has_kernel("tanh_gaussian", mean)):
        return tanh_gaussian_in_torch(mean, log_std, noise)
    if torch.is_grad_enabled() and (mean.requires_grad or log_std.requires_grad):
        actions, log_prob = _TanhGaussian.apply(mean, log_std, noise)
    else:
        actions, log_prob = torch.ops.qcse.tanh_gaussian(mean, log_std, noise)
    return actions, log_prob


def tanh_gaussian_in_torch(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`tanh_gaussian` in plain torch: its definition, for any device and floating-point dtype."""
    expect_float("tanh_gaussian", "mean", mean, "[..., A]")
    expect("tanh_gaussian", "log_std", log_std, mean.shape, ("mean", mean))
    samples = noise.shape[-2] if noise.dim() > 1 else 0
    expect("tanh_gaussian", "noise", noise, (*mean.shape[:-1], samples, mean.shape[-1]), ("mean", mean))
    mean, log_std, noise = mean.unsqueeze(-2), log_std.unsqueeze(-2), noise.detach()
    before = mean + log_std.exp() * noise
    # log N(before) = -noise^2/2 - log_std - log(2 pi)/2, and log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)).
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    log_prob = log_prob - 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
    return torch.tanh(before), log_prob.sum(-1)


# --- The kernel's gradient and shapes ---------------------------------------------------------------------------------


class _TanhGaussian(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        actions, log_prob = torch.ops.qcse.tanh_gaussian(mean, log_std, noise)
        ctx.save_for_backward(actions, log_std, noise)
        return actions, log_prob

    @staticmethod
    @once_differentiable("tanh_gaussian")
    def backward(ctx: Any, action_grad: Tensor, log_prob_grad: Tensor) -> tuple[Tensor, Tensor, None]:
        mean_grad, log_std_grad = torch.ops.qcse.tanh_gaussian_backward(action_grad, log_prob_grad, *ctx.saved_tensors)
        return mean_grad, log_std_grad, None


# Gradients are _TanhGaussian's.
without_autograd("tanh_gaussian", "tanh_gaussian_backward")


@register_fake("tanh_gaussian")
def _tanh_gaussian_fake(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    return noise.new_empty(noise.shape), noise.new_empty(noise.shape[:-1])


@register_fake("tanh_gaussian_backward")
def _tanh_gaussian_backward_fake(
    action_grad: Tensor, log_prob_grad: Tensor, actions: Tensor, log_std: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    return log_std.new_empty(log_std.shape), log_std.new_empty(log_std.shape)

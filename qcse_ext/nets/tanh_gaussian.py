"""Reparameterised samples of a tanh-squashed Gaussian policy on the CPU, with their log-densities, in one pass."""

from typing import Any

import torch
from torch import Tensor

from qcse_ext.registration import (
    once_differentiable,
    refuse_forward_mode,
    register_fake,
    without_autograd,
)

__all__ = ["tanh_gaussian"]


def tanh_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """n actions for each state, and their log-densities::

        u = mean + exp(log_std) * noise,  action = tanh(u)
        log_prob = sum over A of  -noise^2 / 2 - log_std - log(2 pi) / 2 - log(1 - tanh(u)^2)

    Gradients flow to mean and log_std, once, backward, and none to noise; a forward-mode or second derivative raises,
    and so does a functorch transform of the gradient.

    Args:
        mean, log_std: ``[..., A]``, float32 or float64, on the CPU.
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
    if torch.is_grad_enabled() and (mean.requires_grad or log_std.requires_grad):
        actions, log_prob = _TanhGaussian.apply(mean, log_std, noise)
    else:
        actions, log_prob = torch.ops.qcse.tanh_gaussian(mean, log_std, noise)
    return actions, log_prob


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

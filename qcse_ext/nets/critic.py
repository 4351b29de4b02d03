"""The critic step fused for the CPU: values of many actions per state, and the conservative loss with its gradient.

Made for conservative Q-learning (CQL, arXiv 2006.04779; Cal-QL, arXiv 2303.05479), whose update evaluates some thirty
actions per state in each critic and differentiates through them. The activations of a chunk of states stay in the
second-level cache and are never written out, so a step costs little more than its multiply-adds.
"""

import math
from typing import Any

import torch
from torch import Tensor

from qcse_ext.knn import build_info
from qcse_ext.registration import (
    once_differentiable,
    refuse_forward_mode,
    register_fake,
    without_autograd,
)

__all__ = ["conservative_loss", "critic_values", "has_bf16", "is_supported"]


def is_supported(states: Tensor) -> bool:
    """Whether the fused CPU operators can take these states: those of this module, ``mlp`` and ``tanh_gaussian``."""
    return states.device.type == "cpu" and states.dtype in (torch.float32, torch.float64)


def has_bf16() -> bool:
    """Whether the CPU can round products to bfloat16, as ``bf16`` of this module's functions asks for."""
    return bool(build_info()["cpu_bf16"])


def critic_values(
    states: Tensor, actions: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool = False
) -> Tensor:
    """Q_e(s, a) of fully connected ReLU critics for n actions of each state.

    Args:
        states: ``[S, B, D]``, float32 or float64, on the CPU; S seeds, B states.
        actions: ``[S, B, n, A]``.
        weights: one ``[S * E, inputs, outputs]`` for each of 2 to 16 layers, E critics per seed; the first layer's
            inputs are the D numbers of the state, then the A of the action; the last layer has one output.
        biases: ``[S * E, 1, outputs]`` for each layer.
        bf16: round the factors of the products between hidden layers to bfloat16, and sum in float32 (float32 only).

    Returns:
        ``[S, E, B, n]``. No gradient flows.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it.
    """
    refuse_forward_mode("critic_values", states, actions, weights, biases)
    values: Tensor = torch.ops.qcse.critic_values(states, actions, weights, biases, bf16)
    return values


def conservative_loss(
    states: Tensor,
    actions: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    target: Tensor,
    offsets: Tensor,
    bound: Tensor,
    weight: Tensor,
    temperature: float = 1.0,
    floor: float | None = None,
    include_data: bool = False,
    bf16: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared Bellman error plus weighted conservative gap, with its gradient for weights and biases.

    Per seed and critic, with Q_0 the value of the data's action and means over the states::

        error = mean (Q_0 - target)^2
        v_j   = offsets_j + (max(Q_j, bound) if j > n else Q_j),  j = 1 .. 3n
        gap   = mean max(temperature * logsumexp(v / temperature) - Q_0, floor)
        loss  = sum over critics of error + weight * gap

    The gradient is computed together with the loss and passed on by ``backward``; to states, actions, target, offsets,
    bound and weight none flows. A forward-mode or second derivative raises. Equal results need an equal number of
    threads.

    Args:
        states: ``[S, B, D]``.
        actions: ``[S, B, 1 + 3n, A]``: the data's, n uniform ones, 2n of the policy.
        weights, biases: the critics, as for :func:`critic_values`.
        target: ``[S, B]``, the Bellman target.
        offsets: ``[S, B, 3n]``, added inside the log-sum-exp: minus the actions' log-densities, or zero.
        bound: ``[S, B]``, lower bound of the policy actions' values (Cal-QL); -inf bounds nothing.
        weight: ``[S]``, factor of the gap.
        temperature: of the log-sum-exp, above 0.
        floor: lower bound of one state's gap; None: none.
        include_data: Q_0 is one more value in the log-sum-exp.
        bf16: round the factors of the products between hidden layers, forward and back, to bfloat16, and sum in
            float32 (float32 only). Everything else stays float32.

    Returns:
        loss ``[S]``, and ``[S, E]`` each, detached: ``error``, ``gap``, ``q_data``, ``q_uniform``, ``q_policy`` (means
        of Q over states and actions), ``bound_share`` (of policy actions whose Q lies below the bound).

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it.
    """
    refuse_forward_mode("conservative_loss", states, actions, weights, biases, target, offsets, bound, weight)
    floor = -math.inf if floor is None else floor
    settings = (target, offsets, bound, weight, temperature, floor, include_data, bf16)
    loss, statistics = _ConservativeLoss.apply(states, actions, settings, len(weights), *weights, *biases)
    return loss, dict(zip(("error", "gap", "q_data", "q_uniform", "q_policy", "bound_share"), statistics, strict=True))


class _ConservativeLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, actions: Tensor, settings: tuple[Any, ...], layers: int, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights, biases = list(parameters[:layers]), list(parameters[layers:])
        statistics, weight_grads, bias_grads = torch.ops.qcse.conservative_loss(
            states, actions, weights, biases, *settings
        )
        ctx.save_for_backward(*weight_grads, *bias_grads)
        ctx.mark_non_differentiable(statistics)
        loss = (statistics[0] + settings[3].unsqueeze(-1) * statistics[1]).sum(-1)
        return loss, statistics

    @staticmethod
    @once_differentiable("conservative_loss")
    def backward(ctx: Any, loss_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        factor = loss_grad.repeat_interleave(grads[0].shape[0] // loss_grad.shape[0]).view(-1, 1, 1)
        return None, None, None, None, *(grad * factor for grad in grads)


# The gradient of the loss is passed on by _ConservativeLoss.
without_autograd("critic_values", "conservative_loss")


@register_fake("critic_values")
def _critic_values_fake(
    states: Tensor, actions: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool = False
) -> Tensor:
    seeds, batch, count, _ = actions.shape
    return states.new_empty(seeds, weights[0].shape[0] // seeds, batch, count)


@register_fake("conservative_loss")
def _conservative_loss_fake(
    states: Tensor, actions: Tensor, weights: list[Tensor], biases: list[Tensor], *_: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    seeds = states.shape[0]
    statistics = states.new_empty(6, seeds, weights[0].shape[0] // seeds)
    return statistics, [w.new_empty(w.shape) for w in weights], [b.new_empty(b.shape) for b in biases]

"""What stands between the networks of an actor-critic: a policy's head, the critics' target, the policy's loss.

Each is one launch forward and one back where the device has a kernel (GPUs do), and plain torch elsewhere.
"""

from typing import Any

import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.arguments import expect, expect_float
from qcse_ext.registration import once_differentiable, refuse_forward_mode, register_fake, without_autograd

__all__ = [
    "actor_loss",
    "actor_loss_in_torch",
    "bellman_target",
    "bellman_target_in_torch",
    "gaussian_head",
    "gaussian_head_in_torch",
]


def _takes(name: str, *tensors: Tensor) -> bool:
    """Whether there is a kernel for these tensors."""
    x = tensors[0]
    known = x.dtype in (torch.float32, torch.float64) and all(t.numel() > 0 for t in tensors)
    return known and registration.has_kernel(name, x)


def _differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


# --- The head of a Gaussian policy ------------------------------------------------------------------------------------


def gaussian_head(raw: Tensor, multiplier: Tensor, offset: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation of a policy from its network's outputs::

        mean = raw[..., :A],  log_std = clamp(multiplier * raw[..., A:] + offset, low, high)

    Gradients flow to raw, multiplier and offset; that of log_std where ``low <= log_std <= high`` held before the
    clamp. Through a kernel they do so once, backward: a second derivative raises. A forward-mode derivative raises
    everywhere.

    Args:
        raw: ``[S, B, 2 A]``; S seeds, B states.
        multiplier, offset: ``[S, 1, 1]``.
        low, high: bounds of log_std.

    Returns:
        mean and log_std ``[S, B, A]``.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it. A derivative that is not
            offered was asked for.

    Source:
        arXiv 1801.01290, as public code of conservative Q-learning (arXiv 2006.04779) has it.
    """
    refuse_forward_mode("gaussian_head", raw, multiplier, offset)
    if not _takes("gaussian_head", raw, multiplier, offset):
        return gaussian_head_in_torch(raw, multiplier, offset, low, high)
    if _differentiated(raw, multiplier, offset):
        mean, log_std = _GaussianHead.apply(raw, multiplier, offset, low, high)
    else:
        mean, log_std = torch.ops.qcse.gaussian_head(raw, multiplier, offset, low, high)
    return mean, log_std


def gaussian_head_in_torch(
    raw: Tensor, multiplier: Tensor, offset: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """:func:`gaussian_head` in plain torch: its definition, for any device and floating-point dtype."""
    expect_float("gaussian_head", "raw", raw, "[S, B, 2 A]")
    if raw.shape[-1] % 2:
        raise RuntimeError(f"qcse_ext.gaussian_head: raw must have shape [S, B, 2 A], got {list(raw.shape)}")
    for name, t in (("multiplier", multiplier), ("offset", offset)):
        expect("gaussian_head", name, t, (raw.shape[0], 1, 1), ("raw", raw))
    mean, log_std = raw.split(raw.shape[-1] // 2, dim=-1)
    log_std = multiplier * log_std + offset
    return mean, log_std.clamp(low, high)


class _GaussianHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, raw: Tensor, multiplier: Tensor, offset: Tensor, low: float, high: float
    ) -> tuple[Tensor, Tensor]:
        ctx.bounds = low, high
        ctx.save_for_backward(raw, multiplier, offset)
        mean, log_std = torch.ops.qcse.gaussian_head(raw, multiplier, offset, low, high)
        return mean, log_std

    @staticmethod
    @once_differentiable("gaussian_head")
    def backward(ctx: Any, mean_grad: Tensor, log_std_grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = torch.ops.qcse.gaussian_head_backward(mean_grad, log_std_grad, *ctx.saved_tensors, *ctx.bounds)
        return *grads, None, None


@register_fake("gaussian_head")
def _gaussian_head_fake(
    raw: Tensor, multiplier: Tensor, offset: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    shape = (*raw.shape[:-1], raw.shape[-1] // 2)
    return raw.new_empty(shape), raw.new_empty(shape)


@register_fake("gaussian_head_backward")
def _gaussian_head_backward_fake(
    mean_grad: Tensor, log_std_grad: Tensor, raw: Tensor, multiplier: Tensor, offset: Tensor, *_: float
) -> tuple[Tensor, Tensor, Tensor]:
    return raw.new_empty(raw.shape), multiplier.new_empty(multiplier.shape), offset.new_empty(offset.shape)


# --- The target -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def bellman_target(
    values: Tensor,
    log_prob: Tensor,
    rewards: Tensor,
    bootstrap: Tensor,
    temperature: Tensor,
    discount: float,
    entropy_backup: bool,
) -> Tensor:
    """What the critics are regressed on, from the target critics' values of n actions at the next state::

        v_j    = min over e of values_ej
        value  = v_j - (temperature * log_prob_j if entropy_backup), j the first with the largest v_j
        target = rewards + discount * bootstrap * value

    n = 1 is the plain backup. A NaN counts as the least of the critics' values and as the largest v_j. No gradient
    flows.

    Args:
        values: ``[S, E, B, n]``; S seeds, E critics, B states, n actions.
        log_prob: ``[S, B, n]``, the actions' log-densities.
        rewards, bootstrap: ``[S, B]``.
        temperature: ``[S]``.
        discount: of the next state's value.
        entropy_backup: whether the value contains the entropy's part.

    Returns:
        ``[S, B]``.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it. So does an input with a
            forward-mode tangent.

    Source:
        arXiv 1812.05905, eq. 2 and 5; arXiv 2006.04779, appendix F, for n > 1.
    """
    arguments = values, log_prob, rewards, bootstrap, temperature
    refuse_forward_mode("bellman_target", *arguments)
    if not _takes("bellman_target", *arguments):
        return bellman_target_in_torch(*arguments, discount, entropy_backup)
    target: Tensor = torch.ops.qcse.bellman_target(*arguments, discount, entropy_backup)
    return target


@torch.no_grad()
def bellman_target_in_torch(
    values: Tensor,
    log_prob: Tensor,
    rewards: Tensor,
    bootstrap: Tensor,
    temperature: Tensor,
    discount: float,
    entropy_backup: bool,
) -> Tensor:
    """:func:`bellman_target` in plain torch: its definition, for any device and floating-point dtype."""
    expect_float("bellman_target", "values", values, "[S, E, B, n]")
    seeds, _, states, actions = values.shape
    like = ("values", values)
    expect("bellman_target", "log_prob", log_prob, (seeds, states, actions), like)
    expect("bellman_target", "rewards", rewards, (seeds, states), like)
    expect("bellman_target", "bootstrap", bootstrap, (seeds, states), like)
    expect("bellman_target", "temperature", temperature, (seeds,), like)
    value, best = values.amin(1).max(-1)
    if entropy_backup:
        value = value - temperature.unsqueeze(-1) * log_prob.gather(-1, best.unsqueeze(-1)).squeeze(-1)
    return rewards + discount * bootstrap * value


@register_fake("bellman_target")
def _bellman_target_fake(values: Tensor, log_prob: Tensor, rewards: Tensor, *_: Any) -> Tensor:
    return rewards.new_empty(rewards.shape)


# --- The policy's loss ------------------------------------------------------------------------------------------------


def actor_loss(q: Tensor, log_prob: Tensor, temperature: Tensor, least: bool) -> tuple[Tensor, Tensor]:
    """The policy's loss from the critics' values of its own actions, one for each state::

        loss = mean over states of  temperature * log_prob - (min over e of q_e if least else mean over e of q_e)

    Gradients flow from the loss to q and log_prob, and none to temperature. That of a minimum is shared evenly among
    the critics that have it. Through a kernel they do so once, backward: a second derivative raises. A forward-mode
    derivative raises everywhere.

    Args:
        q: ``[S, E, B]``; S seeds, E critics, B states.
        log_prob: ``[S, B]``, the actions' log-densities.
        temperature: ``[S]``.
        least: whether the value is the critics' minimum.

    Returns:
        loss ``[S]``; mean of log_prob over the states ``[S]``, without a gradient.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it. A derivative that is not
            offered was asked for.

    Source:
        arXiv 1812.05905, eq. 7; arXiv 2302.02948 for the mean.
    """
    refuse_forward_mode("actor_loss", q, log_prob, temperature)
    if not _takes("actor_loss", q, log_prob, temperature):
        return actor_loss_in_torch(q, log_prob, temperature, least)
    temperature = temperature.detach()
    if _differentiated(q, log_prob):
        loss, mean_log_prob = _ActorLoss.apply(q, log_prob, temperature, least)
    else:
        loss, mean_log_prob = torch.ops.qcse.actor_loss(q, log_prob, temperature, least)
    return loss, mean_log_prob


def actor_loss_in_torch(q: Tensor, log_prob: Tensor, temperature: Tensor, least: bool) -> tuple[Tensor, Tensor]:
    """:func:`actor_loss` in plain torch: its definition, for any device and floating-point dtype."""
    expect_float("actor_loss", "q", q, "[S, E, B]")
    expect("actor_loss", "log_prob", log_prob, (q.shape[0], q.shape[2]), ("q", q))
    expect("actor_loss", "temperature", temperature, (q.shape[0],), ("q", q))
    value = q.amin(1) if least else q.mean(1)
    loss = (temperature.detach().unsqueeze(-1) * log_prob - value).mean(-1)
    return loss, log_prob.detach().mean(-1)


class _ActorLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, log_prob: Tensor, temperature: Tensor, least: bool) -> tuple[Tensor, Tensor]:
        loss, mean_log_prob = torch.ops.qcse.actor_loss(q, log_prob, temperature, least)
        ctx.least = least
        ctx.save_for_backward(q, temperature)
        ctx.mark_non_differentiable(mean_log_prob)
        ctx.set_materialize_grads(False)
        return loss, mean_log_prob

    @staticmethod
    @once_differentiable("actor_loss")
    def backward(ctx: Any, loss_grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if loss_grad is None:
            return None, None, None, None
        q_grad, log_prob_grad = torch.ops.qcse.actor_loss_backward(loss_grad, *ctx.saved_tensors, ctx.least)
        return q_grad, log_prob_grad, None, None


@register_fake("actor_loss")
def _actor_loss_fake(q: Tensor, log_prob: Tensor, temperature: Tensor, least: bool) -> tuple[Tensor, Tensor]:
    return temperature.new_empty(temperature.shape), temperature.new_empty(temperature.shape)


@register_fake("actor_loss_backward")
def _actor_loss_backward_fake(loss_grad: Tensor, q: Tensor, temperature: Tensor, least: bool) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[0], q.shape[2])


# Gradients are _GaussianHead's and _ActorLoss's.
without_autograd("gaussian_head", "gaussian_head_backward", "bellman_target", "actor_loss", "actor_loss_backward")

"""Adding the bonus of a training batch to its rewards, with the numbers that tell whether it says anything."""

import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.arguments import expect, expect_float
from qcse_ext.registration import refuse_forward_mode, register_fake, without_autograd

__all__ = ["SATURATED", "STATISTICS", "add_bonus", "add_bonus_in_torch"]

SATURATED = 0.95  # |bonus| beyond which it hardly distinguishes states; csrc/bonus/cuda/add_bonus.cu
STATISTICS = ("mean", "std", "novelty", "saturated", "weight")


def add_bonus(
    rewards: Tensor, novelty: Tensor, covered: Tensor, eligible: Tensor, weight: Tensor, squash: bool = True
) -> Tensor:
    """``rewards += weight * bonus`` in place, where ``bonus = tanh(novelty)``, or the novelty itself.

    A row that is not covered, or whose novelty is not finite, has the bonus 0. No gradient flows.

    A kernel computes it in one pass where one is registered for the device, for float32 and float64 and at least one
    row; :func:`add_bonus_in_torch` everything else.

    Args:
        rewards: ``[S, N]``, changed in place; S seeds, N transitions.
        novelty: ``[S, N]``.
        covered: ``[S, N]`` bool, the rows that have a novelty.
        eligible: ``[S, N]`` bool, the rows that mean and deviation are of.
        weight: a scalar ``[]``.
        squash: the bonus is tanh of the novelty.

    Returns:
        ``[5, S]``, in the order of ``STATISTICS``: mean and standard deviation of the eligible rows' bonus; of the
        rows that have one the mean novelty and the share of bonuses beyond 0.95 in size; the weight.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it.

    Source:
        arXiv 2310.19805 (QCSE).
    """
    refuse_forward_mode("add_bonus", rewards, novelty, weight)
    known = rewards.dtype in (torch.float32, torch.float64) and rewards.numel() > 0
    if not (known and registration.has_kernel("add_bonus", rewards)):
        return add_bonus_in_torch(rewards, novelty, covered, eligible, weight, squash)
    statistics: Tensor = torch.ops.qcse.add_bonus(rewards, novelty, covered, eligible, weight, squash)
    return statistics


# --- The definition ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def add_bonus_in_torch(
    rewards: Tensor, novelty: Tensor, covered: Tensor, eligible: Tensor, weight: Tensor, squash: bool = True
) -> Tensor:
    """:func:`add_bonus` in plain torch: its definition, for any device and floating-point dtype."""
    function, like = "add_bonus", ("rewards", rewards)
    expect_float(function, "rewards", rewards, "[S, N]")
    expect(function, "novelty", novelty, rewards.shape, like)
    expect(function, "covered", covered, rewards.shape, like, torch.bool)
    expect(function, "eligible", eligible, rewards.shape, like, torch.bool)
    expect(function, "weight", weight, (), like)
    covered = covered & novelty.isfinite()
    novelty = torch.where(covered, novelty, 0.0)
    bonus = torch.where(covered, torch.tanh(novelty) if squash else novelty, 0.0)
    rows = covered.sum(1).clamp(min=1)
    rewards += weight * bonus
    share = eligible.to(rewards.dtype) / eligible.sum(1, keepdim=True).clamp(min=1)
    mean = (share * bonus).sum(1)
    variance = (share * (bonus - mean.unsqueeze(1)).square_()).sum(1)
    saturated = (bonus.abs() > SATURATED).sum(1).to(rewards.dtype) / rows
    return torch.stack([mean, variance.sqrt(), novelty.sum(1) / rows, saturated, weight.expand_as(mean)])


# --- No gradient, and the kernel's shapes -----------------------------------------------------------------------------

without_autograd("add_bonus")


@register_fake("add_bonus")
def _(rewards: Tensor, novelty: Tensor, covered: Tensor, eligible: Tensor, weight: Tensor, squash: bool) -> Tensor:
    return rewards.new_empty(len(STATISTICS), rewards.shape[0])

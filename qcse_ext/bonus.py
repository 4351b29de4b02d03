"""The bonus of a training batch in one CPU operator: running moments, distinct transitions, search and entropy."""

import torch
from torch import Tensor

from qcse_ext.registration import refuse_forward_mode, register_fake, without_autograd

__all__ = ["batch_entropy"]


def batch_entropy(
    states: Tensor,
    values: Tensor,
    index: Tensor,
    eligible: Tensor,
    mean: Tensor,
    variance: Tensor,
    batches: Tensor,
    k: int,
    count_self: bool = False,
    learn: bool = True,
    horizon: float = 1e6,
    divisor: float = 1.0,
    offset: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy of a batch's states given their Q, among the batch's distinct transitions, both standardised.

    As :func:`qcse_ext.entropy` of ``(states - mean) / spread / divisor`` and of the values scaled likewise, where
    ``mean`` and ``spread = sqrt(variance)`` (1 where it is at most 1e-6) are moments that run over the batches:
    this batch moves them first, by ``1 / min(batches, horizon)`` of the way to its own. Rows of equal index are one
    transition: it is one candidate, and never its own neighbour. A row that is not finite is left out everywhere, and
    it alone; so that the moments stay finite, none is moved by a row with a number beyond 1e18 (float64: 1e140), and
    a batch without a row that moves them changes nothing.

    Args:
        states: ``[S, N, D]``, float32 or float64, on the CPU; S seeds, N transitions.
        values: ``[S, N]``, the Q-value of each.
        index: ``[S, N]`` int64; equal numbers are the same transition.
        eligible: ``[S, N]`` bool; the other rows are no candidates, move no moments and get no entropy.
        mean, variance: ``[S, D + 1]``, the last channel being the values'; changed in place where `learn`.
        batches: ``[S]``, batches seen so far; changed in place where `learn`.
        k: which neighbour, 1 to 128.
        count_self: the point itself is one of the neighbours in value.
        learn: move the moments.
        horizon: batches, at least 1.
        divisor: of the standardised states.
        offset: inside the logarithm.

    Returns:
        entropy ``[S, N]`` (0 where not covered); covered ``[S, N]`` bool: eligible, finite, and at least k other
        finite transitions are there; statistics ``[3, S]``: share of covered rows whose radius is 0, covered share of
        the eligible rows, mean neighbours in value of the covered rows as a share of the distinct transitions. No
        gradient flows.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it.

    Source:
        arXiv 2310.19805 (QCSE).
    """
    refuse_forward_mode("batch_entropy", states, values)
    entropy, covered, statistics = torch.ops.qcse.batch_entropy(
        states, values, index, eligible, mean, variance, batches, k, count_self, learn, horizon, divisor, offset
    )
    return entropy, covered, statistics


without_autograd("batch_entropy")


@register_fake("batch_entropy")
def _(states: Tensor, values: Tensor, index: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    covered = values.new_empty(values.shape, dtype=torch.bool)
    return values.new_empty(values.shape), covered, values.new_empty(3, values.shape[0])

"""The bonus of a training batch in one operator: running moments, distinct transitions, search and entropy."""

import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.arguments import expect, expect_float
from qcse_ext.knn import knn
from qcse_ext.registration import refuse_forward_mode, register_fake, without_autograd

__all__ = ["batch_entropy", "batch_entropy_in_torch", "knn_distinct", "move_moments"]

MAX_NEIGHBOURS = 128  # csrc/knn/knn.h
LARGEST = {torch.float32: 1e18, torch.float64: 1e140}  # as in csrc/bonus/batch_entropy.h


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

    A kernel computes it where one is registered for the device, and :func:`batch_entropy_in_torch` elsewhere.

    Args:
        states: ``[S, N, D]``, float32 or float64; S seeds, N transitions.
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
    if not registration.has_kernel("batch_entropy", states):
        return batch_entropy_in_torch(
            states, values, index, eligible, mean, variance, batches, k, count_self, learn, horizon, divisor, offset
        )
    entropy, covered, statistics = torch.ops.qcse.batch_entropy(
        states, values, index, eligible, mean, variance, batches, k, count_self, learn, horizon, divisor, offset
    )
    return entropy, covered, statistics


# --- The definition ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def batch_entropy_in_torch(
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
    """:func:`batch_entropy` in plain torch and :func:`qcse_ext.knn`: its definition, for any device."""
    _check(states, values, index, eligible, mean, variance, batches, k, horizon, divisor)
    seeds, rows, dim = states.shape
    usable = eligible & states.isfinite().all(-1) & values.isfinite()
    if learn:
        points = torch.cat([states, values.unsqueeze(-1)], dim=-1)
        move_moments(mean, variance, batches, points, usable, horizon)
    if rows <= k:
        covered = torch.zeros_like(eligible)
        return torch.zeros_like(values), covered, values.new_zeros(3, seeds)
    spread = variance.sqrt()
    spread = torch.where(spread > 1e-6, spread, 1.0)
    scaled = (states - mean[:, None, :dim]) / spread[:, None, :dim] / divisor
    scaled_values = (values - mean[:, dim:]) / spread[:, dim:]

    radius, count, distinct = knn_distinct(scaled, scaled_values, index, usable, k)
    covered = (count >= 0) & (distinct > k)
    if count_self:  # at distance 0 of itself: strictly closer unless the radius is 0
        count = count + (radius > 0)
    entropy = torch.digamma(count.to(radius.dtype) + 1.0) / dim + torch.log(2.0 * radius + offset)
    sums = torch.stack([(radius == 0) & covered, covered, covered * count]).sum(-1)
    found, wanted = (x.sum(-1).clamp(min=1) for x in (covered, eligible))
    parts = torch.stack([found, wanted, found * distinct.squeeze(1).clamp(min=1)])
    return torch.where(covered, entropy, 0.0), covered, sums.to(values.dtype) / parts


def knn_distinct(
    states: Tensor,
    values: Tensor,
    index: Tensor,
    usable: Tensor,
    k: int,
    references: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`qcse_ext.knn` where rows of equal index are one transition: once a candidate, and never its own neighbour.

    It reads nothing back to the host.

    Args:
        states: ``[S, N, D]``.
        values: ``[S, N]``.
        index: ``[S, N]`` int64, from 0 on; equal numbers are the same transition.
        usable: ``[S, N]`` bool; the other rows have no neighbours.
        k: which neighbour.
        references: states ``[S, M, D]``, values ``[S, M]`` and index ``[S, M]`` of the candidates; None: the usable
            rows themselves.

    Returns:
        radius and count ``[S, N]`` as :func:`qcse_ext.knn` has them, and the number of distinct candidates ``[S, 1]``.

    Raises:
        RuntimeError: as for :func:`qcse_ext.knn`.
    """
    # Sorted row numbers bring duplicates together and let each query find itself, without a host read.
    rows = (torch.where(usable, index, -1) if references is None else references[2]).contiguous()
    ordered, order = rows.sort(dim=1)
    first = order.gather(1, torch.searchsorted(ordered, rows))  # who stands for each one's transition
    counts = first == torch.arange(rows.shape[1], device=rows.device)
    if references is None:
        counts &= usable
        self_index, reference_states, reference_values = first, states, values
    else:
        position = torch.searchsorted(ordered, index.contiguous()).clamp_(max=rows.shape[1] - 1)
        self_index = torch.where(ordered.gather(1, position) == index, order.gather(1, position), -1)
        reference_states, reference_values, _ = references
    # A row whose value is NaN is nobody's neighbour, and a query with one has no answer.
    radius, count = knn(
        states,
        torch.where(usable, values, torch.nan),
        k,
        reference_states,
        torch.where(counts, reference_values, torch.nan),
        self_index,
    )
    return radius, count, counts.sum(1, keepdim=True)


def move_moments(
    mean: Tensor, variance: Tensor, batches: Tensor, points: Tensor, usable: Tensor, horizon: float
) -> None:
    """One batch's turn at running moments, in place: by ``1 / min(batches, horizon)`` of the way to its own.

    A row with a number that is not finite or beyond 1e18 (float64: 1e140) moves none, and a batch without a row that
    does changes nothing. No gradient flows, and nothing is read back to the host.

    Args:
        mean, variance: ``[S, C]``, or ``[S]``.
        batches: ``[S]``, batches that had a row so far.
        points: ``[S, N, C]``, or ``[S, N]``, float32 or float64.
        usable: ``[S, N]`` bool; the other rows do not count.
        horizon: batches, at least 1.
    """
    moderate = points.abs() <= LARGEST[points.dtype]  # NaN is not
    channels = points.dim() == 3
    usable = usable & (moderate.all(-1) if channels else moderate)
    rows = usable.sum(1)
    some = rows > 0
    batches += some
    rate = (some / batches.clamp(1.0, horizon)).view(-1, *[1] * (points.dim() - 2))
    weight = usable.to(points.dtype) / rows.clamp(min=1).unsqueeze(1)
    if channels:
        usable, weight = usable.unsqueeze(-1), weight.unsqueeze(-1)
    points = torch.where(usable, points, 0.0)  # what does not count need not be finite
    batch_mean = (weight * points).sum(1)
    batch_variance = (weight * (points - batch_mean.unsqueeze(1)).square_()).sum(1)
    # Two groups together: the variances within them, and what their means are apart. The first batch replaces the
    # initial values entirely (rate 1). In place: a captured graph goes on with the tensors that it knows.
    variance.lerp_(torch.addcmul(batch_variance, 1.0 - rate, (batch_mean - mean).square_()), rate)
    mean.lerp_(batch_mean, rate)


def _check(
    states: Tensor,
    values: Tensor,
    index: Tensor,
    eligible: Tensor,
    mean: Tensor,
    variance: Tensor,
    batches: Tensor,
    k: int,
    horizon: float,
    divisor: float,
) -> None:
    function, like = "batch_entropy", ("states", states)
    expect_float(function, "states", states, "[S, N, D]")
    if states.dtype not in LARGEST:
        raise RuntimeError(f"qcse_ext.{function}: states must be float32 or float64")
    seeds, rows, dim = states.shape
    for name, number, fits, wanted in (
        ("k", k, 1 <= k <= MAX_NEIGHBOURS, f"from 1 to {MAX_NEIGHBOURS}"),
        ("horizon", horizon, horizon >= 1, "at least 1"),
        ("divisor", divisor, divisor > 0, "above 0"),
    ):
        if not fits:
            raise RuntimeError(f"qcse_ext.{function}: {name} must be {wanted}, got {number}")
    expect(function, "values", values, (seeds, rows), like)
    expect(function, "index", index, (seeds, rows), like, torch.int64)
    expect(function, "eligible", eligible, (seeds, rows), like, torch.bool)
    expect(function, "mean", mean, (seeds, dim + 1), like)
    expect(function, "variance", variance, (seeds, dim + 1), like)
    expect(function, "batches", batches, (seeds,), like)


# --- No gradient, and the kernel's shapes -----------------------------------------------------------------------------

without_autograd("batch_entropy")


@register_fake("batch_entropy")
def _(states: Tensor, values: Tensor, index: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    covered = values.new_empty(values.shape, dtype=torch.bool)
    return values.new_empty(values.shape), covered, values.new_empty(3, values.shape[0])

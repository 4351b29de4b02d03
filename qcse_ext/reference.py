"""What the operators compute, in plain torch: the definition that everything else is tested against.

float32 (and half precision, which is computed in float32) is exact: the same bits as the compiled kernels. torch has
no fused multiply-add, and its float32 square root on a CPU is not correctly rounded; both are obtained from float64
here. For float64 no wider type exists, so there the result may differ from the kernels in the last bits.

Memory grows as N times M: for tests and small problems.
"""

import torch
from torch import Tensor

__all__ = ["entropy", "keys", "knn"]


def _fma_square_float32(t: Tensor, accumulator: Tensor) -> Tensor:
    """round(t * t + accumulator) to float32 with one rounding.

    The square of a float32 is exact in float64. The float64 sum is rounded to odd (an inexact sum gets an odd last
    bit), after which rounding to float32 can't go wrong twice (Boldo and Melquiond 2008).
    """
    square = t.double() * t.double()
    other = accumulator.double()
    total = square + other
    # Knuth's two-sum: total + error is the exact sum.
    part = total - square
    error = (square - (total - part)) + (other - part)
    bits = total.view(torch.int64)
    # total is positive here, so a neighbour away from zero is the next integer.
    odd = torch.where((error != 0) & (bits & 1 == 0), bits + torch.where(error > 0, 1, -1), bits)
    return torch.where(total.isfinite(), odd.view(torch.float64), total).float()


def keys(states: Tensor, values: Tensor, reference_states: Tensor, reference_values: Tensor) -> Tensor:
    """Joint distances ``max(||s_i - s_j||_2, |q_i - q_j|)``.

    Args:
        states: ``[..., N, D]`` float32 or float64.
        values: ``[..., N]``.
        reference_states: ``[..., M, D]``.
        reference_values: ``[..., M]``.

    Returns:
        ``[..., N, M]`` in the dtype of ``states``. The squares are summed in ascending order of the dimension.
    """
    squared = torch.zeros(*states.shape[:-1], reference_states.shape[-2], dtype=states.dtype, device=states.device)
    for d in range(states.shape[-1]):
        t = states[..., :, None, d] - reference_states[..., None, :, d]
        squared = _fma_square_float32(t, squared) if states.dtype == torch.float32 else t * t + squared
    root = squared.double().sqrt().to(states.dtype)
    return torch.maximum(root, (values[..., :, None] - reference_values[..., None, :]).abs())


def knn(
    states: Tensor,
    values: Tensor,
    k: int,
    reference_states: Tensor | None = None,
    reference_values: Tensor | None = None,
    self_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Radius and count of :func:`qcse_ext.knn`, by looking at every pair."""
    dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
    states, values = states.detach().to(dtype), values.detach().to(dtype)
    n = states.shape[-2]
    if reference_states is None or reference_values is None:
        reference_states, reference_values = states, values
        self_index = torch.arange(n, device=states.device).expand(values.shape)
    reference_states, reference_values = reference_states.detach().to(dtype), reference_values.detach().to(dtype)
    m = reference_states.shape[-2]

    finite = states.isfinite().all(-1) & values.isfinite()
    candidate = (reference_states.isfinite().all(-1) & reference_values.isfinite())[..., None, :].expand(
        *values.shape, m
    )
    if self_index is not None:
        candidate = candidate & (torch.arange(m, device=states.device) != self_index[..., None])
    # An infinite key is a legitimate distance that overflowed; what is no candidate sorts behind it as NaN.
    key = torch.where(candidate, keys(states, values, reference_states, reference_values), torch.nan)
    answered = finite & (candidate.sum(-1) >= k)
    radius = torch.where(answered, key.sort(-1).values[..., k - 1], torch.nan)
    gap = (values[..., :, None] - reference_values[..., None, :]).abs()
    count = ((gap < radius[..., None]) & candidate).sum(-1)
    return radius, torch.where(answered, count, -1)


def entropy(
    states: Tensor,
    values: Tensor,
    k: int,
    reference_states: Tensor | None = None,
    reference_values: Tensor | None = None,
    self_index: Tensor | None = None,
    offset: float = 1e-5,
) -> Tensor:
    """``digamma(count + 1) / D + log(2 * radius + offset)`` of :func:`qcse_ext.entropy`, evaluated in float64."""
    radius, count = knn(states, values, k, reference_states, reference_values, self_index)
    digamma = torch.digamma(count.clamp(min=0).double() + 1)
    return (digamma / states.shape[-1] + (2 * radius.double() + offset).log()).to(radius.dtype)

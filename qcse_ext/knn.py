"""The search for neighbours and what is computed from it: the functions, and what torch must know beside the kernels.

The schemas and kernels are registered by the compiled module.
"""

import math
from typing import Any

import torch
from torch import Tensor

from qcse_ext import _C
from qcse_ext.registration import refuse_forward_mode, register_fake, without_autograd

__all__ = ["build_info", "conditional_entropy", "entropy", "knn"]


def knn(
    states: Tensor,
    values: Tensor,
    k: int,
    reference_states: Tensor | None = None,
    reference_values: Tensor | None = None,
    self_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Distance to the k-th nearest neighbour in the joint space of states and values, and the neighbours in value.

    With ``key_ij = max(||s_i - s_j||_2, |q_i - q_j|)`` over the candidates j of query i::

        radius_i = the k-th smallest key_ij
        count_i  = #{ j : |q_i - q_j| < radius_i }

    Without references the candidates are all other rows. With references they are the reference rows, but for the
    one that ``self_index`` names. The result is exact and has the same bits on every device, for any thread count.

    Args:
        states: ``[..., N, D]``, float32, float64, float16 or bfloat16 (the last two are computed in float32), any
            strides, D from 1 to 1024. Leading dimensions are independent problems, for example one per seed.
        values: ``[..., N]``, same dtype and device; the Q-value of each state.
        k: which neighbour, from 1 to 128; at most N - 1 without references, M with references, M - 1 with
            ``self_index``.
        reference_states: ``[..., M, D]``, the set that is searched, with the leading dimensions of ``states``.
        reference_values: ``[..., M]``.
        self_index: ``[..., N]`` int64, the reference row that is the query itself, or -1 for none.

    Returns:
        ``radius [..., N]`` (float32, or float64 for float64 input) and ``count [..., N]`` (int64). A row whose state or
        value is not finite gets NaN and -1 and is nobody's neighbour; so does a row with fewer than k candidates left.
        A distance that overflows is infinite, and a radius may be. N = 0 gives empty output. No gradient flows.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device, or k is out of range; the message names it. So
            does an input with a forward-mode tangent.

    Source:
        Kraskov, Stoegbauer, Grassberger, Phys. Rev. E 69, 066138 (2004); arXiv 2310.19805.
    """
    refuse_forward_mode("knn", states, values, reference_states, reference_values)
    radius, count = torch.ops.qcse.knn(states, values, k, reference_states, reference_values, self_index)
    return radius, count


def entropy(
    states: Tensor,
    values: Tensor,
    k: int,
    reference_states: Tensor | None = None,
    reference_values: Tensor | None = None,
    self_index: Tensor | None = None,
    offset: float = 1e-5,
) -> Tensor:
    """Entropy of each state given its Q-value, up to a constant: the estimate per sample, divided by the dimension.

    With radius and count as :func:`knn` gives them::

        entropy_i = digamma(count_i + 1) / D + log(2 * radius_i + offset)

    Args:
        states: ``[..., N, D]``, as for :func:`knn`.
        values: ``[..., N]``.
        k: which neighbour.
        reference_states: ``[..., M, D]`` or None.
        reference_values: ``[..., M]`` or None.
        self_index: ``[..., N]`` int64 or None.
        offset: added inside the logarithm, in the units of the states; keeps the answer finite where duplicates make
            the radius 0.

    Returns:
        ``[..., N]``, in nats, float32 (float64 for float64 input); NaN where :func:`knn` has no radius. No gradient
        flows.

    Raises:
        RuntimeError: as for :func:`knn`.

    Source:
        arXiv 2310.19805 (QCSE) and 2305.19476 (VCSE, whose code adds the offset of 1e-5).
    """
    refuse_forward_mode("entropy", states, values, reference_states, reference_values)
    result: Tensor = torch.ops.qcse.entropy(
        states, values, k, reference_states, reference_values, self_index, float(offset)
    )
    return result


def conditional_entropy(states: Tensor, values: Tensor, k: int) -> Tensor:
    """The Kraskov-Stoegbauer-Grassberger estimate of the conditional entropy H(S|Q), in nats.

    With ``c_D`` the volume of the D-dimensional ball of diameter 1::

        H(S|Q) = mean_i digamma(count_i + 1) - digamma(k) + log c_D + D * mean_i log(2 * radius_i)

    The estimator is consistent, but biased upwards or downwards by some tenths of a nat from about 8 dimensions on.

    Args:
        states: ``[..., N, D]``, as for :func:`knn`.
        values: ``[..., N]``.
        k: which neighbour, 1 to N - 1; small values have less bias, large ones less variance.

    Returns:
        ``[...]``: the leading dimensions are kept, N is reduced. -inf where a radius is 0 (more than k copies of one
        point), NaN where a row is not finite.

    Raises:
        RuntimeError: as for :func:`knn`.

    Source:
        Kraskov, Stoegbauer, Grassberger, Phys. Rev. E 69, 066138 (2004), their first estimator.
    """
    dim = states.shape[-1]
    radius, count = knn(states, values, k)
    log_ball = 0.5 * dim * math.log(math.pi) - math.lgamma(1 + 0.5 * dim) - dim * math.log(2)
    # A count of -1 comes with a radius of NaN, which decides; 0 keeps digamma out of its poles.
    mean_digamma = torch.digamma(count.clamp(min=0).double() + 1).mean(-1)
    digamma_k = torch.digamma(torch.tensor(float(k), dtype=torch.float64, device=states.device))
    estimate = mean_digamma - digamma_k + log_ball + dim * (2 * radius.double()).log().mean(-1)
    return estimate.to(radius.dtype)


def build_info() -> dict[str, Any]:
    """Facts of the compiled module.

    Keys: ``torch_abi_target`` and ``torch_built_with`` (versions), ``compiler``, ``cpu_instruction_sets`` (those that
    are built and run here, best last), ``cpu_instruction_set`` (the one in use), ``cuda`` (are the CUDA kernels
    built), ``cuda_toolkit`` and ``cuda_architectures`` (None without them).
    """
    return dict(_C.build_info())


# --- Tracing: shapes and dtypes without data --------------------------------------------------------------------------


def _result_dtype(states: Tensor) -> torch.dtype:
    return torch.float64 if states.dtype == torch.float64 else torch.float32


@register_fake("knn")
def _(
    states: Tensor,
    values: Tensor,
    k: int,
    reference_states: Tensor | None = None,
    reference_values: Tensor | None = None,
    self_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    shape = states.shape[:-1]
    return states.new_empty(shape, dtype=_result_dtype(states)), states.new_empty(shape, dtype=torch.int64)


@register_fake("entropy")
def _(
    states: Tensor,
    values: Tensor,
    k: int,
    reference_states: Tensor | None = None,
    reference_values: Tensor | None = None,
    self_index: Tensor | None = None,
    offset: float = 1e-5,
) -> Tensor:
    return states.new_empty(states.shape[:-1], dtype=_result_dtype(states))


# --- torch.vmap: the mapped dimension becomes a leading batch dimension ----------------------------------------------


def _batched(args: tuple[Any, ...], in_dims: tuple[int | None, ...], size: int) -> list[Any]:
    def move(x: Any, dim: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)

    return [move(x, dim) for x, dim in zip(args, in_dims)]


@torch.library.register_vmap("qcse::knn")
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    radius, count = torch.ops.qcse.knn(*_batched(args, in_dims, info.batch_size))
    return (radius, count), (0, 0)


@torch.library.register_vmap("qcse::entropy")
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    result: Tensor = torch.ops.qcse.entropy(*_batched(args, in_dims, info.batch_size))
    return result, 0


# --- No gradient, autocast --------------------------------------------------------------------------------------------

without_autograd("knn", "entropy")
for _name in ("knn", "entropy"):
    # The statistics are distances: under autocast they are computed in float32, never in half precision.
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(f"qcse::{_name}", _device, torch.float32)

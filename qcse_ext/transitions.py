"""A batch of transitions, gathered from a shared dataset and each seed's ring of its own, in one launch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.arguments import expect
from qcse_ext.registration import register_fake, without_autograd

__all__ = ["gather_transitions", "gather_transitions_in_torch"]


def gather_transitions(
    dataset: Sequence[Tensor], online: Sequence[Tensor], index: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Rows of every column, by global row numbers: the dataset's N rows come first, then the slots of a seed's ring.

    A kernel takes float32 columns that are contiguous; it is in use where one is registered for the device, and
    :func:`gather_transitions_in_torch` elsewhere and for other dtypes. No gradient flows through a kernel.

    Args:
        dataset: 1 to 16 columns ``[N, ...]``; N may be 0.
        online: the same columns of the rings, ``[S, capacity, ...]``.
        index: ``[S, B]`` int64, from 0 to N + capacity - 1. A GPU's kernel answers a number beyond with NaN.

    Returns:
        the columns ``[S, B, ...]``, and which rows are a ring's, ``[S, B]`` bool.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; on a CPU, a number is out of range.
    """
    fits = all(x.dtype == torch.float32 for x in (*dataset, *online))
    if not fits or not registration.has_kernel("gather_transitions", index):
        return gather_transitions_in_torch(dataset, online, index)
    columns, is_online = torch.ops.qcse.gather_transitions(list(dataset), list(online), index)
    return columns, is_online


def gather_transitions_in_torch(
    dataset: Sequence[Tensor], online: Sequence[Tensor], index: Tensor
) -> tuple[list[Tensor], Tensor]:
    """:func:`gather_transitions` in plain torch: its definition, for any device."""
    function = "gather_transitions"
    if index.dim() != 2 or index.dtype != torch.int64:
        raise RuntimeError(
            f"qcse_ext.{function}: index must have shape [S, B] and be int64, got {list(index.shape)}, "
            f"{str(index.dtype).removeprefix('torch.')}"
        )
    if not dataset or len(dataset) != len(online):
        raise RuntimeError(
            f"qcse_ext.{function}: expected as many columns of the dataset as online, got {len(dataset)} and "
            f"{len(online)}"
        )
    size, capacity = len(dataset[0]), online[0].shape[1]
    is_online = index >= size
    slot, row = (index - size).clamp_(min=0), index.clamp(max=size - 1)
    seed = torch.arange(len(index), device=index.device).unsqueeze(1)
    columns = []
    for number, (rows, ring) in enumerate(zip(dataset, online, strict=True)):
        expect(function, f"dataset[{number}]", rows, (size, *rows.shape[1:]), (f"online[{number}]", ring))
        expect(function, f"online[{number}]", ring, (len(index), capacity, *rows.shape[1:]), ("itself", ring))
        column = ring[seed, slot]
        if size > 0:
            mask = is_online.view(*is_online.shape, *[1] * (column.dim() - 2))
            column = torch.where(mask, column, rows[row])
        columns.append(column)
    return columns, is_online


# --- No gradient, and the kernel's shapes -----------------------------------------------------------------------------

without_autograd("gather_transitions")


@register_fake("gather_transitions")
def _(dataset: Sequence[Tensor], online: Sequence[Tensor], index: Tensor) -> tuple[list[Tensor], Tensor]:
    columns = [rows.new_empty(*index.shape, *rows.shape[1:]) for rows in dataset]
    return columns, index.new_empty(index.shape, dtype=torch.bool)

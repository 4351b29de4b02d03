"""The checks of what the definitions in plain torch are called with; the kernels have their own, in C++."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["expect", "expect_float"]


def expect(
    function: str,
    name: str,
    t: Tensor,
    shape: Sequence[int],
    like: tuple[str, Tensor],
    dtype: torch.dtype | None = None,
) -> None:
    """Raise where an argument, ``[...]``, does not have a shape, a dtype and a device.

    Args:
        function: whose argument it is.
        name, t: the argument.
        shape: that it must have.
        like: name and tensor of another argument, whose dtype and device it must have.
        dtype: that it must have instead.

    Raises:
        RuntimeError: it has another; the message has the function, the name, what was got and what was expected.
    """
    other, x = like
    if t.shape != torch.Size(shape):
        raise RuntimeError(f"qcse_ext.{function}: {name} must have shape {list(shape)}, got {list(t.shape)}")
    if t.dtype != (dtype or x.dtype):
        wanted = f"be {_spelt(dtype)}" if dtype else f"have the dtype of {other} ({_spelt(x.dtype)})"
        raise RuntimeError(f"qcse_ext.{function}: {name} must {wanted}, got {_spelt(t.dtype)}")
    if t.device != x.device:
        raise RuntimeError(
            f"qcse_ext.{function}: {name} must be on the device of {other} ({x.device}), got {t.device}. Move one of "
            "them with .to(device)"
        )


def expect_float(function: str, name: str, t: Tensor, shape: str) -> None:
    """Raise where `t`, the argument `name`, holds no floating-point numbers or has another number of dimensions.

    Args:
        shape: as it is written in the message, "[S, B, D]" or "[..., A]"; it has as many dimensions as names.

    Raises:
        RuntimeError: it does.
    """
    if not t.is_floating_point():
        raise RuntimeError(f"qcse_ext.{function}: {name} must be of a floating-point dtype, got {_spelt(t.dtype)}")
    dims = len(shape.split(","))
    if t.dim() < dims - 1 if shape.startswith("[...") else t.dim() != dims:
        raise RuntimeError(f"qcse_ext.{function}: {name} must have shape {shape}, got {list(t.shape)}")


def _spelt(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""The device that a run computes on."""

from __future__ import annotations

import ctypes
import sys

import torch

from qcse_ext.nets import critic

from ..errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """'auto' -> the first CUDA device if there is one, else the CPU; ConfigError where a device is not usable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("neither a CPU nor a CUDA device")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device: got {name!r}, which cannot be used here ({reason}); expected auto, cpu or cuda"
        ) from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # a graph captures what the current device launches, and nothing of the others
    return device


def use_precision(precision: str, device: torch.device) -> None:
    """Let torch's products on a GPU use TF32 or not; ConfigError where the device cannot do what is asked."""
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision: got 'tf32' on {device}, which has none; expected float32 or bf16")
    if precision == "bf16" and device.type == "cpu" and not critic.has_bf16():
        raise ConfigError("precision: got 'bf16', but this CPU lacks AVX512-BF16 or AVX512-VBMI2; expected float32")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning them to the system.

    An update allocates and frees the same megabytes again and again; by default glibc maps each anew, and the page
    faults cost a third of a small CQL update. Elsewhere than on glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h's names; glibc allows 32 MiB for the last
        for option, megabytes in ((trim_threshold, 2000), (top_pad, 64), (mmap_threshold, 32)):
            mallopt(option, megabytes << 20)

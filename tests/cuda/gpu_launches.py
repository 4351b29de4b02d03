"""What a call launches on a GPU, as torch's profiler sees it."""

from __future__ import annotations

from collections.abc import Callable

import torch

# CUPTI's own events, which the profiler may list among the device's.
NOT_LAUNCHED = (" Sync", "Stream Wait Event", "Activity Buffer Request", "Lazy Function Loading", "Command Buffer Full",
                "Runtime Triggered Module Loading")  # fmt: skip


def launches(call: Callable[[], object]) -> list[str]:
    """The names of the kernels and copies that a call starts, the second time."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        call()
        torch.cuda.synchronize()
    events = [event.name for event in record.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in events if not name.endswith(NOT_LAUNCHED)]

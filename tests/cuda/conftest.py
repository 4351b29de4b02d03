"""The random problems of the emulator's tests serve the GPU too; without one, every test here is skipped, unless
QCSE_CUDA_DEVICE=cuda insists on it, or QCSE_CUDA_DEVICE=cpu rehearses those that only compare answers.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

from qcse_ext import _C

sys.path.append(str(Path(__file__).resolve().parent.parent / "emulator"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = ""
    asked = os.environ.get("QCSE_CUDA_DEVICE")
    if asked == "cpu":
        return
    if not torch.cuda.is_available():
        reason = "torch sees no CUDA device"
    elif not _C.build_info()["cuda"]:
        reason = "this build holds no CUDA kernels"
    if reason and asked == "cuda":  # where a GPU is what the run is for, skipping would look like passing
        raise pytest.UsageError(f"QCSE_CUDA_DEVICE=cuda, but {reason}")
    for item in items:
        if item.get_closest_marker("cuda") and reason:
            item.add_marker(pytest.mark.skip(reason=reason))

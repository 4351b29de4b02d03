"""What the tests of the CPU operators share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qcse_ext import _C, build_info, registration


@pytest.fixture(params=build_info()["cpu_instruction_sets"])
def instruction_set(request: pytest.FixtureRequest):
    _C.set_instruction_set(request.param)
    yield request.param
    _C.set_instruction_set("")


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, the fused operators' definitions run, as on a device that has no kernels."""
    return lambda: monkeypatch.setattr(registration, "has_kernel", lambda name, x: False)

"""What the tests of the CPU operators share."""

from __future__ import annotations

import pytest
import torch

from qcse_ext import _C, build_info


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

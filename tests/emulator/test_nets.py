"""The kernels between the products of networks (csrc/nets/cuda) under the emulator: bits where a number is made from a
few others, rounding where it is a sum, and equal bits in every order of the threads."""

from __future__ import annotations

import numpy as np
import pytest
from emulated import Emulator, EmulatorError, same_bits
from emulated_nets import ROLES, Case, call, case, problems, wrong

SCHEDULES = 6


@pytest.mark.parametrize(("name", "number"), [(c.name, i) for i, c in enumerate(problems())])
def test_problem(emulator: Emulator, name: str, number: int) -> None:
    emulator.configure(seed=number % 7)
    assert wrong(emulator, problems()[number]) is None


@pytest.mark.parametrize("name", ROLES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_schedule_does_not_matter(emulator: Emulator, name: str, dtype: type) -> None:
    c = case(name, 3, dtype)

    def run(seed: int) -> list[np.ndarray]:
        emulator.configure(seed=seed)
        return [a for a in call(emulator, c) if a is not None]

    first = run(0)
    for seed in range(1, SCHEDULES):
        assert all(same_bits(a, b) for a, b in zip(first, run(seed), strict=True)), seed


def test_a_grid_that_is_too_large_is_refused(emulator: Emulator) -> None:
    for name in ROLES:
        c = case(name, 0, np.float32)
        sizes = (1 << 32, *c.sizes[1:])
        with pytest.raises(EmulatorError, match=f"nets_{name}_kernel: .* more than 2147483647 blocks"):
            call(emulator, Case(name, sizes, c.arrays, c.settings))

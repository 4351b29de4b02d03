"""The kernels of csrc/random and csrc/buffer under the emulator against their definitions in torch, bit for bit."""

from __future__ import annotations

import emulated_random
import numpy as np
import pytest
from emulated import Emulator, EmulatorError, same_bits


@pytest.mark.parametrize("what", ["wrong_numbers", "wrong_rows", "wrong_gathers"])
def test_it_is_the_definition(emulator: Emulator, what: str) -> None:
    assert list(getattr(emulated_random, what)(emulator)) == []


def test_every_schedule_gives_the_same_bits_and_moves_the_counters_once(emulator: Emulator) -> None:
    keys = np.arange(4, dtype=np.int64)
    found = []
    for schedule in range(12):
        emulator.configure(seed=schedule, multiprocessors=(1, 3, 100)[schedule % 3])
        counters = np.arange(4, dtype=np.int64)
        found.append(emulated_random.random(emulator, keys, counters, [("normal", 6000), ("unit", 3)])[0])
        assert counters.tolist() == [1501, 1502, 1503, 1504]
    assert all(same_bits(numbers, found[0]) for numbers in found)


def test_too_many_seeds_are_refused(emulator: Emulator) -> None:
    keys, counters = np.zeros((2, 65536), np.int64)
    with pytest.raises(EmulatorError, match="random_numbers_kernel: there are more than 65535 seeds"):
        emulated_random.random(emulator, keys, counters, [("unit", 1)])

"""The kernel that adds a bonus to the rewards, under the emulator, against its definition in plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulated import Emulator, same_bits
from emulated_bonus import add_bonus

from qcse_ext.reward import add_bonus_in_torch


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("seeds", "rows", "seed"), [(1, 1, 0), (2, 31, 1), (3, 128, 2), (1, 256, 3), (2, 700, 4)])
def test_it_is_the_definition(emulator: Emulator, seeds: int, rows: int, seed: int, dtype: type, squash: bool) -> None:
    rng = np.random.default_rng(seed)
    emulator.configure(seed=seed)
    whole = rng.standard_normal((seeds, rows + 5)).astype(dtype)  # the batch's tail: a view whose rows lie apart
    rewards, expected = whole[:, 5:], torch.from_numpy(whole.copy())[:, 5:]
    novelty = (3 * rng.standard_normal((seeds, rows))).astype(dtype)
    novelty[rng.random((seeds, rows)) < 0.1] = np.inf
    covered, eligible = rng.random((seeds, rows)) < 0.6, rng.random((seeds, rows)) < 0.8
    if seed == 2:
        covered[0], eligible[1] = False, False
    inputs = [novelty, covered, eligible, np.array(0.3, dtype)]
    wanted = add_bonus_in_torch(expected, *(torch.from_numpy(a) for a in inputs), squash)
    got = add_bonus(emulator, rewards, inputs, squash)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    assert np.allclose(got, wanted.numpy(), rtol=tolerance, atol=tolerance)
    assert np.allclose(rewards, expected.numpy(), rtol=tolerance, atol=tolerance)
    assert same_bits(got[4], wanted[4].numpy())


def test_every_schedule_gives_the_same_bits(emulator: Emulator) -> None:
    rng = np.random.default_rng(7)
    inputs = [rng.standard_normal((2, 500)).astype(np.float32), rng.random((2, 500)) < 0.9, rng.random((2, 500)) < 0.9]
    inputs.append(np.array(0.5, np.float32))
    found = []
    for schedule in range(8):
        emulator.configure(seed=schedule)
        rewards = np.ones((2, 500), np.float32)
        found.append((add_bonus(emulator, rewards, inputs, True), rewards))
    assert all(same_bits(a, found[0][0]) and same_bits(b, found[0][1]) for a, b in found)

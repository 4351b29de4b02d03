"""The kernels around the networks (csrc/nets/cuda) under the emulator against numpy, with the same bits for every order
of the threads."""

from __future__ import annotations

import emulated_policy as kernels
import numpy as np
import pytest
from emulated import Emulator, EmulatorError, same_bits
from problems_policy import TYPES, Problem, directed, is_close

PROBLEMS = list(directed())
every_type = pytest.mark.parametrize("dtype", TYPES)


@pytest.mark.parametrize(("what", "problem"), PROBLEMS, ids=[what for what, _ in PROBLEMS])
def test_problem(emulator: Emulator, what: str, problem: Problem) -> None:
    first = None
    for seed in (0, 1, 5, 6):  # threads in order, newest first, two random orders
        emulator.configure(seed=seed)
        got, want = problem(emulator)
        assert all(is_close(a, b) for a, b in zip(got, want, strict=True)), what
        first = first or got
        assert all(same_bits(a, b) for a, b in zip(got, first, strict=True)), f"{what}: seed {seed}"


@every_type
def test_samples_of_every_size(emulator: Emulator, dtype: type) -> None:
    size = np.logspace(-30, 4, 400).astype(dtype)
    u = np.concatenate([size, -size, np.zeros(1, dtype)])[:, None]
    actions, log_prob = kernels.tanh_gaussian(emulator, u, np.zeros_like(u), np.zeros_like(u)[:, None])
    exact = u[:, 0].astype(np.float64)
    density = 2 * (np.abs(exact) + np.log1p(np.exp(-2 * np.abs(exact))) - np.log(2)) - 0.5 * np.log(2 * np.pi)
    epsilon = 4 * np.finfo(dtype).eps
    assert np.allclose(actions[:, 0, 0], np.tanh(exact), rtol=epsilon, atol=0)
    assert np.allclose(log_prob[:, 0], density, rtol=epsilon, atol=epsilon)


@every_type
def test_what_is_not_finite_shows(emulator: Emulator, dtype: type) -> None:
    mean = np.array([[np.nan], [np.inf], [-np.inf], [0.0]], dtype)
    zeros = np.zeros_like(mean)
    actions, log_prob = kernels.tanh_gaussian(emulator, mean, zeros, zeros[:, None])
    assert np.isnan(actions[0]) and np.isnan(log_prob[0])
    assert actions[1:].ravel().tolist() == [1, -1, 0] and np.isposinf(log_prob[1:3]).all()
    raw = np.concatenate([zeros, mean], axis=1)[None]
    _, log_std = kernels.gaussian_head(emulator, raw, np.ones(1, dtype), np.zeros(1, dtype), -20, 2)
    assert np.isnan(log_std[0, 0, 0]) and log_std[0, 1:, 0].tolist() == [2, -20, 0]


def test_more_tensors_than_a_launch_takes(emulator: Emulator) -> None:
    one = kernels.AdamTensor(*[np.ones(1, np.float32)] * 4, None, np.zeros(1, np.float32), 1e-3)
    with pytest.raises(EmulatorError, match="adam"):
        kernels.adam(emulator, [one] * 49, (0.9, 0.999, 1e-8, 0.0))

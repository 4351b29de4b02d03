"""The estimators: Kraskov et al. against closed forms, the entropy per sample against a float64 evaluation."""

import math
import os

import numpy as np
import pytest
import torch
from scipy.special import digamma

import qcse_ext
from qcse_ext import reference


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_conditional_entropy_of_correlated_gaussians(dim: int, correlation: float) -> None:
    """Q = correlation * (mean direction of S) + noise: H(S|Q) = D/2 log(2 pi e) + 1/2 log(1 - correlation^2)."""
    generator = torch.Generator().manual_seed(100 * dim + int(10 * correlation))
    states = torch.randn(4000, dim, generator=generator)
    noise = torch.randn(4000, generator=generator)
    values = correlation * states.sum(-1) / math.sqrt(dim) + math.sqrt(1 - correlation**2) * noise
    exact = 0.5 * dim * math.log(2 * math.pi * math.e) + 0.5 * math.log(1 - correlation**2)
    assert abs(qcse_ext.conditional_entropy(states, values, 5).item() - exact) < 0.1


def test_conditional_entropy_keeps_leading_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    states, values = torch.randn(2, 3, 50, 4, generator=generator), torch.randn(2, 3, 50, generator=generator)
    together = qcse_ext.conditional_entropy(states, values, 4)
    assert together.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert together[i, j] == qcse_ext.conditional_entropy(states[i, j], values[i, j], 4)


def test_conditional_entropy_of_duplicates_and_of_a_broken_row() -> None:
    states, values = torch.zeros(10, 2), torch.zeros(10)
    assert qcse_ext.conditional_entropy(states, values, 3).item() == -math.inf
    states = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    states[3, 1] = math.nan
    assert math.isnan(qcse_ext.conditional_entropy(states, values, 3).item())


def brute_force_entropy(states: np.ndarray, values: np.ndarray, k: int, offset: float) -> np.ndarray:
    """The formula of VCSE in float64, the point itself left out."""
    dim = states.shape[1]
    distance = np.sqrt(((states[:, None] - states[None]) ** 2).sum(-1))
    gap = np.abs(values[:, None] - values[None])
    key = np.maximum(distance, gap)
    np.fill_diagonal(key, np.inf)
    radius = np.sort(key, axis=1)[:, k - 1]
    inside = gap < radius[:, None]
    np.fill_diagonal(inside, False)
    return digamma(inside.sum(1) + 1) / dim + np.log(2 * radius + offset)


def test_entropy_equals_a_float64_evaluation() -> None:
    shapes = min(1000, int(os.environ.get("QCSE_TEST_PROBLEMS", "1000")))
    for seed in range(shapes):
        rng = np.random.default_rng([7, seed])
        n, dim = int(rng.integers(2, 160)), int(rng.integers(1, 41))
        k = int(rng.integers(1, min(n - 1, 128) + 1))
        states = rng.standard_normal((n, dim)).astype(np.float32)
        values = (rng.standard_normal(n) * 10.0 ** rng.uniform(-1, 1)).astype(np.float32)
        result = qcse_ext.entropy(torch.from_numpy(states), torch.from_numpy(values), k)
        expected = brute_force_entropy(states.astype(np.float64), values.astype(np.float64), k, 1e-5)
        assert result.dtype == torch.float32
        worst = np.abs(result.numpy() - expected).max()
        assert worst < 1e-5, f"seed {seed}: N {n}, D {dim}, k {k}: off by {worst}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("offset", [1e-5, 0.0, 0.1])
def test_entropy_equals_the_reference(dtype: torch.dtype, offset: float) -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(3, 120, 6, generator=generator).to(dtype)
    values = torch.randn(3, 120, generator=generator).to(dtype)
    states[0, 5] = states[0, 6]
    values[1, 7] = math.inf
    result = qcse_ext.entropy(states, values, 6, offset=offset)
    expected = reference.entropy(states, values, 6, offset=offset)
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, rtol=2e-7, atol=1e-7, equal_nan=True)
    assert result[1, 7].isnan()


def test_duplicates_stay_finite_and_are_documented() -> None:
    """Radius 0: no value is strictly nearer, so the answer is digamma(1) / D + log(offset)."""
    result = qcse_ext.entropy(torch.ones(20, 4), torch.ones(20), 3)
    torch.testing.assert_close(result, torch.full((20,), digamma(1) / 4 + math.log(1e-5), dtype=torch.float32))


def test_digamma_of_large_and_small_counts() -> None:
    """All values equal: every other point is within the radius, so the count is N - 1 exactly."""
    generator = torch.Generator().manual_seed(2)
    for n in (2, 3, 11, 12, 13, 14, 100, 3000):
        states = torch.randn(n, 2, dtype=torch.float64, generator=generator)
        values = torch.zeros(n, dtype=torch.float64)
        radius, count = qcse_ext.knn(states, values, 1)
        assert (count == n - 1).all()
        expected = digamma(n) / 2 + np.log(2 * radius.numpy() + 1e-5)
        np.testing.assert_allclose(qcse_ext.entropy(states, values, 1).numpy(), expected, rtol=4e-15, atol=4e-15)

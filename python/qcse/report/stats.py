"""Statistics over runs, as recommended for few seeds by Agarwal et al. (arXiv 2108.13264), and of learning curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of what is left after the lowest and the highest quarter (rounded down) of all values is dropped."""
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def probability_of_improvement(better: Sequence[ArrayLike], than: Sequence[ArrayLike]) -> float:
    """P(X > Y) + P(X = Y) / 2 for a run X of the first and a run Y of the second method, averaged over tasks.

    Args:
        better, than: for each task the scores of a method's runs, [runs]; the numbers of runs may differ.
    """
    shares = []
    for x, y in zip(better, than, strict=True):
        difference = np.subtract.outer(np.asarray(x, np.float64), np.asarray(y, np.float64))
        shares.append((difference > 0).mean() + 0.5 * (difference == 0).mean())
    return float(np.mean(shares))


def improvement_interval(
    better: Sequence[ArrayLike], than: Sequence[ArrayLike], level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `probability_of_improvement`, both methods' runs drawn anew within each task."""
    rng = np.random.default_rng(seed)

    def drawn(method: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
        arrays = [np.asarray(values, np.float64) for values in method]
        return [values[rng.integers(0, len(values), len(values))] for values in arrays]

    found = [probability_of_improvement(drawn(better), drawn(than)) for _ in range(samples)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def steps_to(steps: ArrayLike, values: ArrayLike, threshold: float) -> float:
    """First of the steps at which the value reaches the threshold; infinity where it never does."""
    reached = np.asarray(values) >= threshold
    return float(np.asarray(steps)[np.argmax(reached)]) if reached.any() else float("inf")

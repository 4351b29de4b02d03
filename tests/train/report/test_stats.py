"""Statistics over runs against rliable's own numbers (recorded) and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from qcse.report.stats import improvement_interval, interquartile_mean, probability_of_improvement, steps_to

CASES = json.loads((Path(__file__).parent / "rliable_vectors.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['x'])}x{len(case['x'][0])}")
def test_equal_to_rliable(case: dict) -> None:
    assert interquartile_mean(case["x"]) == pytest.approx(case["iqm"], rel=1e-12)
    assert probability_of_improvement(case["x"], case["y"]) == pytest.approx(case["improvement"], rel=1e-12)


def test_improvement_interval_holds_the_estimate_and_knows_certainty() -> None:
    rng = np.random.default_rng(0)
    x, y = [rng.normal(1.0, 1.0, 10)], [rng.normal(0.0, 1.0, 10)]
    low, high = improvement_interval(x, y)
    assert 0.0 <= low < probability_of_improvement(x, y) < high <= 1.0
    assert improvement_interval([[5.0, 6.0]], [[1.0, 2.0]]) == (1.0, 1.0)


def test_steps_to() -> None:
    assert steps_to([0, 10, 20, 30], [1.0, 5.0, 4.0, 9.0], 5.0) == 10
    assert math.isinf(steps_to([0, 10], [1.0, 2.0], 5.0))

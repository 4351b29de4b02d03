"""The blocks of docs/operator_recipes.md, run as they stand, against closed forms."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "operator_recipes.md"
TITLES_AND_BLOCKS = re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
UNIT = 0.5 * math.log(2 * math.pi * math.e)  # entropy of a standard normal variable


def run(title: str) -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(dict(TITLES_AND_BLOCKS)[title], names)
    return names


def test_every_section_has_a_block_and_every_block_a_test() -> None:
    assert len(re.findall(r"^## ", PAGE.read_text(), re.MULTILINE)) == len(TITLES_AND_BLOCKS) == 6


@pytest.mark.parametrize(
    ("title", "name", "expected"),
    [
        ("Conditional entropy of any variable given another", "h", 2 * UNIT + math.log(0.6)),
        ("Entropy of X alone", "h", 3 * UNIT),
        ("Mutual information of two scalars", "information", -math.log(0.6)),
        ("Mutual information of a vector and a scalar", "information", -math.log(0.6)),
    ],
)
def test_estimate_equals_the_closed_form(title: str, name: str, expected: float) -> None:
    assert float(run(title)[name]) == pytest.approx(expected, abs=0.06)
    comment = re.search(r"# here .*?= (\d\.\d+)", dict(TITLES_AND_BLOCKS)[title])
    assert comment is not None and float(comment[1]) == pytest.approx(expected, abs=6e-4)


def test_distance_is_that_of_brute_force() -> None:
    names = run("Distances to the k-th neighbour: novelty, density, outliers")
    distances = torch.cdist(names["new"].double(), names["seen"].double())
    expected = distances.topk(12, largest=False).values[:, -1]
    torch.testing.assert_close(names["distance"].double(), expected, rtol=1e-5, atol=1e-6)
    assert names["novelty"][-64:].mean() > names["novelty"][:64].mean()


def test_problems_at_once_are_the_problems_one_by_one() -> None:
    import qcse_ext

    names = run("Many problems at once")
    assert torch.equal(names["h"], names["same"])
    for s in range(8):
        assert torch.equal(names["h"][s], qcse_ext.entropy(names["states"][s], names["q"][s], 12))

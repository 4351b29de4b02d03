"""add_bonus: the definition's arithmetic, its errors and its shapes without data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qcse_ext.reward import STATISTICS, add_bonus


def arguments(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        "rewards": torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=dtype),
        "novelty": torch.tensor([[0.5, 3.0, math.inf, 0.1]], dtype=dtype),
        "covered": torch.tensor([[True, True, True, False]]),
        "eligible": torch.tensor([[True, True, True, False]]),
        "weight": torch.tensor(2.0, dtype=dtype),
    }


def test_the_arithmetic() -> None:
    given = arguments()
    statistics = dict(zip(STATISTICS, add_bonus(**given).squeeze(1).tolist(), strict=True))
    bonus = [math.tanh(0.5), math.tanh(3.0), 0.0]
    mean = sum(bonus) / 3
    assert given["rewards"].tolist() == [[1 + 2 * bonus[0], 2 + 2 * bonus[1], 3.0, 4.0]]
    assert statistics == pytest.approx(
        {
            "mean": mean,
            "std": math.sqrt(sum((b - mean) ** 2 for b in bonus) / 3),
            "novelty": 1.75,
            "saturated": 0.5,
            "weight": 2.0,
        }
    )


def test_without_a_squash_the_novelty_is_the_bonus() -> None:
    given = arguments()
    add_bonus(**given, squash=False)
    assert given["rewards"].tolist() == [[2.0, 8.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rewards", torch.zeros(4), r"rewards must have shape \[S, N\], got \[4\]"),
        ("novelty", torch.zeros(1, 3), r"novelty must have shape \[1, 4\], got \[1, 3\]"),
        ("covered", torch.zeros(1, 4), "covered must be bool, got float32"),
        ("weight", torch.zeros(1), r"weight must have shape \[\], got \[1\]"),
    ],
)
def test_errors_name_the_argument(name: str, value: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        add_bonus(**{**arguments(torch.float32), name: value})


def test_shapes_without_data() -> None:
    given = {name: value.to("meta") for name, value in arguments().items()}
    statistics = torch.ops.qcse.add_bonus(*given.values(), True)
    assert statistics.shape == (len(STATISTICS), 1) and statistics.dtype == torch.float64

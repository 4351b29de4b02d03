"""Q-conditioned state entropy (arXiv 2310.19805)."""

from __future__ import annotations

from .base import BonusSpec
from .neighbours import VALUE_RANGES, ValueOptions, check_values

# Neighbours that worked best in the paper, per task family (as quoted by its reviewers).
PAPER_NEIGHBOURS = {"hopper": 10, "walker2d": 20, "antmaze": 25}


def defaults(options: ValueOptions, family: str | None) -> None:
    """The paper's weight of 1, and a scaling that does not saturate its tanh."""
    options.k = PAPER_NEIGHBOURS.get(family or "", 12)


BONUS = BonusSpec(
    summary="entropy of states given their Q, from k nearest neighbours (arXiv 2310.19805)",
    options=ValueOptions,
    implementation="qcse:QConditionedEntropy",
    defaults=defaults,
    check=check_values,
    ranges=VALUE_RANGES,
)

"""Calibrated Q-learning (arXiv 2303.05479): CQL's options."""

from __future__ import annotations

from . import cql
from .base import Algorithm


def preset(options: cql.CqlOptions, family: str, kind: str) -> None:
    """CQL's, and half of each online batch from the dataset."""
    options.offline_fraction = 0.5
    cql.preset(options, family, kind)


ALGORITHM = Algorithm(
    summary="conservative, calibrated by the data's returns",
    agent="cal_ql:CalQL",
    options=cql.CqlOptions,
    preset=preset,
    published=cql.PUBLISHED,
    ranges=cql.RANGES,
    online_only=cql.ONLINE_ONLY,
)

"""No bonus. The options are qcse's, so that `--bonus qcse` is all that two runs differ in."""

from __future__ import annotations

from .base import BonusOptions, BonusSpec, Run
from .qcse import defaults


def nothing(options: BonusOptions, run: Run) -> None:
    """There is nothing to check."""


BONUS = BonusSpec(
    summary="the task's reward alone",
    options=BonusOptions,
    implementation=None,
    defaults=defaults,
    check=nothing,
    capturable=lambda options: True,
)

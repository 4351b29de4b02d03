"""Calibrated Q-learning (arXiv 2303.05479): CQL that never pushes Q below the value of the behaviour policy."""

from __future__ import annotations

from torch import Tensor

from ..buffer import Batch
from .cql import CQL


class CalQL(CQL):
    """CQL whose conservative term sees max(Q(s, a), G) at the policy's actions, G the Monte-Carlo return of the data.

    A transition without a known return has G = -inf, which bounds nothing: online transitions where
    `cql.calibration_online` is 'off', and those of the episode that is still running.
    """

    calibrated = True

    def bound(self, batch: Batch) -> Tensor:
        return batch.returns

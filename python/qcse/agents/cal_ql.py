"""Calibrated Q-learning (arXiv 2303.05479): CQL that never pushes Q below the value of the behaviour policy."""

from __future__ import annotations

import torch
from torch import Tensor

from ..buffer import Batch
from .cql import CQL


class CalQL(CQL):
    """CQL whose conservative term sees max(Q(s, a), G) at the policy's actions, G the Monte-Carlo return of the data.

    A transition without a known return has G = -inf, which bounds nothing: online transitions where
    `cql.calibration_online` is 'off', and those of the episode that is still running.
    """

    def calibrate(self, sampled: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        bound = batch.returns[:, None, :, None]
        with torch.no_grad():
            binds = (sampled < bound).to(sampled.dtype).mean((1, 2, 3))
        return torch.maximum(sampled, bound), {"cal_ql/bound_share": binds}

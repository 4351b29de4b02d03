"""Running mean and spread of what a bonus scales."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from qcse_ext.bonus import move_moments


class RunningMoments:
    """Mean and standard deviation of a stream of masked batches, per seed and channel.

    The rate of batch t is max(1 / t, 1 / horizon): exact over the first `horizon` batches when they are equally
    large, an exponential average after that. A batch without a valid row changes nothing. A row with a number that is
    not finite, or beyond 1e18, is no valid one: the moments, once finite, stay so.
    """

    def __init__(self, shape: tuple[int, ...], horizon: int, device: torch.device) -> None:
        self.mean = torch.zeros(shape, device=device)
        self.variance = torch.ones(shape, device=device)
        self.batches = torch.zeros(shape[0], device=device)
        self.horizon = horizon

    def part(self, channels: int | slice) -> RunningMoments:
        """The moments of some channels, as a view: they move with the whole, and the whole with them."""
        view = copy.copy(self)
        view.mean, view.variance = self.mean[:, channels], self.variance[:, channels]
        return view

    def update(self, x: Tensor, valid: Tensor) -> None:
        """x [S, N, C] (or [S, N] where the shape is [S]); valid [S, N] bool."""
        move_moments(self.mean, self.variance, self.batches, x, valid, float(self.horizon))

    def standardise(self, x: Tensor) -> Tensor:
        """(x - mean) / spread, for x [S, N, C] or [S, N]; a channel that hardly varies is only centred."""
        return (x - self.mean.unsqueeze(1)) / self.spread().unsqueeze(1)

    def spread(self) -> Tensor:
        """The standard deviation, [S, C] or [S]; 1 for a channel that hardly varies."""
        spread = self.variance.sqrt()
        return torch.where(spread > 1e-6, spread, 1.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "variance": self.variance, "batches": self.batches}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in ("mean", "variance", "batches"):
            getattr(self, name).copy_(state[name])

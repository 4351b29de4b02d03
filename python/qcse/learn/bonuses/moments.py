"""Running mean and spread of what a bonus scales."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

LARGEST = 1e18  # its square, and sums of a few of those, do not overflow float32; csrc/bonus/batch_entropy.h has it too


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
        moderate = x.abs() <= LARGEST  # NaN is not
        valid = valid & (moderate.all(-1) if x.dim() == 3 else moderate)
        rows = valid.sum(1)
        some = rows > 0
        self.batches += some
        rate = (some / self.batches.clamp(1.0, self.horizon)).view(-1, *[1] * (x.dim() - 2))
        weight = valid / rows.clamp(min=1).unsqueeze(1)
        if x.dim() == 3:
            valid, weight = valid.unsqueeze(-1), weight.unsqueeze(-1)
        x = torch.where(valid, x, 0.0)  # what does not count need not be finite
        mean = (weight * x).sum(1)
        variance = (weight * (x - mean.unsqueeze(1)).square_()).sum(1)
        # Mixture of two groups: within-group variances plus the spread between their means. The first batch
        # replaces the initial values entirely (rate 1).
        # In place: a captured graph goes on with the tensors that it knows.
        self.variance.lerp_(torch.addcmul(variance, 1.0 - rate, (mean - self.mean).square_()), rate)
        self.mean.lerp_(mean, rate)

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

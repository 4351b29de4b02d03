"""Running mean and spread of what a bonus scales."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningMoments:
    """Mean and standard deviation of a stream of masked batches, per seed and channel.

    The rate of batch t is max(1 / t, 1 / horizon): exact over the first `horizon` batches when they are equally
    large, an exponential average after that. A batch without a valid row changes nothing.
    """

    def __init__(self, shape: tuple[int, ...], horizon: int, device: torch.device) -> None:
        self.mean = torch.zeros(shape, device=device)
        self.variance = torch.ones(shape, device=device)
        self.batches = torch.zeros(shape[0], device=device)
        self.horizon = horizon

    def update(self, x: Tensor, valid: Tensor) -> None:
        """x [S, N, C] (or [S, N] where the shape is [S]), valid [S, N] bool."""
        mask = valid if x.dim() == 2 else valid.unsqueeze(-1)
        rows = valid.sum(1).to(x.dtype)
        rows_c = rows.view(-1, *[1] * (x.dim() - 2))
        x = torch.where(mask, x, 0.0)
        mean = x.sum(1) / rows_c.clamp(min=1.0)
        variance = torch.where(mask, (x - mean.unsqueeze(1)).square(), 0.0).sum(1) / rows_c.clamp(min=1.0)
        some = (rows > 0).to(x.dtype)
        self.batches += some
        rate = some * torch.clamp(1.0 / self.batches.clamp(min=1.0), min=1.0 / self.horizon)
        rate = rate.view(-1, *[1] * (x.dim() - 2))
        shift = mean - self.mean
        # Mixture of two groups: within-group variances plus the spread between their means. The first batch
        # replaces the initial values entirely (rate 1).
        # In place, here and below: a captured graph goes on with the tensors that it knows.
        self.variance.copy_((1.0 - rate) * self.variance + rate * variance + rate * (1.0 - rate) * shift.square())
        self.mean.copy_(self.mean + rate * shift)

    def standardise(self, x: Tensor) -> Tensor:
        """(x - mean) / spread; a channel that hardly varies is only centred."""
        return (x - self.mean.unsqueeze(1)) / self.spread().unsqueeze(1)

    def spread(self) -> Tensor:
        """The standard deviation; 1 for a channel that hardly varies."""
        spread = self.variance.sqrt()
        return torch.where(spread > 1e-6, spread, 1.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "variance": self.variance, "batches": self.batches}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in ("mean", "variance", "batches"):
            getattr(self, name).copy_(state[name])

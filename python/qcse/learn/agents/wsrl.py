"""Warm-start reinforcement learning, WSRL (arXiv 2412.07762): fine-tuning that retains no offline data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...config.algorithms.wsrl import WsrlOptions
from ..buffer import Batch, Episode, ReplayBuffer
from ..reward import IntrinsicReward
from .cal_ql import CalQL
from .sac import SAC, Noise


class WSRL(CalQL):
    """Conservative pre-training, then plain SAC on online data alone, from the pre-trained networks on.

    Offline: Cal-QL's losses, or CQL's (`wsrl.pretraining`), policy and critics at each update. Online: the pre-trained
    policy collects `learning_starts` transitions while nothing is learnt; then SAC's losses without the conservative
    term, on batches of online transitions (`offline_fraction` 0), `updates_per_step` critic updates for each step and
    one of the policy (`policy_every`). Both phases have the ensemble: E = 10 critics with layer norm, targets from the
    least of 2 that are drawn anew (`net.critics`, `critic_subset`); the conservative term is taken for those 2 only.
    """

    config: WsrlOptions

    @property
    def calibrated(self) -> bool:  # type: ignore[override]
        return self.config.wsrl.pretraining == "cal_ql"

    def returns_of(
        self, rewards: NDArray[np.float32], episode_end: NDArray[np.bool_], bootstrap: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        return super().returns_of(rewards, episode_end, bootstrap) if self.calibrated else None

    def episode_end(self, episode: Episode, buffer: ReplayBuffer, reward: IntrinsicReward) -> None:
        """Online there is no conservative term whose bound would need the episode's returns."""

    @property
    def policy_turn(self) -> bool:
        return super().policy_turn if self.online else True

    def noise_shapes(self, batch_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        if not self.online:
            return super().noise_shapes(batch_size)
        shapes = SAC.noise_shapes(self, batch_size)
        if self.config.wsrl.max_target_backup:
            shapes["backup"] = ("normal", (batch_size, self.config.cql.actions, self.action_dim))
        return shapes

    def critic_loss(
        self, batch: Batch, noise: Noise, mean: Tensor, log_std: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        phase = SAC if self.online else CalQL
        return phase.critic_loss(self, batch, noise, mean, log_std, temperature)

    def bound(self, batch: Batch) -> Tensor:
        return super().bound(batch) if self.calibrated else super(CalQL, self).bound(batch)

"""Calibrated Q-learning (arXiv 2303.05479): CQL that never pushes Q below the value of the behaviour policy."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.transitions import monte_carlo_returns
from ..buffer import NO_RETURN, Batch, Episode, ReplayBuffer
from ..reward import IntrinsicReward
from .cql import CQL


class CalQL(CQL):
    """CQL whose conservative term sees max(Q(s, a), G) at the policy's actions, G the Monte-Carlo return of the data.

    A transition without a known return has G = -inf, which bounds nothing: online transitions where
    `cql.calibration_online` is 'off', and those of the episode that is still running.
    """

    calibrated = True

    def bound(self, batch: Batch) -> Tensor:
        return batch.returns

    def returns_of(
        self, rewards: NDArray[np.float32], episode_end: NDArray[np.bool_], bootstrap: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        # With a negative bias (antmaze: 10 r - 5) an episode that never saw a reward would go on paying the bias.
        bias = self.config.reward_bias
        return monte_carlo_returns(rewards, episode_end, bootstrap, self.config.discount, bias if bias < 0 else None)

    def prepare(self, batch: Batch, online: bool) -> None:
        if online and self.config.cql.calibration_online == "off":  # the dataset's rows are not bounded either
            batch.returns = self.constant(NO_RETURN, batch.returns)

    def episode_end(self, episode: Episode, buffer: ReplayBuffer, reward: IntrinsicReward) -> None:
        calibration = self.config.cql.calibration_online
        if calibration == "off":
            return
        slots, length = episode.slots, len(episode.rewards)
        kept = min(length, buffer.capacity)  # a longer episode has overwritten its own beginning
        index = torch.tensor(slots[-kept:], device=buffer.device)
        end, bootstrap = np.zeros(length, np.bool_), np.ones(length, np.float32)
        end[-1], bootstrap[-1] = True, float(not episode.terminal)
        returns = self.returns_of(episode.rewards, end, bootstrap)
        assert returns is not None
        if calibration == "return_with_bonus" and reward.active:
            bonus = np.zeros(length, np.float32)
            bonus[-kept:] = reward.weight * reward.of_episode(index + buffer.dataset_size, episode.seed).cpu().numpy()
            returns = returns + monte_carlo_returns(bonus, end, bootstrap, self.config.discount)
        buffer.online["returns"][episode.seed, index] = torch.from_numpy(returns[-kept:]).to(buffer.device)

"""Entropy of states alone: RE3's bonus."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.bonuses.se import StateEntropyOptions
from ..buffer import Batch, ReplayBuffer
from ..nets import BatchedMLP
from ..streams import Streams
from .base import Learner
from .neighbours import Neighbours


class StateEntropy(Neighbours):
    """log(1 + distance to the k-th nearest state): RE3's bonus (arXiv 2102.09430, equation 2), APT's with its last
    neighbour in place of the mean over k (arXiv 2103.04551).

    The distance is taken behind a random network that never learns (`encoder` 'random': RE3's 50 layer-normalised
    features, made by a perceptron where RE3 has images), or between the scaled states themselves ('none'). Each seed
    has its own network.
    """

    config: StateEntropyOptions

    def __init__(self, config: StateEntropyOptions, agent: Learner, buffer: ReplayBuffer, streams: Streams) -> None:
        super().__init__(config, agent, buffer, streams)
        self.encoder: BatchedMLP | None = None
        if config.encoder == "random":
            sizes = [self.state_dim, *config.hidden, config.embedding]
            self.encoder = BatchedMLP(sizes, streams.generators("initialisation"), orthogonal=True)
            self.encoder.requires_grad_(False)

    def features(self, observations: Tensor) -> Tensor:
        scaled = super().features(observations)
        if self.encoder is None:
            return scaled
        return F.layer_norm(self.encoder(scaled), (self.config.embedding,))

    def values(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.rewards)

    def novelty(self, radius: Tensor, count: Tensor) -> Tensor:
        return torch.log1p(radius)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"encoder": None if self.encoder is None else self.encoder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.encoder is not None:
            self.encoder.load_state_dict(state["encoder"])

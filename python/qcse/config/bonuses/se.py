"""State entropy (RE3, arXiv 2102.09430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import BonusSpec
from .neighbours import ENCODER_RANGES, RANGES, EncoderOptions, NeighbourOptions, check


@dataclass
class StateEntropyOptions(NeighbourOptions, EncoderOptions):
    encoder: Literal["random", "none"] = "random"
    """se: distances behind a random network that never learns, as in RE3, or between the states themselves."""


def defaults(options: StateEntropyOptions, family: str | None) -> None:
    """RE3's DeepMind Control runs (younggyoseo/RE3, commit 66cc4d1): weight 0.05, decay 1e-5, k 3, 50 features."""
    options.weight, options.decay, options.k, options.squash = 0.05, 1e-5, 3, "none"
    options.state_scale = "standardised"


BONUS = BonusSpec(
    summary="entropy of states alone, log(1 + distance to the k-th neighbour) (RE3, arXiv 2102.09430)",
    options=StateEntropyOptions,
    implementation="se:StateEntropy",
    defaults=defaults,
    check=check,
    ranges=RANGES | ENCODER_RANGES,
)

"""Random network distillation (arXiv 1810.12894)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError
from ..ranges import POSITIVE
from .base import BonusSpec, Run
from .neighbours import ENCODER_RANGES, EncoderOptions


@dataclass
class DistillationOptions(EncoderOptions):
    predictor_lr: float = 1e-4
    """rnd: Adam's rate for the predictor."""


def defaults(options: DistillationOptions, family: str | None) -> None:
    """The published code's (openai/random-network-distillation, commit f75c0f1): 512 features, rate 1e-4, intrinsic to
    extrinsic as 1 to 2."""
    options.weight, options.squash, options.embedding = 0.5, "scaled", 512


def check(options: DistillationOptions, run: Run) -> None:
    if options.when == "store":
        raise ConfigError(
            "bonus.when: got 'store' with --bonus rnd, whose predictor learns from the batches that it judges; "
            "expected 'sample'"
        )


BONUS = BonusSpec(
    summary="error of predicting a random network (arXiv 1810.12894)",
    options=DistillationOptions,
    implementation="rnd:RandomNetworkDistillation",
    defaults=defaults,
    check=check,
    ranges=ENCODER_RANGES | {"predictor_lr": POSITIVE},
)

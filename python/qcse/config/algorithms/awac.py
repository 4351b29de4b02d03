"""Advantage-weighted actor-critic (arXiv 2006.09359)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ranges import POSITIVE
from .base import ADROIT, Algorithm, NetworkConfig, Options
from .iql import near_the_data


@dataclass
class AwacConfig:
    """Advantage-weighted actor-critic (arXiv 2006.09359)."""

    temperature: float = 1.0 / 3.0
    """lambda: the policy imitates an action with weight exp(advantage / lambda), at most 100. The weights are not
    divided by their sum over the batch, as in CORL."""


@dataclass
class AwacOptions(Options):
    awac: AwacConfig = field(default_factory=AwacConfig)


def preset(options: AwacOptions, family: str, kind: str) -> None:
    """CORL's (finetune/awac, on MuJoCo offline/awac, commit 6afec90), without its scaling of MuJoCo's rewards."""
    near_the_data(options, family, kind)
    options.net = NetworkConfig((256,) * 3, (256,) * 3)
    if family in ("antmaze", *ADROIT):
        options.awac.temperature = 0.1


ALGORITHM = Algorithm(
    summary="imitates the data's better actions, sampled advantages",
    agent="awac:AWAC",
    options=AwacOptions,
    preset=preset,
    published={"corl": ("antmaze", *ADROIT)},
    ranges={"awac.temperature": POSITIVE},
)

"""Implicit Q-learning (arXiv 2110.06169)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ranges import NOT_NEGATIVE, Range
from .base import ADROIT, Algorithm, Options


@dataclass
class IqlConfig:
    """Implicit Q-learning (arXiv 2110.06169)."""

    expectile: float = 0.7
    """Expectile of Q that the value function is regressed on; near 1 it is near the maximum over the data's actions."""
    beta: float = 3.0
    """Inverse temperature: the policy imitates an action with weight exp(beta * advantage), at most 100."""


@dataclass
class IqlOptions(Options):
    iql: IqlConfig = field(default_factory=IqlConfig)


def preset(options: IqlOptions, family: str, kind: str) -> None:
    """On MuJoCo WSRL's (commit 891ee35: expectile 0.7, beta 3), elsewhere CORL's (finetune/iql, commit 6afec90: 0.9 and
    10 on AntMaze, 0.8 and 3 on Adroit). The policy's rate is constant, as in WSRL; CORL's falls along a cosine, and its
    policy has dropout on Adroit."""
    near_the_data(options, family, kind)
    options.normalize_observations = family in ("antmaze", *ADROIT)
    if family == "antmaze":
        options.iql.expectile, options.iql.beta = 0.9, 10.0
    elif family in ADROIT:
        options.iql.expectile = 0.8


def near_the_data(options: Options, family: str, kind: str) -> None:
    """What iql, awac and td3_bc share."""
    options.policy_lr = 3e-4
    options.normalize_observations = True
    if family == "antmaze":
        options.reward_bias = -1.0
        options.eval_every, options.eval_episodes = 50_000, 100
    if family in ("antmaze", *ADROIT) or kind == "corl":
        options.offline_steps = options.online_steps = 1_000_000


ALGORITHM = Algorithm(
    summary="imitates the data's better actions, expectile values",
    agent="iql:IQL",
    options=IqlOptions,
    preset=preset,
    published={"corl": ("antmaze", *ADROIT)},
    ranges={"iql.expectile": Range(0, 1, "()"), "iql.beta": NOT_NEGATIVE},
)

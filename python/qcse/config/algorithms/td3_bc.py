"""TD3+BC (arXiv 2106.06860)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ranges import NOT_NEGATIVE
from .base import MUJOCO, Algorithm, Options
from .iql import near_the_data


@dataclass
class Td3BcConfig:
    """TD3+BC (arXiv 2106.06860). Its delay of policy and targets is policy_every."""

    alpha: float = 2.5
    """Weight of Q, divided by the batch's mean |Q|, against the squared distance from the data's actions."""
    policy_noise: float = 0.2
    """Standard deviation of the noise on the target policy's action."""
    noise_clip: float = 0.5
    """Bound of that noise."""
    exploration_noise: float = 0.1
    """Standard deviation of the Gaussian noise that is added to the actions taken online."""


@dataclass
class Td3BcOptions(Options):
    td3_bc: Td3BcConfig = field(default_factory=Td3BcConfig)


def preset(options: Td3BcOptions, family: str, kind: str) -> None:
    """CORL's (commit 6afec90), which are the paper's; both have an offline phase only."""
    near_the_data(options, family, kind)
    options.policy_every = 2


ALGORITHM = Algorithm(
    summary="deterministic, held near the data",
    agent="td3_bc:TD3BC",
    options=Td3BcOptions,
    preset=preset,
    published={"corl": MUJOCO},
    ranges={f"td3_bc.{name}": NOT_NEGATIVE for name in ("alpha", "policy_noise", "noise_clip", "exploration_noise")},
    online_only=("td3_bc.exploration_noise",),
)

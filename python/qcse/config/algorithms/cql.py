"""Conservative Q-learning (arXiv 2006.04779)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..ranges import NOT_NEGATIVE, NUMBER, POSITIVE, Range
from .base import ADROIT, MUJOCO, Algorithm, NetworkConfig, Options


@dataclass
class CqlConfig:
    """Conservative Q-learning (arXiv 2006.04779); used by cql, cal_ql and the pre-training of wsrl."""

    alpha: float = 5.0
    """Weight of the conservative term."""
    actions: int = 10
    """Actions sampled per state from each of: uniform, policy at s, policy at s'."""
    importance_sampling: bool = True
    """Subtract each sampled action's log-density inside the log-sum-exp, CQL(H)."""
    max_target_backup: bool = True
    """Bootstrap from the best of `actions` sampled next actions instead of one."""
    lagrange: bool = False
    """Learn a multiplier that holds the conservative gap at `target_gap`."""
    target_gap: float = 0.8
    """Gap between the log-sum-exp and the data's Q that the multiplier aims at (only with lagrange)."""
    temperature: float = 1.0
    """Temperature of the log-sum-exp."""
    clip_difference: float | None = None
    """Lower bound of the conservative difference of one transition (CORL's antmaze runs: -200); None: no bound."""
    calibration_online: Literal["off", "task_return", "return_with_bonus"] = "off"
    """cal_ql, online phase: the lower bound of Q at the policy's actions. 'off' as in CORL; 'task_return' bounds by
    the Monte-Carlo return of the task's reward of each finished online episode, as in the official code (with a
    bonus in the reward this bounds another quantity than the Q that is learnt); 'return_with_bonus' adds the
    bonuses that the episode's transitions had when it finished. Offline the bound is always on."""


@dataclass
class CqlOptions(Options):
    cql: CqlConfig = field(default_factory=CqlConfig)


RANGES = {
    "cql.alpha": NOT_NEGATIVE,
    "cql.actions": Range(1, 1_000_000),
    "cql.temperature": POSITIVE,
    **dict.fromkeys(("cql.target_gap", "cql.clip_difference"), NUMBER),
}
ONLINE_ONLY = ("cql.calibration_online",)
PUBLISHED = {"corl": (*MUJOCO, "antmaze", *ADROIT), "official": ("antmaze",)}


def preset(options: CqlOptions, family: str, kind: str) -> None:
    """By default, on MuJoCo those of WSRL's public offline-to-online configuration (commit 891ee35: two hidden layers
    of 256, alpha 5, no Lagrange multiplier, max-target backup, 250k updates offline), on AntMaze CORL's (commit
    6afec90), on the embedded point maze AntMaze's rewards with small networks. corl: CORL's everywhere. official: those
    of Cal-QL's authors (commit ac6eafe)."""
    if family == "antmaze":
        options.reward_scale, options.reward_bias = 10.0, -5.0
        options.offline_steps = options.online_steps = 1_000_000
        options.cql.lagrange = True
        options.eval_every = 50_000
        if kind == "official":
            options.net = NetworkConfig((256,) * 2, (256,) * 4, orthogonal_init=True)
            options.cql.calibration_online = "task_return"
            options.update_after = "episode"
            options.eval_episodes = 20
        else:
            options.net = NetworkConfig((256,) * 3, (256,) * 5, orthogonal_init=True)
            options.cql.clip_difference = -200.0
            options.eval_episodes = 100
    elif kind == "corl":
        options.offline_steps = options.online_steps = 1_000_000
        options.net = NetworkConfig((256,) * 3, (256,) * 3, orthogonal_init=True)
        if family in ADROIT:
            options.cql.alpha = 1.0
        else:
            options.cql.alpha, options.cql.max_target_backup = 10.0, False
            options.policy_lr, options.normalize_observations = 3e-5, True


ALGORITHM = Algorithm(
    summary="conservative",
    agent="cql:CQL",
    options=CqlOptions,
    preset=preset,
    published=PUBLISHED,
    ranges=RANGES,
    online_only=ONLINE_ONLY,
)

"""Warm-start reinforcement learning (arXiv 2412.07762)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from . import cql
from .base import Algorithm


@dataclass
class WsrlConfig:
    """Warm-start reinforcement learning (arXiv 2412.07762)."""

    pretraining: Literal["cql", "cal_ql"] = "cql"
    """Whose losses the offline phase has; options of both are in the cql group."""
    max_target_backup: bool = False
    """Online phase: bootstrap from the best of `cql.actions` sampled next actions (the authors' antmaze runs)."""


@dataclass
class WsrlOptions(cql.CqlOptions):
    wsrl: WsrlConfig = field(default_factory=WsrlConfig)


def preset(options: WsrlOptions, family: str, kind: str) -> None:
    """Its authors' (commit 891ee35) on MuJoCo, and on AntMaze except for the policy's standard deviation, which there
    does not depend on the state."""
    options.offline_fraction, options.online_steps = 0.0, 500_000
    options.learning_starts = 5000
    options.net.critics, options.net.critic_layer_norm, options.net.policy_layer_norm = 10, True, True
    options.critic_subset = 2
    options.updates_per_step, options.policy_every = 4, None
    if family == "antmaze":
        options.offline_steps = 1_000_000
        options.net.critic_hidden = (256,) * 4
        options.reward_scale, options.reward_bias = 10.0, -5.0
        options.cql.lagrange = True
        options.wsrl.pretraining, options.wsrl.max_target_backup = "cal_ql", True
        options.eval_every, options.eval_episodes = 20_000, 20


ALGORITHM = Algorithm(
    summary="conservative pre-training, then SAC on experience alone",
    agent="wsrl:WSRL",
    options=WsrlOptions,
    preset=preset,
    ranges=cql.RANGES,
    online_only=(*cql.ONLINE_ONLY, "wsrl.max_target_backup"),
)

"""Reinforcement learning with prior data (arXiv 2302.02948): options of all SAC-like algorithms, set otherwise."""

from __future__ import annotations

from .base import ADROIT, Algorithm, Options


def preset(options: Options, family: str, kind: str) -> None:
    """Its authors' (commit c90fd4b): D4RL's locomotion, with their changes for AntMaze and Adroit."""
    options.offline_steps, options.offline_fraction = 0, 0.5
    options.learning_starts = options.random_steps = 5000
    options.policy_lr = 3e-4
    options.net.critics, options.net.critic_layer_norm = 10, True
    options.critic_subset, options.policy_value, options.entropy_backup = 2, "mean", True
    options.updates_per_step, options.policy_every = 20, None
    if family in ("antmaze", *ADROIT):
        options.net.policy_hidden = options.net.critic_hidden = (256,) * 3
        options.entropy_backup = False
        options.online_steps = 300_000 if family == "antmaze" else 1_000_000
    if family == "antmaze":
        options.critic_subset, options.reward_bias = 1, -1.0
        options.eval_episodes = 100


ALGORITHM = Algorithm(summary="SAC on half data, half experience", agent="rlpd:RLPD", options=Options, preset=preset)

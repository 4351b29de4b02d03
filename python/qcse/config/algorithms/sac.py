"""Soft actor-critic (arXiv 1801.01290, 1812.05905)."""

from __future__ import annotations

from .base import Algorithm, Options


def preset(options: Options, family: str, kind: str) -> None:
    """Stable-Baselines3's."""
    options.offline_steps, options.online_steps = 0, 1_000_000
    options.policy_lr = 3e-4
    options.entropy_backup = True
    options.learning_starts = options.random_steps = 5000


ALGORITHM = Algorithm(summary="soft actor-critic", agent="sac:SAC", options=Options, preset=preset, needs_data=False)

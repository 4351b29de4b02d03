"""Conversion of datasets from one source to another."""

from __future__ import annotations

from .sources import load_dataset, source_of
from .transitions import recorded_env


def convert(source: str, target: str, env_id: str | None = None) -> str:
    """Convert between D4RL's layout and Minari; returns what was written.

    Transitions, ends of episodes and scalars of metadata are carried over; D4RL's infos (qpos, qvel, goal) have no
    place in Minari's steps and are left behind.

    Args:
        source, target: a file in D4RL's layout, or "minari:ID".
        env_id: environment to note down; None: the one that the data name.

    Raises:
        DatasetError: a source that cannot be read, a target that exists.
    """
    with source_of(target).reserved(target):
        data = load_dataset(source)
        if source_of(source).unit_actions:
            data.metadata["action_units"] = "unit"
        return source_of(target).write(target, data, env_id, recorded_env(data))

"""What the name of an environment says before anything is made or imported."""

from __future__ import annotations

MINARI = "minari:"  # before the name of a Minari dataset, it stands for the environment that that was recorded in


def is_minari(env_id: str) -> bool:
    return env_id.startswith(MINARI)


def is_code(env_id: str) -> bool:
    """Whether making the environment of this name imports a module that the name itself chooses."""
    return ":" in env_id and not is_minari(env_id)


def is_maze(env_id: str) -> bool:
    """Whether it is a maze of this package, in which a body can be led from place to place."""
    return env_id.startswith(("qcse/pointmaze-", "qcse/maze2d-", "qcse/antmaze-"))

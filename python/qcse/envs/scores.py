"""Task families and their reference scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Return of a random and of an expert policy, per task family: the constants of D4RL's normalised score.
REFERENCE_SCORES: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "pen": (96.262799, 3076.8331017826877),
    "door": (-56.512833, 2880.5693087298737),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "maze2d-open": (0.01, 20.66),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-open-dense": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
    "pointmaze": (0.0, 1.0),  # this package's own task, which ends at the goal: success in percent, as in antmaze
}


def task_family(env_id: str) -> str:
    """Task family of an environment's name, a key of REFERENCE_SCORES, or "other": "Hopper-v5" -> "hopper".

    Names in a namespace ("dm_control/hopper-hop-v0") are other tasks under familiar names, and so "other"; those in
    this package's own, "qcse/", are D4RL's. Gymnasium-Robotics's point mazes and its hand differ from D4RL's: "other".
    """
    own = env_id.lower().removeprefix("qcse/")
    if own.startswith("maze2d-"):
        family = own.rpartition("-v")[0] or own
    else:
        family = own.rsplit(":", 1)[-1].split("-")[0]
        if family.startswith("antmaze"):
            family = "antmaze"
    return family if family in REFERENCE_SCORES else "other"


def normalized_score(task_family: str, returns: ArrayLike) -> NDArray[np.float64]:
    """D4RL's score 100 (R - min) / (max - min): 0 is a random policy, 100 an expert.

    Args:
        task_family: a key of REFERENCE_SCORES; for any other the score is NaN, as there is no reference.
        returns: undiscounted returns, of any shape.

    Returns:
        float64, shaped as `returns`.
    """
    values = np.asarray(returns, np.float64)
    low, high = REFERENCE_SCORES.get(task_family, (np.nan, np.nan))
    return np.asarray(100.0 * (values - low) / (high - low))

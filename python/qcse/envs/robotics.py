"""Gymnasium-Robotics's environments, registered where they are asked for."""

from __future__ import annotations

import contextlib
import io
import re

import gymnasium

from ..errors import EnvError

ROBOTICS = re.compile(r"(AntMaze|PointMaze|AdroitHand|Fetch|HandReach|HandManipulate|FrankaKitchen)")


def register_robotics() -> None:
    """Register Gymnasium-Robotics's environments; ImportError where that package is missing.

    It also registers outdated versions of Gymnasium's own names (Hopper-v2), which are left as they were: what a name
    stands for must not depend on what else was used before.
    """
    before = dict(gymnasium.registry)
    with contextlib.redirect_stderr(io.StringIO()):  # it prints a notice about Adroit's rewards, see `adroit_reward`
        import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    for name in list(gymnasium.registry):
        if not ROBOTICS.match(name):
            if name in before:
                gymnasium.registry[name] = before[name]
            else:
                del gymnasium.registry[name]


def needs_robotics(name: str) -> None:
    """Register them once, if this name is one of theirs; EnvError where they are not installed."""
    if not ROBOTICS.match(name) or name in gymnasium.registry:
        return
    try:
        register_robotics()
    except ImportError as error:
        raise EnvError(
            f"env: {name} is part of Gymnasium-Robotics, which is not installed ({error}); pip install 'qcse[maze]'"
        ) from error

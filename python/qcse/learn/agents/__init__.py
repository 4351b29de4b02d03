"""The learning algorithms, one per file; `config/algorithms/` names them."""

from __future__ import annotations

from importlib import import_module

from ...config.algorithms import ALGORITHMS
from .sac import SAC


def _class(place: str) -> type[SAC]:
    module, _, name = place.partition(":")
    found: type[SAC] = getattr(import_module(f"{__name__}.{module}"), name)
    return found


AGENTS: dict[str, type[SAC]] = {name: _class(algorithm.agent) for name, algorithm in ALGORITHMS.items()}

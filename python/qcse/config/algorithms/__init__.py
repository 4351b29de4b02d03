"""The algorithms' options, presets and checks. Nothing here needs torch; `learn/agents/` learns.

An algorithm is a file here with an `ALGORITHM`, a class in `learn/agents/`, and its name in NAMES.
"""

from __future__ import annotations

from importlib import import_module

from .base import Algorithm

NAMES = ("sac", "cql", "cal_ql", "iql", "awac", "td3_bc", "rlpd", "wsrl")

ALGORITHMS: dict[str, Algorithm] = {name: import_module(f"{__name__}.{name}").ALGORITHM for name in NAMES}

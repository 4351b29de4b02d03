"""The bonuses' options, defaults and checks. Nothing here needs torch; `learn/bonuses/` computes what they name.

A bonus is a file here with a `BONUS`, a class in `learn/bonuses/`, and its name in NAMES.
"""

from __future__ import annotations

from importlib import import_module

from .base import BonusSpec

NAMES = ("none", "qcse", "vcse", "se", "rnd")

BONUSES: dict[str, BonusSpec] = {name: import_module(f"{__name__}.{name}").BONUS for name in NAMES}

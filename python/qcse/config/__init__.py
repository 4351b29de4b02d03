"""Every option of a run, typed, with its defaults, its range and its checks; and plain data in files."""

from __future__ import annotations

from .algorithms.base import NetworkConfig, Preset
from .bonus import BonusConfig, BonusKind
from .options import Algo, TrainConfig, differences, from_dict, from_json, read_config
from .plain import to_dict
from .presets import bonus_preset, has_preset, preset
from .validate import RANGES, validate

__all__ = [
    "RANGES", "Algo", "BonusConfig", "BonusKind", "NetworkConfig", "Preset", "TrainConfig", "bonus_preset",
    "differences", "from_dict", "from_json", "has_preset", "preset", "read_config", "to_dict", "validate",
]  # fmt: skip

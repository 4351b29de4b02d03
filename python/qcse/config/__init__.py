"""Every option of a run, typed, with its defaults, its range and its checks; and plain data in files."""

from __future__ import annotations

from .algorithms.base import NetworkConfig, Preset
from .bonus import BonusConfig, BonusKind
from .options import Algo, TrainConfig, differences, flat, from_dict, from_flat, from_json, read_config
from .phases import bonus_acts_offline, check_fits, derived, offline_options
from .plain import to_dict
from .presets import bonus_preset, has_preset, preset
from .validate import RANGES, validate

__all__ = [
    "RANGES", "Algo", "BonusConfig", "BonusKind", "NetworkConfig", "Preset", "TrainConfig", "bonus_acts_offline",
    "bonus_preset", "check_fits", "derived", "differences", "flat", "from_dict", "from_flat", "from_json", "has_preset",
    "offline_options", "preset", "read_config", "to_dict", "validate",
]  # fmt: skip

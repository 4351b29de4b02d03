"""Every option of a training run as one typed dataclass tree. Field docstrings are the command line's help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .algorithms import ALGORITHMS, NAMES
from .algorithms.base import Options
from .compose import composed
from .plain import entries, parse_json, read_json, to_dict
from .typed import build

# A type checker sees what all algorithms share; code that reads more names the options of its algorithm.
if TYPE_CHECKING:
    Algo = str
    _Options = Options
else:
    Algo = Literal[NAMES]
    _Options = composed(algorithm.options for algorithm in ALGORITHMS.values())

HELP = "Algorithm. " + "; ".join(f"{name}: {algorithm.summary}" for name, algorithm in ALGORITHMS.items()) + "."


@dataclass
class TrainConfig(_Options):
    __doc__ = Options.__doc__

    algo: Annotated[Algo, tyro.conf.arg(help=HELP)] = "cal_ql"


# Options that run folders of earlier versions lack, and what they meant.
ADDED = {"action_units": "auto", "init_from": None, "fresh_optimizers": False, "keep_checkpoints": "none"}


def from_dict(data: object, source: str = "") -> TrainConfig:
    """The inverse of `to_dict` for a TrainConfig.

    Args:
        source: where the data come from, for messages; "" where that is plain.

    Raises:
        ConfigError: a name is unknown or missing, or a value is not of its option's type. (`validate` looks at ranges.)
    """
    if isinstance(data, dict):
        data = ADDED | data
    return TrainConfig(**build(TrainConfig, data, source))


def from_json(content: object, source: str) -> TrainConfig:
    """The configuration in a JSON text; ConfigError where it holds none."""
    return from_dict(parse_json(content, source), source)


def read_config(path: Path) -> TrainConfig:
    """The configuration in a file such as config.json; ConfigError where it holds none, OSError where it cannot be
    read."""
    return from_dict(read_json(path), str(path))


def flat(config: TrainConfig) -> dict[str, object]:
    """Option -> its value as JSON has it, groups written out: "bonus.k"."""
    return dict(entries(to_dict(config)))


def from_flat(options: Mapping[str, object]) -> TrainConfig:
    """The inverse of `flat`; raises as `from_dict` does."""
    data: dict[str, Any] = {}
    for name, value in options.items():
        group = data
        *parents, last = name.split(".")
        for parent in parents:
            group = group.setdefault(parent, {})
        group[last] = value
    return from_dict(data)


def differences(stored: TrainConfig, asked: TrainConfig) -> list[tuple[str, object, object]]:
    """(option, stored value, asked value) for every option in which two configurations differ."""
    a, b = flat(stored), flat(asked)
    return [(name, a[name], b[name]) for name in a if a[name] != b[name]]

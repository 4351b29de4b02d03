"""The bonus's options as one dataclass: those of every bonus in `bonuses/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .bonuses import BONUSES, NAMES
from .bonuses.base import BonusOptions
from .compose import composed

# A type checker sees what all bonuses share; code that reads more names the options of its bonus.
if TYPE_CHECKING:
    BonusKind = str
    _Options = BonusOptions
else:
    BonusKind = Literal[NAMES]
    _Options = composed(spec.options for spec in BONUSES.values())

_summaries = "; ".join(f"{name}: {spec.summary}" for name, spec in BONUSES.items())
HELP = f"Which bonus joins the reward. {_summaries}. Each has its own defaults; --help with --bonus shows them."


@dataclass
class BonusConfig(_Options):
    __doc__ = BonusOptions.__doc__

    kind: Annotated[BonusKind, tyro.conf.arg(name="bonus", prefix_name=False, help=HELP)] = "none"

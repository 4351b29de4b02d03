"""What each bonus finds new about a transition. `config/bonuses/` names them, `reward.py` makes a reward of it."""

from __future__ import annotations

from importlib import import_module

from ...config.bonuses import BONUSES
from ...config.bonuses.base import BonusOptions
from ..buffer import ReplayBuffer
from ..streams import Streams
from .base import Bonus, Learner


def make_bonus(config: BonusOptions, agent: Learner, buffer: ReplayBuffer, streams: Streams) -> Bonus | None:
    """The bonus that the options name; None for 'none'. Random networks are drawn from 'initialisation'.

    Raises:
        ConfigError: the states have more dimensions than the operator takes, or another of its limits is exceeded.
    """
    implementation = BONUSES[config.kind].implementation
    if implementation is None:
        return None
    module, _, name = implementation.partition(":")
    bonus: Bonus = getattr(import_module(f"{__name__}.{module}"), name)(config, agent, buffer, streams)
    bonus.check_limits()
    return bonus

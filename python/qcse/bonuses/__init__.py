"""The bonuses: what each finds new about a transition. `reward.py` makes a reward of it.

A bonus is a class with the methods of `Bonus`, and a name in `BONUSES` and in `BonusKind` (`config.py`).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ..buffer import Batch, ReplayBuffer
from ..config import BonusConfig
from ..streams import Streams
from .neighbours import Neighbours, QConditionedEntropy, StateEntropy
from .rnd import RandomNetworkDistillation


class Learner(Protocol):
    """What a bonus asks of an algorithm: a policy, and its value of actions.

    An algorithm without twin critics has a `min_q` of its own that returns the value it has.
    """

    critics: nn.Module
    targets: nn.Module

    def act(self, observations: Tensor, noise: Tensor | None = None) -> Tensor: ...

    def min_q(self, observations: Tensor, actions: Tensor, critics: nn.Module | None = None) -> Tensor: ...


class Bonus(Protocol):
    """The novelty of transitions, in a unit of its own; without a gradient, without a host read."""

    def start_online(self) -> None:
        """Called once, when pre-training ends."""
        ...

    def compute(
        self, batch: Batch, eligible: Tensor, references: Tensor | None, learn: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The novelty of a batch's transitions.

        Args:
            batch: S seeds, B transitions each.
            eligible: [S, B] bool, the rows that may get a bonus and that are learnt from.
            references: global row numbers [S, M] of the transitions that it compares with; None: the batch's own
                eligible ones. A bonus that compares with none ignores them.
            learn: update running statistics and networks with this batch.

        Returns:
            novelty [S, B]; covered [S, B] bool, the rows that have one (a part of `eligible`; the others hold 0);
            diagnostics [S] by name.
        """
        ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


BONUSES = {
    "qcse": QConditionedEntropy,
    "vcse": QConditionedEntropy,  # the same quantity with other defaults: config.bonus_preset
    "se": StateEntropy,
    "rnd": RandomNetworkDistillation,
}


def make_bonus(config: BonusConfig, agent: Learner, buffer: ReplayBuffer, streams: Streams) -> Bonus | None:
    """The bonus that the options name; None for 'none'. Random networks are drawn from 'initialisation'.

    Raises:
        ConfigError: the states have more dimensions than the operator takes, or another of its limits is exceeded.
    """
    if config.kind == "none":
        return None
    bonus = BONUSES[config.kind](config, agent, buffer, streams)
    if isinstance(bonus, Neighbours):
        bonus.check_limits()
    return bonus

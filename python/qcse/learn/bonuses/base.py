"""What a bonus is to the training step, and what it asks of the learner."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..buffer import Batch
from ..nets import Critics


class Learner(Protocol):
    """What a bonus asks of an algorithm: a policy, and its value of actions.

    An algorithm without twin critics has a `min_q` of its own that returns the value it has.
    """

    critics: Critics
    targets: Critics

    def act(self, observations: Tensor, noise: Tensor | None = None) -> Tensor:
        """observations [S, B, D] -> actions [S, B, A]: the mode, or with noise [S, B, A] one that explores."""
        ...

    def min_q(self, observations: Tensor, actions: Tensor, critics: Critics | None = None) -> Tensor:
        """The value [S, B] of actions [S, B, A] by the current critics, or by those given."""
        ...


class Bonus(Protocol):
    """The novelty of transitions, in a unit of its own; without a gradient, without a host read.

    Attributes:
        rows: transitions that it needs before it has anything to say.
    """

    rows: int

    def check_limits(self) -> None:
        """ConfigError where it cannot be computed for such states; called once, when it is made."""
        ...

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

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

"""The intrinsic reward: a bonus's novelty, squashed, weighted, added to the reward, and the numbers that tell whether
it says anything.

r' = r + weight * squash(novelty(s, a)). For QCSE the novelty is h(s | Q(s, a)), the k-nearest-neighbour estimate of
the entropy of states conditioned on their Q (arXiv 2310.19805; operator: `qcse_ext.knn`). `bonuses/` has the others;
what the papers leave open are options of the bonus.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qcse_ext.reward import SATURATED, STATISTICS, add_bonus

from ..config.bonuses.base import BonusOptions
from .bonuses import make_bonus
from .bonuses.base import Learner
from .bonuses.moments import RunningMoments
from .buffer import Batch, ReplayBuffer
from .streams import Streams


class IntrinsicReward:
    """Computes the weighted bonus of a batch and keeps what its scaling needs. No gradient flows through it.

    Args:
        config: which bonus, and its options.
        agent: whose Q and policy the bonus asks.
        buffer: where its references lie.
        streams: 'initialisation' gives random networks, 'sampling' the references that are drawn.
        reward_scale: the task's, for a bonus that joins before the reward's transform.
    """

    def __init__(
        self, config: BonusOptions, agent: Learner, buffer: ReplayBuffer, streams: Streams, reward_scale: float = 1.0
    ) -> None:
        self.config, self.buffer, self.streams = config, buffer, streams
        self.bonus = make_bonus(config, agent, buffer, streams)
        self.novelties = RunningMoments((len(streams),), config.statistics_horizon, streams.device)
        self.online = False
        self.updates = 0  # online updates so far; the weight decays with them
        self._weight = torch.zeros((), device=streams.device)  # `weight` on the device, as of `_known_weight`
        self._known_weight = 0.0
        # r' = scale * (r + b) + bias where the bonus joins before the task's transform
        self.join_factor = reward_scale if config.join == "before" else 1.0

    @property
    def active(self) -> bool:
        return self.bonus is not None

    @property
    def rows(self) -> int:
        """Online transitions that there must be before a bonus can be computed."""
        return 2 if self.bonus is None else self.bonus.rows

    def prepare(self) -> None:
        """Put the weight of the next update where a captured graph reads it."""
        if self.weight != self._known_weight:
            self._known_weight = self.weight
            self._weight.fill_(self.weight)

    def start_online(self) -> None:
        """Called once, when pre-training ends."""
        self.online = True
        if self.bonus is not None:
            self.bonus.start_online()

    @property
    def weight(self) -> float:
        """The factor of the bonus in the reward that the learner sees, at this update."""
        return self.join_factor * self.config.weight * (1.0 - self.config.decay) ** self.updates

    def add_to(self, batch: Batch, offline: int = 0) -> dict[str, Tensor]:
        """Add the weighted bonus to `batch.rewards`, in place; returns diagnostics, [S] each.

        `offline`: that many rows at the head of the batch are known to be the dataset's; where they cannot have a
        bonus nothing is computed for them.

        Names, each with the prefix 'bonus/': mean, std (of the eligible rows, before the weight), weight; unless
        computed when stored, also novelty (mean before the squash), saturated (where the squash is a tanh: share of
        bonuses beyond 0.95 in size) and what the bonus itself has to tell.
        """
        if self.config.transitions == "online":
            batch = batch.tail(offline)
            eligible = batch.online
        else:
            eligible = torch.ones_like(batch.online)
        covered: Tensor | None = None  # None: what is added is the bonus itself
        if self.config.when == "store":
            novelty, diagnostics = batch.bonus, dict[str, Tensor]()
        elif self.bonus is not None and self.config.squash in ("tanh", "none"):
            novelty, covered, diagnostics = self.bonus.compute(batch, eligible, self._references(), True)
        else:
            novelty, diagnostics = self.compute(batch, eligible, self._references())
        self.prepare()
        squash = covered is not None and self.config.squash == "tanh"
        every = torch.ones_like(batch.online) if covered is None else covered
        statistics = add_bonus(batch.rewards, novelty, every, eligible, self._weight, squash)
        self.updates += int(self.online)
        told = {f"bonus/{name}": value for name, value in zip(STATISTICS, statistics.unbind(), strict=True)}
        if covered is None:
            del told["bonus/novelty"]
        if not squash:
            del told["bonus/saturated"]
        return diagnostics | told

    def of_stored(self, index: Tensor, learn: bool = True) -> Tensor:
        """Unweighted bonus [S, B] of online transitions given by global row number [S, B], against the references
        of the moment (the whole online buffer where they are 'batch'). `learn`: update the running statistics."""
        batch = self.buffer.gather(index)
        references = self._references()
        return self.compute(batch, batch.online, self.buffer.all_online() if references is None else references, learn)[
            0
        ]

    def of_episode(self, rows: Tensor, seed: int) -> Tensor:
        """Unweighted bonus [T] of one seed's online transitions, by global row number [T]: as it was when they were
        stored, or of the moment. The running statistics stay."""
        index = rows.expand(len(self.streams), len(rows))
        stored = self.config.when == "store"
        bonus = self.buffer.gather(index).bonus if stored else self.of_stored(index, learn=False)
        return bonus[seed]

    def compute(
        self, batch: Batch, eligible: Tensor, references: Tensor | None = None, learn: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Unweighted bonus [S, B], 0 on rows that have none, and diagnostics [S]; arguments as for `Bonus.compute`."""
        if self.bonus is None:
            return torch.zeros_like(batch.rewards), {}
        novelty, covered, diagnostics = self.bonus.compute(batch, eligible, references, learn)
        # A distance may overflow to infinity: such a row has no bonus.
        covered = covered & novelty.isfinite()
        novelty = torch.where(covered, novelty, 0.0)
        if learn and self.config.squash in ("standardised_tanh", "scaled"):
            self.novelties.update(novelty, covered)
        bonus = torch.where(covered, self._squash(novelty), 0.0)
        rows = covered.sum(1).clamp(min=1)
        diagnostics["bonus/novelty"] = novelty.sum(1) / rows
        if self.config.squash.endswith("tanh"):  # rows that are not covered hold 0
            diagnostics["bonus/saturated"] = (bonus.abs() > SATURATED).sum(1) / rows
        return bonus, diagnostics

    def _references(self) -> Tensor | None:
        """Global row numbers of the candidates [S, M]; None: the batch's own."""
        if self.config.references == "batch":
            return None
        if self.config.references == "sample" and self.buffer.size > 0:
            return self.buffer.sample_online(self.streams, self.config.reference_size)
        return self.buffer.all_online()

    def _squash(self, novelty: Tensor) -> Tensor:
        match self.config.squash:
            case "tanh":
                return torch.tanh(novelty)
            case "standardised_tanh":
                return torch.tanh(self.novelties.standardise(novelty))
            case "scaled":
                return novelty / self.novelties.spread().unsqueeze(1)
        return novelty

    def state_dict(self) -> dict[str, Any]:
        return {
            "bonus": None if self.bonus is None else self.bonus.state_dict(),
            "novelties": self.novelties.state_dict(),
            "updates": self.updates,
            "online": self.online,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.bonus is not None:
            self.bonus.load_state_dict(state["bonus"])
        self.novelties.load_state_dict(state["novelties"])
        self.updates, self.online = state["updates"], state["online"]

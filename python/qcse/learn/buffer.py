"""Transitions on the training device: the dataset, shared by all seeds, and one online ring buffer per seed."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcse_ext.transitions import gather_transitions

from .side import SideStream
from .streams import Streams

NO_RETURN = float("-inf")  # a Monte-Carlo return that is not known (yet): it bounds nothing


@dataclass
class Batch:
    """S seeds, B transitions each."""

    observations: Tensor  # [S, B, D]
    actions: Tensor  # [S, B, A]
    rewards: Tensor  # [S, B], after the task's transform
    next_observations: Tensor  # [S, B, D]
    bootstrap: Tensor  # [S, B]; 1 where the target may look further, 0 after a terminal state
    returns: Tensor  # [S, B], Monte-Carlo return of `rewards`, -inf where unknown
    bonus: Tensor  # [S, B], bonus at the time of storing, 0 where none was computed
    index: Tensor  # [S, B] int64: row of the dataset, or dataset size + slot of the online buffer
    online: Tensor  # [S, B] bool

    def tail(self, first: int) -> Batch:
        """Views of the transitions from number `first` on."""
        return Batch(**{f.name: getattr(self, f.name)[:, first:] for f in fields(self)}) if first > 0 else self

    def settle(self) -> None:
        """What the current stream is given from now on comes after all that is still done to the batch."""

    def state_dict(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name).detach().cpu() for f in fields(self)}


class BatchInProgress(Batch):
    """A batch whose rewards are being changed on a side stream: whoever reads them comes after that."""

    def __init__(self, batch: Batch, side: SideStream) -> None:
        super().__init__(**{f.name: getattr(batch, f.name) for f in fields(batch)})
        self._side = side

    def settle(self) -> None:
        self._side.wait()

    @property
    def rewards(self) -> Tensor:
        """[S, B], after all that is still done to them."""
        self.settle()
        return self._rewards

    @rewards.setter
    def rewards(self, rewards: Tensor) -> None:
        """[S, B]."""
        self._rewards = rewards


@dataclass
class Episode:
    """One seed's episode that has just ended."""

    seed: int  # which of the S seeds
    slots: list[int]  # of the online buffer, where its transitions lie
    rewards: NDArray[np.float32]  # [T], after the task's transform
    terminal: bool  # ended by the task, not cut at a limit


COLUMNS = ("observations", "actions", "rewards", "next_observations", "bootstrap", "returns", "bonus")


class ReplayBuffer:
    """The dataset (rows 0 .. N-1) followed by each seed's online ring buffer (rows N .. N + capacity - 1).

    All seeds step in lockstep, so one host integer tells how far all rings are filled.

    Args:
        dataset: columns [N, ...] as named in COLUMNS, or None where there is none.
        seeds: S.
        capacity: online transitions kept; the oldest are overwritten.
        device: where everything lives.
    """

    def __init__(
        self,
        dataset: dict[str, Tensor] | None,
        seeds: int,
        capacity: int,
        state_dim: int,
        action_dim: int,
        device: torch.device,
    ) -> None:
        tail = {"observations": (state_dim,), "next_observations": (state_dim,), "actions": (action_dim,)}
        empty = {c: torch.empty(0, *tail.get(c, ())) for c in COLUMNS}
        self.dataset = {c: t.to(device).contiguous() for c, t in (dataset or empty).items()}
        # empty, not zeros: pages of a large buffer are taken from the system only once they are filled.
        self.online = {c: torch.empty(seeds, capacity, *tail.get(c, ()), device=device) for c in COLUMNS}
        self.dataset_size = len(self.dataset["rewards"])
        self.seeds, self.capacity, self.device = seeds, capacity, device
        self.added = 0  # transitions ever added, per seed
        self._held: Tensor | None = None  # `size` as a float64 scalar on the device

    @property
    def size(self) -> int:
        """Online transitions held, per seed."""
        return min(self.added, self.capacity)

    def count_on_device(self) -> None:
        """Draw with the number of rows held in a device tensor, as a captured graph has to."""
        self._held = torch.tensor(float(self.size), dtype=torch.float64, device=self.device)

    @property
    def held(self) -> int | Tensor:
        """`size` as the draws need it: a number, or a float64 scalar [] on the device."""
        return self.size if self._held is None else self._held

    def add(self, **columns: Tensor) -> int:
        """Append one transition per seed, each column [S, ...]; returns the slot that it took."""
        slot = self.added % self.capacity
        for name in COLUMNS:
            self.online[name][:, slot] = columns[name]
        self.added += 1
        if self._held is not None:
            self._held.fill_(self.size)
        return slot

    def gather(self, index: Tensor) -> Batch:
        """Transitions [S, B, ...] by global row number [S, B]."""
        columns, online = gather_transitions(
            [self.dataset[c] for c in COLUMNS], [self.online[c] for c in COLUMNS], index
        )
        return Batch(**dict(zip(COLUMNS, columns, strict=True)), index=index, online=online)

    def sample(self, streams: Streams, batch_size: int, offline_fraction: float | None) -> Batch:
        """Uniform draws with replacement, from the 'sampling' stream.

        Args:
            offline_fraction: share of the rows that comes from the dataset; None draws from dataset and online
                rows taken together. Where one of the two is empty, all rows come from the other.
        """
        offline = self.leading_offline(batch_size, offline_fraction)
        return self.gather(streams.rows("sampling", batch_size, self.dataset_size, self.held, offline))

    def leading_offline(self, batch_size: int, offline_fraction: float | None) -> int | None:
        """How many rows at the head of a batch of `sample` are the dataset's; None: all rows are drawn alike."""
        if offline_fraction is None or self.size == 0 or self.dataset_size == 0:
            return None
        return round(offline_fraction * batch_size)

    def sample_online(self, streams: Streams, count: int) -> Tensor:
        """`count` global row numbers [S, count] of online transitions, uniform with replacement."""
        return streams.rows("sampling", count, self.dataset_size, self.held, leading=0)

    def all_online(self) -> Tensor:
        """Global row numbers [S, size] of every online transition."""
        rows = torch.arange(self.size, device=self.device) + self.dataset_size
        return rows.expand(self.seeds, self.size)

    def rows_of(self, first: int, stop: int) -> dict[str, Tensor]:
        """Copies of the transitions that were added as number `first` to `stop` - 1 and are still held, [S, n, ...]."""
        slots = torch.arange(first, stop, device=self.device) % self.capacity
        return {name: value[:, slots] for name, value in self.online.items()}

    def restore(self, first: int, columns: dict[str, Tensor]) -> None:
        """Put back what `rows_of` gave, [S, n, ...]; numbers that the ring has overwritten since are left out."""
        count = columns["rewards"].shape[1]
        begin = max(first, self.added - self.size)
        slots = torch.arange(begin, first + count, device=self.device) % self.capacity
        for name, value in columns.items():
            self.online[name][:, slots] = value[:, begin - first :].to(self.device)

"""Named random streams: one per purpose and seed, so that one purpose never shifts the draws of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcse_ext.random import random, random_rows

from ..errors import CheckpointError

NAMES = ("initialisation", "sampling", "update", "exploration", "environment")
# Drawn on the host wherever the numbers go: a run on a GPU begins with the weights of one on a CPU, and environments
# only ask for integers.
HOST = ("initialisation", "environment")
ONLINE = 1  # a further word of the seeds of streams that begin with the online phase

Shapes = Mapping[str, tuple[str, Sequence[int]]]  # name -> (law, shape without the seed dimension)


def by_counter(device: torch.device) -> bool:
    """Whether the streams of a device are counted ones: where it would launch a kernel for each seed and draw."""
    return device.type == "cuda"


class Generators(list[torch.Generator]):
    """The S generators of a stream, and the device that what they draw is for; they may themselves be on the host."""

    def __init__(self, generators: Iterable[torch.Generator], device: torch.device) -> None:
        super().__init__(generators)
        self.device = device


@dataclass
class Counted:
    """A stream of `qcse_ext.random`, [S] int64 each: one launch draws for all seeds."""

    keys: Tensor
    counters: Tensor  # moved by each draw, on the device


class Streams:
    """Random numbers for S independent runs.

    Every draw has a leading seed dimension [S, ...], and row s comes from a stream that depends on (seed s, name)
    alone: what a run draws does not depend on which runs share its process. On a CPU torch's generators draw; on a GPU
    all but the host's streams are counted (`qcse_ext.random`), so that the two differ in their numbers, not their laws.

    Args:
        seeds: the S seeds, non-negative integers.
        device: where the numbers are drawn and live.
        anew: those of the seeds whose numbers are others than those of a run that begins with its offline phase.
        counted: whether all but the host's streams are counted; None: as `by_counter` says.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        anew: Collection[int] = (),
        counted: bool | None = None,
    ) -> None:
        self.seeds = list(seeds)
        self.device = torch.device(device)
        self._generators: dict[str, Generators] = {}
        self._counted: dict[str, Counted] = {}
        counted = by_counter(self.device) if counted is None else counted
        for name_id, name in enumerate(NAMES):
            keys = [_stream_seed(seed, name_id, seed in anew) for seed in self.seeds]
            if counted and name not in HOST:
                there = torch.tensor(keys, device=self.device)
                self._counted[name] = Counted(there, torch.zeros_like(there))
                continue
            where = "cpu" if name in HOST else self.device
            self._generators[name] = Generators((torch.Generator(where).manual_seed(key) for key in keys), self.device)

    def __len__(self) -> int:
        return len(self.seeds)

    def generators(self, name: str) -> Generators:
        """The S generators of one stream; none where it is counted."""
        return self._generators.get(name, Generators([], self.device))

    def draw(self, name: str, wanted: Shapes) -> dict[str, Tensor]:
        """Several tensors at once, in one launch where the stream is counted.

        Args:
            wanted: name -> (law, shape); the laws are "normal", the standard one, and "uniform", in [-1, 1).

        Returns:
            name -> [S, *shape] float32.
        """
        counted = self._counted.get(name)
        if counted is None:
            laws = {"normal": self.normal, "uniform": lambda name, shape: self.uniform(name, shape, -1.0, 1.0)}
            return {key: laws[law](name, shape) for key, (law, shape) in wanted.items()}
        return self._draw_counted(counted, {"normal": "normal", "uniform": "symmetric"}, wanted)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers [S, *shape]."""
        if name in self._counted:
            return self.draw(name, {"it": ("normal", shape)})["it"]
        return self._draw(name, lambda g: torch.randn(*shape, generator=g, device=g.device))

    def uniform(self, name: str, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high) of shape [S, *shape]."""
        if name in self._counted:
            law = {"uniform": "unit"}
            return self._draw_counted(self._counted[name], law, {"it": ("uniform", shape)})["it"] * (high - low) + low
        return self._draw(name, lambda g: torch.rand(*shape, generator=g, device=g.device) * (high - low) + low)

    def integers(self, name: str, high: int | Tensor, shape: Sequence[int]) -> Tensor:
        """Uniform integers in [0, high) of shape [S, *shape], int64; high may be a float64 scalar on the device."""
        counted = self._counted.get(name)
        if counted is not None:
            rows = random_rows(counted.keys, counted.counters, math.prod(shape), 0, high)
            return rows.view(len(self), *shape)
        if isinstance(high, Tensor):  # below 2^52 a 53-bit fraction times high never rounds up to high
            return self._draw(
                name, lambda g: (torch.rand(*shape, generator=g, device=g.device, dtype=torch.float64) * high).long()
            )
        return self._draw(name, lambda g: torch.randint(high, tuple(shape), generator=g, device=g.device))

    def rows(self, name: str, count: int, dataset: int, held: int | Tensor, leading: int | None = None) -> Tensor:
        """Row numbers [S, count] of transitions, uniform with replacement, int64; one launch where it is counted.

        Args:
            dataset: rows 0 .. dataset - 1 are the dataset's.
            held: so many follow, a seed's own; or a float64 scalar [] on the device.
            leading: so many rows at the head are the dataset's, the others held ones; None: all from both together.
        """
        counted = self._counted.get(name)
        if counted is not None:
            return random_rows(counted.keys, counted.counters, count, dataset, held, leading)
        if leading is None:
            return self.integers(name, dataset + held, (count,))
        head = [self.integers(name, dataset, (leading,))] if leading > 0 else []
        return torch.cat([*head, self.integers(name, held, (count - leading,)) + dataset], dim=1)

    def state_dict(self) -> dict[str, list[Tensor]]:
        states = {name: [g.get_state() for g in generators] for name, generators in self._generators.items()}
        for name, counted in self._counted.items():
            states[name] = list(torch.stack([counted.keys, counted.counters], 1).cpu())  # key and counter of each seed
        return {name: states[name] for name in NAMES}

    def load_state_dict(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Go on exactly where the streams of `state_dict` were.

        Raises:
            CheckpointError: they drew in another way, as those of a CPU and of a GPU do.
        """
        for name in NAMES:
            for s, value in enumerate(_as_many(state[name], len(self))):
                if self._is_counted(value) != (name in self._counted):
                    raise CheckpointError(
                        f"streams: this run draws {name!r} on {self.device} and the checkpoint has drawn on another "
                        "kind of device, whose random numbers are others; resume on the one where the run began, or "
                        "start a new run from its networks with --init-from"
                    )
                self._restore(name, s, value)

    def go_on(self, state: Mapping[str, Sequence[Tensor]], rows: Mapping[int, int]) -> None:
        """Let some seeds' streams go on where those of another run were, but for 'initialisation', which has drawn
        what this run has, and for streams that drew in another way (a CPU's and a GPU's): those begin.

        Args:
            state: `state_dict` of that run's streams, name -> the states of its seeds' streams: uint8 [bytes] of a
                generator, or int64 [2], key and counter.
            rows: seed -> its place in that run.
        """
        for name in NAMES:
            for s, seed in enumerate(self.seeds):
                if seed not in rows or name == "initialisation":
                    continue
                value = state[name][rows[seed]]
                if self._is_counted(value) == (name in self._counted):
                    self._restore(name, s, value)

    @staticmethod
    def _is_counted(value: Tensor) -> bool:
        return value.dtype == torch.int64

    def _restore(self, name: str, s: int, value: Tensor) -> None:
        """In place: graphs go on with the tensors that they know."""
        counted = self._counted.get(name)
        if counted is None:
            self._generators[name][s].set_state(value.cpu())
        else:
            counted.keys[s], counted.counters[s] = value

    def _draw(self, name: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        generators = self._generators[name]
        if len(generators) == 1:  # saves the copy that stack makes
            return draw(generators[0]).unsqueeze(0)
        return torch.stack([draw(g) for g in generators])

    def _draw_counted(self, counted: Counted, laws: Mapping[str, str], wanted: Shapes) -> dict[str, Tensor]:
        """`laws`: what the operator calls each of ours."""
        if not wanted:
            return {}
        segments = [(laws[law], math.prod(shape)) for law, shape in wanted.values()]
        numbers = random(counted.keys, counted.counters, segments)
        shapes = [shape for _, shape in wanted.values()]
        return {k: x.view(len(self), *shape) for k, x, shape in zip(wanted, numbers, shapes, strict=True)}


def _as_many(states: Sequence[Any], count: int) -> Sequence[Any]:
    if len(states) != count:
        raise RuntimeError(f"the streams of {count} seeds, but the states of {len(states)}")
    return states


def _stream_seed(seed: int, name_id: int, anew: bool) -> int:
    """A 63-bit seed that depends on all three, without the correlations of seed + constant."""
    words = [seed, name_id, ONLINE] if anew else [seed, name_id]
    low, high = np.random.SeedSequence(words).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)

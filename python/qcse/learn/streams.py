"""Named random streams: one generator per purpose and seed, so that one purpose never shifts the draws of another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

NAMES = ("initialisation", "sampling", "update", "exploration", "environment")
ONLINE = 1  # a further word of the seeds of streams that begin with the online phase


class Streams:
    """Random numbers for S independent runs.

    Every draw has a leading seed dimension [S, ...], and row s comes from a generator that depends on (seed s,
    name) alone: what a run draws does not depend on which runs share its process.

    Args:
        seeds: the S seeds, non-negative integers.
        device: where the numbers are drawn and live.
        anew: those of the seeds whose numbers are others than those of a run that begins with its offline phase.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu", anew: Collection[int] = ()) -> None:
        self.seeds = list(seeds)
        self.device = torch.device(device)
        self._generators: dict[str, list[torch.Generator]] = {}
        for name_id, name in enumerate(NAMES):
            # The environment's stream is only asked for host-side integers.
            where = "cpu" if name == "environment" else self.device
            self._generators[name] = [
                torch.Generator(where).manual_seed(_stream_seed(seed, name_id, seed in anew)) for seed in self.seeds
            ]

    def __len__(self) -> int:
        return len(self.seeds)

    def generators(self, name: str) -> list[torch.Generator]:
        """The S generators of one stream."""
        return self._generators[name]

    def normal(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers [S, *shape]."""
        return self._draw(name, lambda g: torch.randn(*shape, generator=g, device=g.device, dtype=dtype))

    def uniform(self, name: str, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high) of shape [S, *shape]."""
        return self._draw(name, lambda g: torch.rand(*shape, generator=g, device=g.device) * (high - low) + low)

    def integers(self, name: str, high: int | Tensor, shape: Sequence[int]) -> Tensor:
        """Uniform integers in [0, high) of shape [S, *shape], int64; high may be a float64 scalar on the device."""
        if isinstance(high, Tensor):  # below 2^52 a 53-bit fraction times high never rounds up to high
            return self._draw(
                name, lambda g: (torch.rand(*shape, generator=g, device=g.device, dtype=torch.float64) * high).long()
            )
        return self._draw(name, lambda g: torch.randint(high, tuple(shape), generator=g, device=g.device))

    def _draw(self, name: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        generators = self._generators[name]
        if len(generators) == 1:  # saves the copy that stack makes
            return draw(generators[0]).unsqueeze(0)
        return torch.stack([draw(g) for g in generators])

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {name: [g.get_state() for g in generators] for name, generators in self._generators.items()}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        for name, generators in self._generators.items():
            for generator, value in zip(generators, state[name], strict=True):
                generator.set_state(value.cpu())

    def go_on(self, state: Mapping[str, Sequence[Tensor]], rows: Mapping[int, int]) -> None:
        """Let some seeds' streams go on where those of another run were, but for 'initialisation', which has drawn
        what this run has.

        Args:
            state: `state_dict` of that run's streams, name -> the states of its seeds' generators, uint8 [bytes] each.
            rows: seed -> its place in that run.
        """
        for name, generators in self._generators.items():
            for seed, generator in zip(self.seeds, generators, strict=True):
                if seed in rows and name != "initialisation":
                    generator.set_state(state[name][rows[seed]].cpu())


def _stream_seed(seed: int, name_id: int, anew: bool) -> int:
    """A 63-bit seed that depends on all three, without the correlations of seed + constant."""
    words = [seed, name_id, ONLINE] if anew else [seed, name_id]
    low, high = np.random.SeedSequence(words).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)

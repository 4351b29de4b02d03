"""One update as a unit: sampling, bonus, losses, optimiser, targets, metrics; on a GPU replayed from captured graphs.

A CUDA graph replays launches with the pointers and the numbers of its capture. What the host decides anew at each
update is therefore kept out of it: an update whose operations differ (the policy's turn, the online phase, ...) has a
graph of its own, sizes and weights that move lie in device tensors, random streams count on the device, and the host's
own counters are moved beside each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config.algorithms.base import Options
from ..config.bonuses import BONUSES
from ..errors import QcseError
from .agents.sac import SAC, Noise
from .buffer import Batch, BatchInProgress, ReplayBuffer
from .reward import IntrinsicReward
from .side import SideStream
from .streams import Streams

WARM_UP = 3  # updates of each kind that run eagerly, so that everything that allocates once has done so


class Graph(Protocol):
    """What is captured once and replayed many times."""

    def capture(self, call: Callable[[], None]) -> None:
        """Record what the call launches, without executing it."""
        ...

    def replay(self) -> None: ...


class CudaGraph:
    """A CUDA graph. Torch's generators that it draws from must be given; counted streams are tensors like others."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)

    def capture(self, call: Callable[[], None]) -> None:
        with torch.cuda.graph(self.graph):
            call()

    def replay(self) -> None:
        self.graph.replay()


@dataclass
class Captured:
    """The graph of one kind of update."""

    eager: int = 0  # updates done before the capture
    graph: Graph | None = None
    latest: tuple[Batch, Noise] | None = None  # the graph's own tensors; each replay overwrites them
    metrics: dict[str, Tensor] | None = None
    counters: tuple[int, int] = (0, 0)  # what an update adds to the agent's and the reward's number of updates


class UpdateStep:
    """Runs updates one after the other and sums their metrics on the device.

    Args:
        config: the run's options.
        agent, buffer, reward, streams: what is trained, from what.
        make_graph: makes a graph, given torch's generators that it draws from; None runs every update eagerly.
    """

    def __init__(
        self,
        config: Options,
        agent: SAC,
        buffer: ReplayBuffer,
        reward: IntrinsicReward,
        streams: Streams,
        make_graph: Callable[[Sequence[torch.Generator]], Graph] | None = None,
    ) -> None:
        self.config, self.agent, self.buffer, self.reward, self.streams = config, agent, buffer, reward, streams
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}  # not every update has every metric: the policy's turn may be rarer
        self.latest: tuple[Batch, Noise] | None = None  # batch and noise of the latest update
        self.graphs: dict[tuple[bool, ...], Captured] = {}
        self._make_graph = make_graph
        if make_graph is not None:
            buffer.count_on_device()
        self._side = SideStream(buffer.device)  # of updates before a capture, which has a stream of its own as well
        self._bonus_side = SideStream(buffer.device)

    def __call__(self, online: bool) -> dict[str, Tensor]:
        """One update of the given phase; returns its metrics, [S] each."""
        self.reward.prepare()
        if self._make_graph is None:
            return self._eager(online)
        kind = (online, self.buffer.size > 0, *self.agent.variant)
        captured = self.graphs.setdefault(kind, Captured())
        if captured.graph is None and captured.eager < WARM_UP:
            captured.eager += 1
            with self._side.fork():
                metrics = self._eager(online)
            self._side.join()
            return metrics
        if captured.graph is None:
            self._capture(captured, online)
        else:
            self.agent.updates += captured.counters[0]
            self.reward.updates += captured.counters[1]
            self._count(captured.metrics or {})
        assert captured.graph is not None and captured.metrics is not None
        captured.graph.replay()
        self.latest = captured.latest
        return captured.metrics

    def means(self) -> dict[str, Tensor]:
        """Means [S] of each metric since the last call of `clear`, of those that there were."""
        return {name: self.sums[name] / count for name, count in self.counts.items() if count > 0}

    def clear(self) -> None:
        for total in self.sums.values():
            total.zero_()  # in place: graphs go on adding to it
        self.counts = dict.fromkeys(self.counts, 0)

    def state_dict(self) -> dict[str, Any]:
        held = [name for name, count in self.counts.items() if count > 0]
        return {"sums": {name: self.sums[name] for name in held}, "counts": {name: self.counts[name] for name in held}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = {name: value.to(self.buffer.device) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])
        if self._make_graph is not None:
            self.buffer.count_on_device()  # of the rows that were loaded

    def _eager(self, online: bool) -> dict[str, Tensor]:
        config, reward = self.config, self.reward
        batch = self.buffer.sample(self.streams, config.batch_size, config.offline_fraction)
        metrics: dict[str, Tensor] = {}
        if reward.active and (reward.online or config.bonus.transitions == "all"):
            offline = self.buffer.leading_offline(config.batch_size, config.offline_fraction)
            with self._bonus_side.fork():  # what needs no rewards goes on meanwhile
                metrics |= reward.add_to(batch, offline or 0)
            batch = BatchInProgress(batch, self._bonus_side)
        self.agent.prepare(batch, online)
        noise = self.agent.draw_noise(self.streams, config.batch_size)
        metrics |= self.agent.update(batch, noise)
        self._bonus_side.join()
        self.latest = (batch, noise)
        self._count(metrics)
        with torch.no_grad():
            for name, value in metrics.items():
                if name not in self.sums:
                    self.sums[name] = torch.zeros_like(value)
            torch._foreach_add_([self.sums[name] for name in metrics], list(metrics.values()))
        return metrics

    def _count(self, metrics: dict[str, Tensor]) -> None:
        for name in metrics:
            self.counts[name] = self.counts.get(name, 0) + 1

    def _capture(self, captured: Captured, online: bool) -> None:
        assert self._make_graph is not None
        before = self.agent.updates, self.reward.updates
        graph = self._make_graph([g for name in ("sampling", "update") for g in self.streams.generators(name)])

        def call() -> None:
            captured.metrics = self._eager(online)

        try:
            graph.capture(call)
        except RuntimeError as error:
            raise QcseError(
                f"cuda_graph: the update cannot be captured here ({str(error).splitlines()[0]}); "
                "start the run with --cuda-graph off"
            ) from error
        captured.graph, captured.latest = graph, self.latest
        captured.counters = self.agent.updates - before[0], self.reward.updates - before[1]


def capturable(config: Options, device: torch.device) -> bool:
    """Whether the updates of a run are captured: on a GPU, unless the options or growing shapes forbid it."""
    fits = BONUSES[config.bonus.kind].capturable(config.bonus)
    return device.type == "cuda" and config.cuda_graph == "auto" and fits

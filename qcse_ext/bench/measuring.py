"""Implementations timed on one problem, interleaved, and their answers compared with the judge's."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qcse_ext.bench.gpu import Gpu
from qcse_ext.bench.implementations import IMPLEMENTATIONS, OURS, Implementation
from qcse_ext.bench.judge import Judge
from qcse_ext.bench.records import Answer, NotCaptured, Record, Unavailable, reason
from qcse_ext.bench.timers import Eager, OnCpu, Replayed, Timer, timed

__all__ = ["measure"]

#: Points up to which no implementation is tried on fewer of them first.
FORESEEN_FROM = 8192


def measure(
    data: str,
    states: Tensor,
    values: Tensor,
    k: int,
    names: list[str],
    runs: int = 9,
    limit_s: float = 60.0,
    clock: str = "wall",
    tell: Callable[[str], None] = print,
    modes: list[tuple[str, str]] | None = None,
    gpu: Gpu | None = None,
    in_time: Callable[[], bool] = lambda: True,
    commit: str | None = None,
    failures: list[str] | None = None,
) -> Iterator[Record]:
    """Times the named implementations on one problem, interleaved, and compares their answers with the judge's.

    Args:
        data: what the points are, for the records.
        states: ``[N, D]``.
        values: ``[N]``.
        k: which neighbour.
        names: keys of IMPLEMENTATIONS.
        runs: how often each is timed (slow ones less, at least once).
        limit_s: an implementation that is foreseen to take longer than this for one run is left out; one that has taken
            a tenth of it in all is not run again.
        clock: "wall", or "cpu" for the processor time of the whole process, which leaves out waiting for a core; for
            comparisons on a busy machine, with one thread. On a GPU events are the clock.
        tell: is told what is left out, and why.
        modes: pairs of timing and cache, one after the other; by default eager and warm.
        gpu: where the points are; None for the CPU.
        in_time: is asked before an implementation is begun, and before it is run again.
        commit: for the records.
        failures: takes why "qcse" was left out, where it should not have been.
    """
    failures = [] if failures is None else failures
    comparison = _Comparison(data, states, values, k, runs, limit_s, clock, tell, gpu, in_time, commit, failures)
    for timing, cache in modes or [("eager", "warm")]:
        yield from comparison.records(names, timing, cache)


@dataclass
class _Comparison:
    """One problem; the fields that `measure` does not explain are what is remembered from one mode to the next."""

    data: str
    states: Tensor
    values: Tensor
    k: int
    runs: int
    limit_s: float
    clock: str
    tell: Callable[[str], None]
    gpu: Gpu | None
    in_time: Callable[[], bool]
    commit: str | None
    failures: list[str]
    foreseen: set[str] = field(default_factory=set)  # names whose time was foreseen and is not too long
    out: set[tuple[str, str]] = field(default_factory=set)  # (name, timing): what has failed once is not tried again

    def __post_init__(self) -> None:
        self.judge = Judge(self.states, self.values, self.k)

    def records(self, names: list[str], timing: str, cache: str) -> Iterator[Record]:
        """All of one mode."""
        timers: dict[str, Timer] = {}
        try:
            for name in names:
                if (name, timing) in self.out:
                    continue
                try:
                    timers[name] = self._begun(name, timing, cache)
                except Exception as error:  # a foreign implementation may fail in any way
                    self._leave_out(name, timing, cache, error)
            self._repeat(timers, timing, cache)
            for name, timer in timers.items():
                try:
                    answers = timer.answers()
                    record = self._record(name, timer, answers, timing, cache)
                except Exception as error:
                    self._leave_out(name, timing, cache, error)
                    continue
                yield record
        finally:
            for timer in timers.values():
                timer.close()

    def _begun(self, name: str, timing: str, cache: str) -> Timer:
        implementation = IMPLEMENTATIONS[name]
        kind = "cpu" if self.gpu is None else "cuda"
        if kind not in implementation.devices:
            raise Unavailable(f"not for {kind}")
        if not self.in_time():
            raise Unavailable("no time is left for it")
        if len(self.states) > FORESEEN_FROM and name not in OURS and name not in self.foreseen:
            implementation.build(self.states, self.values, self.k)  # may say at once that it is too much
            self._foresee(implementation)
            self.foreseen.add(name)
        if self.gpu is None:
            slow_ms = 1e3 * self.limit_s / 10
            return OnCpu(implementation.build(self.states, self.values, self.k), self.clock, slow_ms)
        if timing == "eager":
            return Eager(implementation.build(self.states, self.values, self.k), cache == "cold", self.gpu)
        if not implementation.capturable:
            raise NotCaptured("it does not launch on torch's current stream")
        return Replayed(
            lambda s, v: implementation.build(s, v, self.k), self.states, self.values, cache == "cold", self.gpu
        )

    def _foresee(self, implementation: Implementation) -> None:
        n = len(self.states)
        small = max(2 * self.k, n // 16)
        probe = implementation.build(self.states[:small].contiguous(), self.values[:small].contiguous(), self.k)
        probe()
        taken_ms = timed(probe, self.clock)[0] if self.gpu is None else self.gpu.elapsed(probe)
        foreseen = taken_ms / 1e3 * (n / small) ** implementation.growth
        if foreseen > self.limit_s:
            raise Unavailable(f"would take some {foreseen:.0f} s")

    def _repeat(self, timers: dict[str, Timer], timing: str, cache: str) -> None:
        for _ in range(self.runs):
            for name in list(timers):
                taken = timers[name].times
                # A slow one does not need as many runs.
                if taken and (sum(taken) >= 100 * self.limit_s or not self.in_time()):
                    continue
                try:
                    taken.append(timers[name].time())
                except Exception as error:
                    self._leave_out(name, timing, cache, error)
                    timers.pop(name).close()

    def _leave_out(self, name: str, timing: str, cache: str, error: Exception) -> None:
        why = f"{name}{'' if self.gpu is None else f', {timing}, {cache}'}: {reason(error)}"
        self.tell(f"  {why}")
        lost = [each for each in ("eager", "graph") if each == timing or not isinstance(error, NotCaptured)]
        self.out.update((name, each) for each in lost)
        if name == "qcse" and not isinstance(error, Unavailable):
            self.failures.append(why)

    def _record(self, name: str, timer: Timer, answers: list[Answer], timing: str, cache: str) -> Record:
        n, dim = self.states.shape
        metric = IMPLEMENTATIONS[name].metric
        verdicts = [self.judge.compare(answer, metric) for answer in answers]
        recalls = [self.judge.recall(answer.indices) for answer in answers if answer.indices is not None]
        errors = [error for _, error in verdicts]
        spread = statistics.quantiles(timer.times, n=4) if len(timer.times) > 1 else [0.0, 0.0, 0.0]
        digits = 4 if self.gpu is None else 6
        return Record(
            implementation=name,
            device="cpu" if self.gpu is None else self.gpu.name,
            threads=torch.get_num_threads(),
            data=self.data,
            n=n,
            dim=dim,
            k=self.k,
            dtype=str(self.states.dtype).removeprefix("torch."),
            median_ms=round(statistics.median(timer.times), digits),
            spread_ms=round(spread[2] - spread[0], digits),
            runs=len(timer.times),
            exact=all(exact for exact, _ in verdicts),
            max_rel_error=math.nan if any(math.isnan(e) for e in errors) else max(errors),
            metric=metric,
            clock=self.clock if self.gpu is None else "events",
            peak_mb=timer.peak_mb,
            timing=timing,
            cache=cache,
            commit=self.commit,
            recall=min(recalls, default=None),
        )

"""One implementation's calls, timed: on a CPU, on a GPU one by one, and in a replayed CUDA graph."""

import itertools
import math
import pathlib
import time
from collections.abc import Callable

from torch import Tensor

from qcse_ext.bench.gpu import Captured, Gpu
from qcse_ext.bench.records import Answer, Solver

__all__ = ["Eager", "Memory", "OnCpu", "Replayed", "Timer", "timed"]

#: Calls in one CUDA graph, if that keeps its replay below REPLAY_MS.
CALLS = 20
REPLAY_MS = 20.0
#: Bytes that copies of the inputs may take where each call of a graph reads its own.
COPIES = 4 << 30


def timed(run: Solver, clock: str) -> tuple[float, Answer]:
    now = time.process_time if clock == "cpu" else time.perf_counter
    time.sleep(0.01)  # the idle threads of the run before spin for some milliseconds
    start = now()
    result = run()
    return 1e3 * (now() - start), result


class Memory:
    """How much resident memory a piece of work adds at most, as Linux tells it: `rise()` after the work."""

    def __init__(self) -> None:
        self._before: float | None = None
        try:
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark so far
            self._before = self._read("VmRSS")
        except OSError:
            return

    def rise(self) -> float | None:
        return None if self._before is None else round(self._read("VmHWM") - self._before, 1)

    @staticmethod
    def _read(name: str) -> float:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name + ":"))


class OnCpu:
    """Calls on the CPU. The first one is timed too, and counts if it is a slow one."""

    def __init__(self, run: Solver, clock: str, slow_ms: float) -> None:
        self._run, self._clock = run, clock
        memory = Memory()
        first, self._answer = timed(run, clock)
        self.peak_mb = memory.rise()
        self.times = [] if first < slow_ms else [first]

    def time(self) -> float:
        return timed(self._run, self._clock)[0]

    def answers(self) -> list[Answer]:
        return [self._answer]

    def close(self) -> None:
        pass


class Eager:
    """Calls on a GPU, one by one. The first, which may compile something, is not timed."""

    def __init__(self, run: Solver, cold: bool, gpu: Gpu) -> None:
        self._run, self._cold, self._gpu = run, cold, gpu
        self._answer, self.peak_mb = gpu.first(run)
        self.times: list[float] = []

    def time(self) -> float:
        if self._cold:
            self._gpu.flush()
        return self._gpu.elapsed(self._run)

    def answers(self) -> list[Answer]:
        return [self._answer]

    def close(self) -> None:
        pass


class Replayed:
    """Calls in a CUDA graph. With `cold` each has inputs of its own, none of which is in the caches at the start.

    `build` makes a call from states and values.
    """

    def __init__(
        self, build: Callable[[Tensor, Tensor], Solver], states: Tensor, values: Tensor, cold: bool, gpu: Gpu
    ) -> None:
        self._cold, self._gpu = cold, gpu
        self.times: list[float] = []
        run = build(states, values)
        _, self.peak_mb = gpu.first(run)
        calls = max(1, min(CALLS, int(REPLAY_MS / max(gpu.elapsed(run), 1e-3))))
        if cold:
            calls = max(1, min(calls, COPIES // (states.nbytes + values.nbytes)))
        # The calls hold their inputs, and have to live as long as the graph, which only knows addresses.
        self._runs = [build(states.clone(), values.clone()) for _ in range(calls)] if cold else [run] * calls
        gpu.warm_up(self._all)
        self._captured: Captured = gpu.capture(self._all)
        self._captured.replay()  # a graph's first launch uploads it

    def _all(self) -> list[Answer]:
        return [run() for run in self._runs]

    def time(self) -> float:
        if self._cold:
            self._gpu.flush()
        return self._gpu.elapsed(self._captured.replay) / len(self._runs)

    def answers(self) -> list[Answer]:
        """What a replay writes into outputs that hold nonsense before it."""
        answers: list[Answer] = self._captured.result
        for x in itertools.chain.from_iterable(answers):
            if isinstance(x, Tensor):
                x.fill_(math.nan if x.is_floating_point() else -1)
        self._captured.replay()
        return answers

    def close(self) -> None:
        self._captured.close()
        self._runs = []


Timer = OnCpu | Eager | Replayed

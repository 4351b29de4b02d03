"""python -m qcse_ext.bench: the operator against what a user would run instead, timed side by side in one process.

Every implementation gets the same points and finds the distance to the k-th neighbour of every row. torch and KeOps
solve the joint problem, max of state distance and value gap, and the count; faiss, scikit-learn, SciPy and flashlib
can't, and solve the easier one in the states alone. Runs are interleaved, medians are reported, and each answer is
compared, on 512 random rows, with what the CPU finds looking at every pair. What is not installed, or fails, is left
out, saying so. The exit status is 1 if qcse fails or an answer of ours is not exact.

On a GPU a call is timed by itself (eager) and as one of up to 20 in a replayed CUDA graph, where the host plays no part
(graph); with inputs that may lie in the caches (warm) and with inputs that come from memory (cold).
"""

import argparse
import contextlib
import csv
import datetime
import gc
import importlib
import importlib.util
import itertools
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

import qcse_ext
from qcse_ext import _C, bench_data

__all__ = ["IMPLEMENTATIONS", "Answer", "Judge", "Record", "main", "measure"]

#: Bytes that an implementation may allocate for a matrix of pairs on a CPU.
MEMORY = 4 << 30
#: Rows whose answers are judged.
ROWS = 512
#: Calls in one CUDA graph, if that keeps its replay below REPLAY_MS.
CALLS = 20
REPLAY_MS = 20.0
#: Bytes that copies of the inputs may take where each call of a graph reads its own.
COPIES = 4 << 30
#: Bytes to overwrite for cold caches where torch does not tell the size of the L2 cache.
FLUSHED = 256 << 20
#: Points up to which the kernel for small problems is timed.
SMALL = 4096
#: Factor by which a returned neighbour may be farther away than the exact k-th one, for the recall.
NEAR_ENOUGH = 1 + 1e-6


class Unavailable(Exception):
    """Why an implementation takes no part."""


class NotCaptured(Exception):
    """Why a call can't be timed in a CUDA graph."""


class Answer(NamedTuple):
    """Of all rows, as arrays or tensors. `count` and `indices` (neighbours, which may include the row itself) only from
    implementations that give them."""

    radius: Any
    count: Any = None
    indices: Any = None


Solver = Callable[[], Answer]


@dataclass
class Record:
    """One line of results. What is said about the answer is said on 512 random rows, against the CPU's all-pairs search
    (on all rows where there are fewer)."""

    implementation: str
    device: str  # "cpu", or the GPU's name
    threads: int
    data: str
    n: int
    dim: int
    k: int
    dtype: str
    median_ms: float  # of one call
    spread_ms: float  # between the quartiles
    runs: int
    exact: bool  # max_rel_error is 0, and the count, of an implementation of ours, is the judge's
    max_rel_error: float  # of the radius, against the exact one of the same problem (joint or states alone)
    metric: str  # "joint" or "states"
    clock: str  # "wall", "cpu", or "events" on a GPU
    #: Memory that the first run added at most, in MB of 10^6 bytes: resident memory, None where the system does not
    #: tell; on a GPU what torch allocated there.
    peak_mb: float | None = None
    timing: str = "eager"  # or "graph": one call's share of the replay of a CUDA graph that holds several
    cache: str = "warm"  # or "cold": the inputs come from the GPU's memory
    commit: str | None = None
    recall: float | None = None  # see Judge.recall; None without indices


@dataclass(frozen=True)
class Implementation:
    """`build` prepares nothing but the call: index construction is part of the time."""

    build: Callable[[Tensor, Tensor, int], Solver]
    metric: str  # "joint" or "states"
    devices: tuple[str, ...]
    growth: int  # exponent of N in the time, to foresee runs that take too long
    capturable: bool = True  # whether trying to capture it in a CUDA graph is worth it


# --- The implementations ----------------------------------------------------------------------------------------------


def _ours(path: str) -> Callable[[Tensor, Tensor, int], Solver]:
    def build(states: Tensor, values: Tensor, k: int) -> Solver:
        def run() -> Answer:
            _C.set_search_path(path)
            try:
                return Answer(*qcse_ext.knn(states, values, k))
            finally:
                _C.set_search_path("auto")

        return run

    return build


def _our_kernel(kernel: str) -> Callable[[Tensor, Tensor, int], Solver]:
    def build(states: Tensor, values: Tensor, k: int) -> Solver:
        if not hasattr(_C, "set_cuda_path"):
            raise Unavailable("this build holds no CUDA kernels")
        if kernel == "small" and states.shape[0] > SMALL:
            raise Unavailable(f"timed up to {SMALL} points")

        def run() -> Answer:
            _C.set_cuda_path(kernel)
            try:
                return Answer(*qcse_ext.knn(states, values, k))
            finally:
                _C.set_cuda_path("auto")

        return run

    return build


def _torch_naive(states: Tensor, values: Tensor, k: int) -> Solver:
    n, dim = states.shape
    # On a GPU the difference and its norm are there at once, and graphs of other implementations beside them.
    room = MEMORY if states.device.type == "cpu" else torch.cuda.mem_get_info()[1] // 3
    if n * n * dim * states.element_size() > room:
        raise Unavailable(f"needs {n * n * dim * states.element_size() / 2**30:.0f} GiB")

    def run() -> Answer:
        distance = torch.linalg.vector_norm(states[:, None] - states[None], dim=-1)
        gap = (values[:, None] - values[None]).abs()
        radius = torch.maximum(distance, gap).topk(k + 1, largest=False).values[:, -1]
        ((gap < radius[:, None]).sum(-1) - 1).digamma()
        return Answer(radius)

    return run


def _torch_cdist(states: Tensor, values: Tensor, k: int) -> Solver:
    n = states.shape[0]
    rows = max(1, min(n, (256 << 20) // (n * states.element_size())))

    def run() -> Answer:
        radius = torch.empty_like(values)
        for begin in range(0, n, rows):
            part = slice(begin, begin + rows)
            gap = (values[part, None] - values[None]).abs()
            key = torch.maximum(torch.cdist(states[part], states), gap)
            radius[part] = key.topk(k + 1, largest=False).values[:, -1]
            (gap < radius[part, None]).sum(-1)
        return Answer(radius)

    return run


def _faiss(states: Tensor, values: Tensor, k: int) -> Solver:
    faiss = _module("faiss", "faiss-cpu")
    if states.dtype != torch.float32:
        raise Unavailable("float32 only")
    points = states.numpy()
    faiss.omp_set_num_threads(torch.get_num_threads())

    def run() -> Answer:
        squared, _ = faiss.knn(points, points, k + 1)
        return Answer(np.sqrt(np.maximum(squared[:, -1], 0)))

    return run


def _sklearn(states: Tensor, values: Tensor, k: int) -> Solver:
    neighbours = _module("sklearn.neighbors", "scikit-learn")
    points = states.numpy()

    def run() -> Answer:
        model = neighbours.NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=torch.get_num_threads())
        return Answer(model.fit(points).kneighbors()[0][:, -1])

    return run


def _ckdtree(states: Tensor, values: Tensor, k: int) -> Solver:
    spatial = _module("scipy.spatial", "scipy")
    points = states.numpy()

    def run() -> Answer:
        tree = spatial.cKDTree(points)
        return Answer(tree.query(points, [k + 1], workers=torch.get_num_threads())[0][:, 0])

    return run


def _keops(states: Tensor, values: Tensor, k: int) -> Solver:
    keops = _module("pykeops.torch", "pykeops")
    x, y = keops.LazyTensor(states[:, None].contiguous()), keops.LazyTensor(states[None].contiguous())
    p, q = keops.LazyTensor(values[:, None, None].contiguous()), keops.LazyTensor(values[None, :, None].contiguous())

    def run() -> Answer:
        gap = (p - q).abs()
        distance = ((x - y) ** 2).sum(-1).sqrt()
        key = (distance - gap).relu() + gap  # the maximum of the two
        return Answer(key.Kmin(k + 1, dim=1)[:, -1])

    return run


def _flashlib(states: Tensor, values: Tensor, k: int) -> Solver:
    knn = _module("flashlib.primitives.knn", "flashlib").flash_knn
    if states.dtype != torch.float32:
        raise Unavailable("float32 only")

    def run() -> Answer:
        squared, indices = knn(states, states, k + 1)
        # In the order of a score from tensor cores, which need not be that of the distances: hence the maximum. The
        # distances are sums of squares, taken anew, and not negative.
        return Answer(squared.amax(-1).sqrt(), indices=indices)

    return run


def _module(name: str, package: str) -> Any:
    if importlib.util.find_spec(name.split(".")[0]) is None:
        raise Unavailable(f"not installed (pip install {package})")
    try:
        return importlib.import_module(name)
    except Exception as error:  # a foreign package may fail in any way, for example for lack of a compiler
        raise Unavailable(f"does not load: {error}") from error


IMPLEMENTATIONS = {
    "qcse": Implementation(_ours("auto"), "joint", ("cpu", "cuda"), 2),
    "qcse-all": Implementation(_ours("all"), "joint", ("cpu",), 2),
    "qcse-boxes": Implementation(_ours("boxes"), "joint", ("cpu",), 2),
    "qcse-screen": Implementation(_ours("screen"), "joint", ("cpu",), 2),
    "qcse-small": Implementation(_our_kernel("small"), "joint", ("cuda",), 2),
    "qcse-large": Implementation(_our_kernel("large"), "joint", ("cuda",), 2),
    "qcse-screened": Implementation(_our_kernel("screened"), "joint", ("cuda",), 2),
    "torch-naive": Implementation(_torch_naive, "joint", ("cpu", "cuda"), 2),
    "torch-cdist": Implementation(_torch_cdist, "joint", ("cpu", "cuda"), 2),
    "flashlib": Implementation(_flashlib, "states", ("cuda",), 2),
    # KeOps launches on CUDA's default stream, whatever torch's is, and waits for the device.
    "keops": Implementation(_keops, "joint", ("cpu", "cuda"), 2, capturable=False),
    "faiss": Implementation(_faiss, "states", ("cpu",), 2),
    "sklearn": Implementation(_sklearn, "states", ("cpu",), 2),
    "ckdtree": Implementation(_ckdtree, "states", ("cpu",), 2),
}
OURS = ("qcse", "qcse-all", "qcse-boxes", "qcse-screen", "qcse-small", "qcse-large", "qcse-screened")


# --- Judging ----------------------------------------------------------------------------------------------------------


class Judge:
    """What the answers are compared with: some random rows, solved by the CPU operator looking at every pair.

    It shares neither the kernels of a GPU nor the pruning of the CPU's other paths with what is timed, and never holds
    more than these rows' share of the pairs.
    """

    def __init__(self, states: Tensor, values: Tensor, k: int, rows: int = ROWS) -> None:
        n = states.shape[0]
        self.k = k
        self.rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:rows].sort().values
        self._states, self._values = states.cpu(), values.cpu()
        self._exact: dict[str, tuple[Tensor, Tensor]] = {}
        self._near: tuple[Tensor, Tensor] | None = None  # points and how far the k nearest may be, for the recall

    def exact(self, metric: str) -> tuple[Tensor, Tensor]:
        """Radius and count of the judged rows; for the metric "states" with values of 0."""
        if metric not in self._exact:
            values = self._values if metric == "joint" else torch.zeros_like(self._values)
            self._exact[metric] = self._solve(self._states, values)
        return self._exact[metric]

    def compare(self, answer: Answer, metric: str) -> tuple[bool, float]:
        """Whether the answer is exact, and the largest relative error of its radius."""
        radius, count = self.exact(metric)
        error = _rel_error(self._judged(answer.radius), radius)
        same_count = answer.count is None or torch.equal(self._judged(answer.count).long(), count)
        return error == 0 and same_count, error

    def recall(self, indices: Any) -> float:
        """The share of the k nearest neighbours in the states that is found, over the judged rows.

        Of a row's indices those count that are another row's, each once, whose distance, in float64, is at most
        1 + 1e-6 times the exact k-th distance; at most k of them. Which of several neighbours at the same distance is
        returned does therefore not matter, nor which of two that float32 can't tell apart.
        """
        chosen = self._judged(indices).long().sort(dim=1).values
        if self._near is None:
            points = self._states.double()
            radius, _ = self._solve(points, torch.zeros(len(points), dtype=torch.float64))
            self._near = points, radius * NEAR_ENOUGH
        points, limit = self._near
        counts = (chosen >= 0) & (chosen < len(points)) & (chosen != self.rows[:, None])
        counts[:, 1:] &= chosen[:, 1:] != chosen[:, :-1]
        difference = points[chosen.clamp(0, len(points) - 1)] - points[self.rows, None]
        counts &= torch.linalg.vector_norm(difference, dim=-1) <= limit[:, None]
        return float(counts.sum(1).clamp(max=self.k).sum()) / (self.k * len(self.rows))

    def _judged(self, x: Any) -> Tensor:
        everything: Tensor = torch.as_tensor(x)
        return everything[self.rows.to(everything.device)].cpu()

    def _solve(self, states: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        _C.set_search_path("all")
        try:
            return qcse_ext.knn(states[self.rows], values[self.rows], self.k, states, values, self.rows)
        finally:
            _C.set_search_path("auto")


def _rel_error(got: Tensor, exact: Tensor) -> float:
    radius, exact = got.to(torch.float64), exact.to(torch.float64)
    error = (radius - exact).abs() / exact.clamp(min=torch.finfo(torch.float32).tiny)
    return float(torch.where(radius == exact, 0.0, error).max())


# --- Measuring --------------------------------------------------------------------------------------------------------


def _timed(run: Solver, clock: str) -> tuple[float, Answer]:
    now = time.process_time if clock == "cpu" else time.perf_counter
    time.sleep(0.01)  # the idle threads of the run before spin for some milliseconds
    start = now()
    result = run()
    return 1e3 * (now() - start), result


class _Memory:
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


class Captured(Protocol):
    """Work in a CUDA graph. `result` is what it returned when it was captured; a replay fills its tensors."""

    result: Any

    def replay(self) -> None: ...

    def close(self) -> None: ...


class Gpu(Protocol):
    """What timing needs of a GPU; the tests have their own."""

    name: str

    def first(self, work: Solver) -> tuple[Answer, float]:
        """The result, and the MB that were allocated at most."""
        ...

    def elapsed(self, work: Callable[[], object]) -> float:
        """Milliseconds between an event before the work and one after it, from an idle GPU on."""
        ...

    def flush(self) -> None:
        """Has the caches hold something else than any input."""
        ...

    def warm_up(self, work: Callable[[], object]) -> None:
        """Runs it on the stream of the captures, so that nothing is done for the first time in one."""
        ...

    def capture(self, work: Callable[[], Any]) -> Captured:
        """Raises NotCaptured if the work can't be captured, and leaves the GPU usable then."""
        ...


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, result: Any) -> None:
        self._graph, self.result = graph, result

    def replay(self) -> None:
        self._graph.replay()

    def close(self) -> None:
        torch.cuda.synchronize()
        self.result = None  # its tensors lie in the graph's own memory, which goes with the last of them
        self._graph.reset()


class _Cuda:
    """torch's current GPU."""

    def __init__(self) -> None:
        self.name = torch.cuda.get_device_name()
        # One stream for all captures and what prepares them: cuBLAS keeps a workspace for each stream, which is then
        # allocated before a capture and not in the memory of a graph that is soon gone.
        self._side = torch.cuda.Stream()
        cache = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 0)
        self._other = torch.empty(2 * cache or FLUSHED, dtype=torch.uint8, device="cuda")

    def first(self, work: Solver) -> tuple[Answer, float]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        torch.cuda.synchronize()
        return result, round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)

    def elapsed(self, work: Callable[[], object]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def flush(self) -> None:
        self._other.zero_()

    def warm_up(self, work: Callable[[], object]) -> None:
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            work()
        torch.cuda.current_stream().wait_stream(self._side)
        torch.cuda.synchronize()

    def capture(self, work: Callable[[], Any]) -> Captured:
        graph, pool, stream = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
        result, reason = None, ""
        collecting = gc.isenabled()
        gc.disable()  # what is destroyed in the middle of a capture, an older graph for example, can spoil it
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self._side):
                try:
                    result = work()
                except Exception as error:  # the capture has to be ended all the same
                    reason = _reason(error)
        except Exception as error:  # it could not be begun or ended: something was done that no graph can hold
            reason = reason or _reason(error)
            self._end_capture(pool, stream)
        finally:
            if collecting:
                gc.enable()
        if reason:
            graph.reset()
            raise NotCaptured(reason)
        return _CudaGraph(graph, result)

    def _end_capture(self, pool: Any, stream: Any) -> None:
        # torch.cuda.graph leaves its stream current where the end of the capture fails.
        torch.cuda.set_stream(stream)
        self._side = torch.cuda.Stream()
        # Up to torch 2.11 the allocator then goes on believing in a capture, and fails at the next one. It raises where
        # there is nothing to end; the pool is then the graph's to release.
        with contextlib.suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
        for _ in range(3):  # CUDA may still have an error to report to whoever asks next
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device="cuda")
                torch.cuda.synchronize()
                return


class _OnCpu:
    """Calls on the CPU. The first one is timed too, and counts if it is a slow one."""

    def __init__(self, run: Solver, clock: str, slow_ms: float) -> None:
        self._run, self._clock = run, clock
        memory = _Memory()
        first, self._answer = _timed(run, clock)
        self.peak_mb = memory.rise()
        self.times = [] if first < slow_ms else [first]

    def time(self) -> float:
        return _timed(self._run, self._clock)[0]

    def answers(self) -> list[Answer]:
        return [self._answer]

    def close(self) -> None:
        pass


class _Eager:
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


class _Replayed:
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


_Timer = _OnCpu | _Eager | _Replayed


def _reason(error: Exception) -> str:
    """Its first line: a foreign package may put a whole log into an error."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, NotCaptured):
        return f"can't be captured in a CUDA graph: {lines[0]}"
    known = isinstance(error, Unavailable | torch.OutOfMemoryError)
    return lines[0] if known else f"{type(error).__name__}: {lines[0]}"


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
    n, dim = states.shape
    judge = Judge(states, values, k)
    kind = "cpu" if gpu is None else "cuda"
    foreseen: set[str] = set()
    out: set[tuple[str, str]] = set()  # (name, timing): what has failed once is not tried again

    def foresee(implementation: Implementation) -> None:
        small = max(2 * k, n // 16)
        probe = implementation.build(states[:small].contiguous(), values[:small].contiguous(), k)
        probe()
        taken_ms = _timed(probe, clock)[0] if gpu is None else gpu.elapsed(probe)
        foreseen = taken_ms / 1e3 * (n / small) ** implementation.growth
        if foreseen > limit_s:
            raise Unavailable(f"would take some {foreseen:.0f} s")

    def begin(implementation: Implementation, timing: str, cache: str) -> _Timer:
        if gpu is None:
            return _OnCpu(implementation.build(states, values, k), clock, 1e3 * limit_s / 10)
        if timing == "eager":
            return _Eager(implementation.build(states, values, k), cache == "cold", gpu)
        if not implementation.capturable:
            raise NotCaptured("it does not launch on torch's current stream")
        return _Replayed(lambda s, v: implementation.build(s, v, k), states, values, cache == "cold", gpu)

    def leave_out(name: str, timing: str, cache: str, error: Exception) -> None:
        reason = f"{name}{'' if gpu is None else f', {timing}, {cache}'}: {_reason(error)}"
        tell(f"  {reason}")
        out.update((name, each) for each in ("eager", "graph") if each == timing or not isinstance(error, NotCaptured))
        if name == "qcse" and not isinstance(error, Unavailable) and failures is not None:
            failures.append(reason)

    for timing, cache in modes or [("eager", "warm")]:
        timers: dict[str, _Timer] = {}
        try:
            for name in names:
                implementation = IMPLEMENTATIONS[name]
                if (name, timing) in out:
                    continue
                try:
                    if kind not in implementation.devices:
                        raise Unavailable(f"not for {kind}")
                    if not in_time():
                        raise Unavailable("no time is left for it")
                    if n > 8192 and name not in OURS and name not in foreseen:
                        implementation.build(states, values, k)  # may say at once that it is too much
                        foresee(implementation)
                        foreseen.add(name)
                    timers[name] = begin(implementation, timing, cache)
                except Exception as error:  # a foreign implementation may fail in any way
                    leave_out(name, timing, cache, error)
            for _ in range(runs):
                for name in list(timers):
                    taken = timers[name].times
                    # A slow one does not need as many runs.
                    if taken and (sum(taken) >= 100 * limit_s or not in_time()):
                        continue
                    try:
                        taken.append(timers[name].time())
                    except Exception as error:
                        leave_out(name, timing, cache, error)
                        timers.pop(name).close()
            for name, timer in timers.items():
                metric = IMPLEMENTATIONS[name].metric
                try:
                    answers = timer.answers()
                    verdicts = [judge.compare(answer, metric) for answer in answers]
                    recalls = [judge.recall(answer.indices) for answer in answers if answer.indices is not None]
                except Exception as error:
                    leave_out(name, timing, cache, error)
                    continue
                errors = [error for _, error in verdicts]
                spread = statistics.quantiles(timer.times, n=4) if len(timer.times) > 1 else [0.0, 0.0, 0.0]
                digits = 4 if gpu is None else 6
                yield Record(
                    implementation=name,
                    device="cpu" if gpu is None else gpu.name,
                    threads=torch.get_num_threads(),
                    data=data,
                    n=n,
                    dim=dim,
                    k=k,
                    dtype=str(states.dtype).removeprefix("torch."),
                    median_ms=round(statistics.median(timer.times), digits),
                    spread_ms=round(spread[2] - spread[0], digits),
                    runs=len(timer.times),
                    exact=all(exact for exact, _ in verdicts),
                    max_rel_error=math.nan if any(math.isnan(e) for e in errors) else max(errors),
                    metric=metric,
                    clock=clock if gpu is None else "events",
                    peak_mb=timer.peak_mb,
                    timing=timing,
                    cache=cache,
                    commit=commit,
                    recall=min(recalls, default=None),
                )
        finally:
            for timer in timers.values():
                timer.close()


def _commit(of: pathlib.Path | None = None) -> str | None:
    """``$QCSE_COMMIT``, else what git says where the file is one of a checkout's, with "-dirty" after changes."""
    if os.environ.get("QCSE_COMMIT"):
        return os.environ["QCSE_COMMIT"]
    file = (of or pathlib.Path(__file__)).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed copy may lie in somebody else's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def machine_facts(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    facts: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "build": qcse_ext.build_info(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    for package in ("faiss", "sklearn", "scipy", "pykeops", "flashlib", "triton"):
        if package in sys.modules:
            facts[package] = getattr(sys.modules[package], "__version__", "unknown")
    return facts


# --- Output -----------------------------------------------------------------------------------------------------------


def table(records: list[Record]) -> str:
    """Milliseconds per problem and implementation, and how many times faster we are than the best other one."""
    names = [name for name in IMPLEMENTATIONS if any(r.implementation == name for r in records)]
    lines = ["| data | k | dtype | timing | " + " | ".join(names) + " | best other / qcse |"]
    lines.append("|---" * (len(names) + 5) + "|")

    def row(r: Record) -> tuple[str, int, int, int, str, int, str, str, str]:
        return r.data, r.n, r.dim, r.k, r.dtype, r.threads, r.device, r.timing, r.cache

    for problem in dict.fromkeys(row(r) for r in records):
        found = {r.implementation: r for r in records if row(r) == problem}
        cells = []
        for name in names:
            record = found.get(name)
            mark = "" if record is None or record.exact else "*"
            cells.append("" if record is None else f"{record.median_ms:.4g}{mark}")
        others = [r.median_ms for name, r in found.items() if name not in OURS]
        ratio = f"{min(others) / found['qcse'].median_ms:.2f}" if others and "qcse" in found else ""
        data, n, dim, k, dtype, _, _, timing, cache = problem
        lines.append(
            f"| {data} {n} x {dim} | {k} | {dtype} | {timing}, {cache} | " + " | ".join(cells) + f" | {ratio} |"
        )
    lines.append("\nMilliseconds, medians of interleaved runs. * not exact on the judged rows (see max_rel_error).")
    return "\n".join(lines)


def plot(records: list[Record], path: pathlib.Path) -> None:
    """One bar chart per problem, logarithmic, ours first."""
    matplotlib = _module("matplotlib", "matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def problem_of(r: Record) -> tuple[str, int, int, int, str, str, str]:
        return r.data, r.n, r.dim, r.k, r.dtype, r.timing, r.cache

    problems = list(dict.fromkeys(problem_of(r) for r in records))
    several = len({problem[-2:] for problem in problems}) > 1
    columns = min(3, len(problems))
    rows = math.ceil(len(problems) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(problems) :]:
        axis.axis("off")
    for axis, problem in zip(axes.flat, problems):
        chosen = [r for r in records if problem_of(r) == problem]
        chosen.sort(key=lambda r: -r.median_ms)
        colours = ["#1b6ca8" if r.implementation in OURS else "#b8b8b8" for r in chosen]
        bars = axis.barh([r.implementation for r in chosen], [r.median_ms for r in chosen], color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=7)
        axis.set_xscale("log")
        axis.margins(x=0.2)
        mode = f"\n{problem[-2]}, {problem[-1]}" if several else ""
        axis.set_title(f"{problem[0]} {problem[1]} x {problem[2]}, k = {problem[3]}{mode}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("ms", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def hot_loop_shares() -> list[dict[str, Any]]:
    """What part of the processor's multiply-adds the hot loop of all pairs reaches, by instruction set and dtype.

    The loop does one subtraction and one multiply-add for each dimension of a pair; the peak is a loop of independent
    multiply-adds on registers, timed in turn with it. Both on one core, in processor time."""
    shares: list[dict[str, Any]] = []
    best = qcse_ext.build_info()["cpu_instruction_set"]
    try:
        for name in qcse_ext.build_info()["cpu_instruction_sets"]:
            _C.set_instruction_set(name)
            for twofold in (False, True):
                for dim in (17, 105):
                    tile, peak = _C.hot_loop_speed(dim, twofold)
                    shares.append(
                        {
                            "instruction_set": name,
                            "dtype": "float64" if twofold else "float32",
                            "dim": dim,
                            "tile_giga_per_s": round(tile / 1e9, 2),
                            "peak_giga_per_s": round(peak / 1e9, 2),
                            "share": round(tile / peak, 3),
                        }
                    )
    finally:
        _C.set_instruction_set(best)
    return shares


def _size(text: str) -> tuple[int, int]:
    n, _, dim = text.partition("x")
    if not (n.isdecimal() and dim.isdecimal() and int(n) > 0 and int(dim) > 0):
        raise argparse.ArgumentTypeError(f"got '{text}', expected points and dimensions, as in 4096x17")
    return int(n), int(dim)


def _parser() -> argparse.ArgumentParser:
    kinds = "; ".join(f"{name}: {meaning}" for name, meaning in bench_data.KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m qcse_ext.bench",
        description="Time qcse against what else finds k-th neighbours, on the same points in one process. The exit "
        "status is 1 if qcse fails or an answer of ours is not exact.",
    )
    parser.add_argument("--data", nargs="+", default=["normal"], choices=list(bench_data.KINDS), help=kinds)
    parser.add_argument("--n", nargs="+", type=int, default=[1024, 4096, 65536], help="numbers of points")
    parser.add_argument("--dim", nargs="+", type=int, default=[17], help="dimensions of normal data")
    parser.add_argument(
        "--sizes", nargs="+", type=_size, metavar="NxDIM", help="of normal data, as 4096x17, instead of --n and --dim"
    )
    parser.add_argument("--k", nargs="+", type=int, default=[12], help="which neighbour")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "float64"])
    parser.add_argument(
        "--implementations", nargs="+", choices=list(IMPLEMENTATIONS), help="default: all of the device"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--timing",
        nargs="+",
        choices=["eager", "graph"],
        help="of single calls, and in a replayed CUDA graph; default: both on a GPU, eager on a CPU",
    )
    parser.add_argument(
        "--cache",
        nargs="+",
        choices=["warm", "cold"],
        help="where the inputs lie at the start: in the caches or not; default: both on a GPU, warm on a CPU",
    )
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each implementation")
    parser.add_argument(
        "--limit", type=float, default=60, help="leave out what would take more seconds for one run; 1/10 of it for all"
    )
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="begin no problem and no implementation after so many seconds"
    )
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time, see --threads 1")
    parser.add_argument("--quick", action="store_true", help="1024 and 4096 points, 3 runs: some seconds")
    parser.add_argument("--lines", action="store_true", help="print each record as one line of JSON when it is known")
    parser.add_argument("--csv", type=pathlib.Path, help="write the records as CSV")
    parser.add_argument(
        "--json", type=pathlib.Path, help="write the records and the machine's facts as JSON, after every problem"
    )
    parser.add_argument("--plot", type=pathlib.Path, help="write bar charts as PNG")
    parser.add_argument("--peak", action="store_true", help="only the hot loop's share of the multiply-add peak")
    return parser


def _checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fills in what depends on the device, and refuses what it does not have."""
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if not on_gpu and "graph" in (options.timing or []):
        parser.error("--timing graph: CUDA graphs need --device cuda")
    if not on_gpu and "cold" in (options.cache or []):
        parser.error("--cache cold: needs --device cuda, as nothing here empties a CPU's caches")
    if on_gpu and options.clock != "wall":
        parser.error(f"--clock {options.clock}: with --device cuda the GPU's events are the clock; leave it out")
    if options.sizes and "normal" not in options.data:
        parser.error("--sizes: is of normal data, which --data does not name; use --n")
    options.timing = list(dict.fromkeys(options.timing or (["eager", "graph"] if on_gpu else ["eager"])))
    options.cache = list(dict.fromkeys(options.cache or (["warm", "cold"] if on_gpu else ["warm"])))
    if options.implementations is None:
        options.implementations = [name for name, i in IMPLEMENTATIONS.items() if options.device in i.devices]
    options.implementations = list(dict.fromkeys(options.implementations))
    if options.quick:
        options.n, options.runs = [1024, 4096], 3


def _plain(record: Record) -> dict[str, Any]:
    """For JSON, which has neither infinities nor NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(record).items()}


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """At no moment is there half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def _say(text: str) -> None:
    print(text, flush=True)


def _show(record: Record) -> None:
    verdict = "exact" if record.exact else f"relative error {record.max_rel_error:.1e}"
    if not record.exact and record.max_rel_error == 0:
        verdict = "wrong count"
    if record.recall is not None:
        verdict += f", recall {record.recall:.4f}"
    memory = "" if record.peak_mb is None else f"  {record.peak_mb:8.1f} MB more"
    mode = "" if record.device == "cpu" else f"{record.timing:5} {record.cache:4} "
    time_taken = f"{record.median_ms:10.3f} ms" if record.device == "cpu" else f"{record.median_ms:10.5f} ms"
    _say(f"  {record.implementation:13} {mode}{time_taken}{memory}  {verdict}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    begun = time.monotonic()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.peak:
        shares = hot_loop_shares()
        print("| instruction set | dtype | D | hot loop, G multiply-adds/s | peak | share |\n|---|---|---|---|---|---|")
        for row in shares:
            print("| " + " | ".join(str(x) for x in row.values()) + " |")
        if options.json:
            _write(options.json, {"machine": machine_facts("cpu"), "hot_loop": shares})
        return 0
    _checked(parser, options)
    if options.threads:
        torch.set_num_threads(options.threads)

    gpu = _Cuda() if options.device == "cuda" else None
    commit = _commit()
    records: list[Record] = []
    failures: list[str] = []

    def in_time() -> bool:
        return options.budget is None or time.monotonic() - begun < options.budget

    sizes: list[tuple[str, int, int | None]] = []
    for data in options.data:
        if data == "normal":
            sizes += [(data, n, dim) for n, dim in options.sizes or itertools.product(options.n, options.dim)]
        else:
            sizes += [(data, n, None) for n in options.n]
    for data, n, dim in sizes:
        if not in_time():
            _say(f"left out, the budget of {options.budget:g} s is spent: {data} {n}{f' x {dim}' if dim else ''}")
            continue
        points = bench_data.load(data, n, dim)
        for dtype, k in itertools.product(options.dtype, options.k):
            title = f"{data} {n} x {points[0].shape[1]}, k = {k}, {dtype}"
            if not in_time():
                _say(f"left out, the budget of {options.budget:g} s is spent: {title}")
                continue
            _say(title)
            states, values = (torch.from_numpy(x).to(options.device, getattr(torch, dtype)) for x in points)
            for record in measure(
                data,
                states,
                values,
                k,
                options.implementations,
                options.runs,
                options.limit,
                options.clock,
                _say,
                list(itertools.product(options.timing, options.cache)),
                gpu,
                in_time,
                commit,
                failures,
            ):
                records.append(record)
                if options.lines:
                    _say(json.dumps(_plain(record)))
                else:
                    _show(record)
            if options.json:
                _write(
                    options.json,
                    {"machine": machine_facts(options.device), "records": [_plain(r) for r in records]},
                )
    if not records:
        return 1 if failures else 0
    print("\n" + table(records))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(Record.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(r) for r in records)
    if options.plot:
        plot(records, options.plot)
    return 1 if failures or any(r.implementation in OURS and not r.exact for r in records) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Timing on a GPU: events, cold caches, CUDA graphs."""

import contextlib
import gc
from collections.abc import Callable
from typing import Any, Protocol

import torch

from qcse_ext.bench.records import Answer, NotCaptured, Solver, reason

__all__ = ["Captured", "Cuda", "Gpu"]

#: Bytes to overwrite for cold caches where torch does not tell the size of the L2 cache.
FLUSHED = 256 << 20


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


class CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, result: Any) -> None:
        self._graph, self.result = graph, result

    def replay(self) -> None:
        self._graph.replay()

    def close(self) -> None:
        torch.cuda.synchronize()
        self.result = None  # its tensors lie in the graph's own memory, which goes with the last of them
        self._graph.reset()


class Cuda:
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
        result, why = None, ""
        collecting = gc.isenabled()
        gc.disable()  # what is destroyed in the middle of a capture, an older graph for example, can spoil it
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self._side):
                try:
                    result = work()
                except Exception as error:  # the capture has to be ended all the same
                    why = reason(error)
        except Exception as error:  # it could not be begun or ended: something was done that no graph can hold
            why = why or reason(error)
            self._end_capture(pool, stream)
        finally:
            if collecting:
                gc.enable()
        if why:
            graph.reset()
            raise NotCaptured(why)
        return CudaGraph(graph, result)

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

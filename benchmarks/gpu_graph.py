"""Times the operator replayed from a CUDA graph, beside torch's cdist, max and topk captured the same way.

python benchmarks/gpu_graph.py [--sizes 256x17 4096x17] [--k 12] [--json FILE] [--device cuda]

Each record holds the median of the runs, the share of the multiply-add limit where every pair is looked at, and whether
the radius equals the CPU operator's bit for bit (up to 20000 points). With --device cpu plain calls are timed, which
rehearses the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import qcse_ext
from qcse_ext import _C

PAIRS_IN_MEMORY = 8 << 30  # bytes that torch's matrix of distances may take


def timed(call: Callable[[], object], device: str, runs: int) -> list[float]:
    """Milliseconds of each run; on a GPU by events around the replay of a graph, after a flush of the L2 cache."""
    for _ in range(3):
        call()
    if device == "cpu":
        times = []
        for _ in range(runs):
            begin = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - begin))
        return times
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for begin_event, end_event in events:
        flush.zero_()
        begin_event.record()
        graph.replay()
        end_event.record()
    torch.cuda.synchronize()
    return [begin_event.elapsed_time(end_event) for begin_event, end_event in events]


def cdist_max_topk(states: Tensor, values: Tensor, k: int) -> Tensor:
    keys = torch.maximum(torch.cdist(states, states), (values[:, None] - values).abs())
    keys.fill_diagonal_(float("inf"))
    return keys.topk(k, largest=False).values[:, -1]


def with_kernel(kernel: str, states: Tensor, values: Tensor, k: int) -> object:
    _C.set_cuda_path(kernel)
    try:
        return qcse_ext.knn(states, values, k)
    finally:
        _C.set_cuda_path("auto")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["256x17", "1024x17", "4096x17", "65536x17"])
    parser.add_argument("--k", nargs="+", type=int, default=[12])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    records: list[dict[str, object]] = []
    for size in arguments.sizes:
        n, dim = map(int, size.split("x"))
        for k in arguments.k:
            generator = torch.Generator().manual_seed(n + dim)
            cpu_states, cpu_values = torch.randn(n, dim, generator=generator), torch.randn(n, generator=generator)
            states, values = cpu_states.to(arguments.device), cpu_values.to(arguments.device)
            calls: dict[str, Callable[[], object]] = {
                "qcse knn": lambda s=states, v=values, k=k: qcse_ext.knn(s, v, k),
                "qcse entropy": lambda s=states, v=values, k=k: qcse_ext.entropy(s, v, k),
            }
            if n > 4096 and arguments.device == "cuda":  # what does the choice by shape leave on the table?
                for kernel in ("large", "screened"):
                    calls[f"qcse knn {kernel}"] = lambda s=states, v=values, k=k, kernel=kernel: with_kernel(
                        kernel, s, v, k
                    )
            if 12 * n * n < PAIRS_IN_MEMORY:
                calls["torch cdist max topk"] = lambda s=states, v=values, k=k: cdist_max_topk(s, v, k)
            exact = None
            if n <= 20000:
                exact = torch.equal(
                    qcse_ext.knn(states, values, k)[0].cpu(), qcse_ext.knn(cpu_states, cpu_values, k)[0]
                )
            for name, call in calls.items():
                runs = arguments.runs if n <= 65536 else 5
                times = timed(call, arguments.device, runs)
                record = {
                    "implementation": name,
                    "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
                    "data": "normal",
                    "n": n,
                    "dim": dim,
                    "k": k,
                    "dtype": "float32",
                    "median_ms": statistics.median(times),
                    "fastest_ms": min(times),
                    "runs": runs,
                    "tera_pairs_per_s": n * n / statistics.median(times) / 1e9,
                    "exact": exact if name == "qcse knn" else None,
                }
                records.append(record)
                print(
                    f"{name:22} {n:8} x {dim:4} k {k:4}  {record['median_ms']:10.4f} ms  exact {record['exact']}",
                    flush=True,
                )
                if arguments.json:
                    arguments.json.write_text(json.dumps({"records": records}, indent=2) + "\n")
    return 1 if any(r["exact"] is False for r in records) else 0


if __name__ == "__main__":
    sys.exit(main())

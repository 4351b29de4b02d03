"""Measures the CUDA operator on the GPU that is here: replayed graphs, then side by side with what is installed.

OUT=folder [WHEELS=folder] [DRY_RUN=1] python benchmarks/gpu_bench.py

At most 9 minutes. gpu_bench.json and gpu_bench.log in OUT are complete after every stage, and each stage leaves its
records in a file of its own. DRY_RUN=1 prints each stage and runs those that need no GPU.
"""

from __future__ import annotations

import sys

from gpu_stages import Stages

SIZES = [(256, 17), (1024, 17), (4096, 17), (65536, 11), (65536, 17), (65536, 111), (262144, 29), (1000000, 29)]


def main() -> int:
    stages = Stages("gpu_bench", total_s=530)
    stages.facts()
    if not stages.build():
        return stages.finish()
    sizes = [f"{n}x{dim}" for n, dim in SIZES]
    graph = [sys.executable, "benchmarks/gpu_graph.py", "--json", str(stages.out / "gpu_graph.json")]
    if stages.dry:  # the same script on the CPU, where it times plain calls
        stages.run("graph replay", [*graph, "--device", "cpu", "--sizes", "256x17", "--runs", "3"], 60, needs_gpu=False)
    else:
        stages.run("graph replay", [*graph, "--sizes", *sizes], 150)
        stages.run(
            "other k",
            [*graph[:-1], str(stages.out / "gpu_graph_k.json"), "--sizes", "65536x17", "--k", "5", "50", "100"],
            40,
        )
    bench = [sys.executable, "-m", "qcse_ext.bench", "--device", "cuda", "--limit", "20", "--runs", "5"]
    for n, dim in SIZES:
        file = str(stages.out / f"gpu_bench_{n}x{dim}.json")
        stages.run(f"{n} x {dim}", [*bench, "--n", str(n), "--dim", str(dim), "--json", file], 40)
    return stages.finish()


if __name__ == "__main__":
    sys.exit(main())

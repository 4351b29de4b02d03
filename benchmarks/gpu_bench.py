"""Measures on the GPU that is here: the operator in replayed graphs, the training step, side by side with others.

OUT=folder [WHEELS=folder] [CORL=checkout] [DRY_RUN=1] python benchmarks/gpu_bench.py

At most 9 minutes. gpu_bench.json, which takes in every stage's records, and gpu_bench.log in OUT are complete after
every stage. With CORL the training step is measured beside CORL's own. DRY_RUN=1 prints each stage and runs those that
need no GPU.
"""

from __future__ import annotations

import os
import sys

from gpu_stages import Stages

SIZES = [(256, 17), (1024, 17), (4096, 17), (65536, 11), (65536, 17), (65536, 111), (262144, 29), (1000000, 29)]


def training(stages: Stages) -> None:
    """Updates per second of Cal-QL, many seeds at once, captured and not; with CORL beside CORL's eager one."""
    look = "import qcse.bench, torch; print(torch.__version__)"
    if not stages.run("training layer", [sys.executable, "-c", look], 60, needs_gpu=False):
        return
    file = stages.out / "training.json"
    bench = [sys.executable, "-m", "qcse", "bench", "--json", str(file)]
    corl = ["--corl", os.environ["CORL"]] if os.environ.get("CORL") else []
    if stages.dry:
        small = ["--device", "cpu", "--batch-size", "32", "--seeds", "1", "2", "--rounds", "2", "--updates", "1"]
        stages.run("training step on the CPU", [*bench, *corl, *small], 120, needs_gpu=False, result=file)
    bench += ["--device", "cuda", "--rounds", "7", "--updates", "20"]
    stages.run("training step", [*bench, *corl, "--seeds", "1", "4", "8", "16"], 90, result=file)
    stages.run("training step, bf16", [*bench, "--seeds", "1", "16", "--precisions", "bf16"], 40, result=file)
    stages.run("training step, TF32", [*bench, "--seeds", "1", "16", "--precisions", "tf32"], 40, result=file)
    eager = ["--seeds", "1", "16", "--cuda-graph", "off", "--profile"]
    stages.run("training step, not captured", [*bench, *eager], 40, result=file)


def main() -> int:
    stages = Stages("gpu_bench", total_s=530)
    stages.facts()
    if not stages.build(training=True):
        return stages.finish()
    sizes = [f"{n}x{dim}" for n, dim in SIZES]
    file = stages.out / "stage.json"
    graph = [sys.executable, "benchmarks/gpu_graph.py", "--json", str(file)]
    if stages.dry:  # the same script on the CPU, where it times plain calls
        on_cpu = ["--device", "cpu", "--sizes", "256x17", "--runs", "3"]
        stages.run("graph replay", [*graph, *on_cpu], 60, needs_gpu=False, result=file)
    else:
        stages.run("graph replay", [*graph, "--sizes", *sizes], 150, result=file)
    training(stages)
    other = ["--sizes", "65536x17", "--k", "5", "50", "100"]
    stages.run("other k", [*graph, *other], 40, result=file)
    bench = [sys.executable, "-m", "qcse_ext.bench", "--device", "cuda", "--limit", "20", "--runs", "5"]
    for n, dim in SIZES:
        command = [*bench, "--n", str(n), "--dim", str(dim), "--json", str(file)]
        stages.run(f"{n} x {dim}", command, 40, result=file)
    return stages.finish()


if __name__ == "__main__":
    sys.exit(main())

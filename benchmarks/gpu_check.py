"""Verifies the CUDA operator on the GPU that is here: build, the cuda tests, compute-sanitizer's four tools.

OUT=folder [WHEELS=folder] [DRY_RUN=1] python benchmarks/gpu_check.py

At most 9 minutes. gpu_check.json and gpu_check.log in OUT are complete after every stage. DRY_RUN=1 prints each stage
and runs those that need no GPU.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from gpu_stages import Stages


def find_sanitizer() -> str:
    beside = Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc").resolve().parent / "compute-sanitizer"
    return shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else "compute-sanitizer")


def main() -> int:
    stages = Stages("gpu_check", total_s=530)
    stages.facts()
    if not stages.build():
        return stages.finish()
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/cuda"]
    stages.run("cuda tests", pytest, 170)
    if stages.dry:  # the tests that compare answers, with the CPU in the GPU's place
        stages.environment.update(QCSE_CUDA_DEVICE="cpu", QCSE_CUDA_PROBLEMS="40")
        names = "random_problem or size or separate or batch or values or half or strides or fewer"
        stages.run("cuda tests on the CPU", [*pytest, "-k", names], 60, needs_gpu=False)
        stages.run("sanitizer's problems on the CPU", [sys.executable, "tests/cuda/sanitize.py"], 60, needs_gpu=False)
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        # torch's own allocator and kernels are not under test: only reports that fail the run count.
        command = [find_sanitizer(), "--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kns=knn_"]
        stages.run(tool, [*command, sys.executable, "tests/cuda/sanitize.py"], 60)
    return stages.finish()


if __name__ == "__main__":
    sys.exit(main())

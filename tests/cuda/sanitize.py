"""A small set of problems for compute-sanitizer: every kernel, tails, several tiles, both precisions, long lists."""

import sys
from pathlib import Path

import torch

from qcse_ext import _C

sys.path.insert(0, str(Path(__file__).resolve().parent))
import test_cuda


def main() -> None:
    for n, dim, k in [(70, 17, 12), (300, 30, 40), (4200, 5, 12), (4200, 20, 12)]:
        for dtype in (torch.float32, torch.float64):
            for kernel in ("auto", "screened"):
                if test_cuda.DEVICE != "cpu":
                    _C.set_cuda_path(kernel)
                test_cuda.check(test_cuda.normal(n, dim, k=k, dtype=dtype), f"{n} {dim} {k} {dtype} {kernel}")
    if test_cuda.DEVICE != "cpu":
        _C.set_cuda_path("auto")
    states, values, k = test_cuda.normal(2, 40, 9, k=5)
    ref_states, ref_values, _ = test_cuda.normal(2, 4500, 9, seed=1)
    ref_values[:, ::7] = float("nan")
    test_cuda.check((states, values, k, ref_states, ref_values, None), "references")
    print("sanitize: all answers are those of the CPU")


if __name__ == "__main__":
    main()

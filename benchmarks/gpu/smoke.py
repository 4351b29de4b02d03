"""The first look: does torch's operator on this device give the CPU's bits, and does the laboratory agree with it?

python benchmarks/gpu/smoke.py [--device cuda] [--problems 40] [--lab build/gpu-kit/qcse_lab]

Random problems (as the emulator's tests draw them) on every kernel, through torch; then points that the laboratory made
and solved on its CPU. Prints one JSON line; exit status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import qcse_ext
from qcse_ext import _C

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "emulator"))


def same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    """Equal bits; NaNs compare by position."""
    radius, count = got[0].cpu(), got[1].cpu()
    bits = torch.equal(radius.nan_to_num(nan=-1.0), expected[0].nan_to_num(nan=-1.0))
    return bits and torch.equal(count, expected[1])


def compare_problems(device: str, problems: int) -> list[str]:
    """What differs between the device and the CPU; empty where all is well."""
    from problems import draw  # the emulator's

    wrong: list[str] = []
    for seed in range(problems):
        problem, _, what = draw(seed, largest=400)
        arrays = [problem.ref_states, problem.ref_values, problem.self_index]
        parts = [None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
        states, values = torch.from_numpy(problem.states), torch.from_numpy(problem.values)
        expected = qcse_ext.knn(states, values, problem.k, *parts)
        moved = [None if a is None else a.to(device) for a in parts]
        for kernel in ("auto", "large", "screened") if device == "cuda" else ("auto",):
            if device == "cuda":
                _C.set_cuda_path(kernel)
            try:
                got = qcse_ext.knn(states.to(device), values.to(device), problem.k, *moved)
                if not same(got, expected):
                    wrong.append(f"{kernel}: {what}")
            except RuntimeError as error:
                wrong.append(f"{kernel}: {what}: {str(error).splitlines()[0]}")
    if device == "cuda":
        _C.set_cuda_path("auto")
    return wrong


def compare_lab(lab: Path) -> list[str]:
    wrong = []
    for size, data, k in (("500x17", "normal", 12), ("2000x11", "trajectories", 5), ("300x111", "trajectories", 50)):
        with tempfile.TemporaryDirectory() as folder:
            command = [str(lab), "dump", "--folder", folder, "--sizes", size, "--data", data, "--k", str(k)]
            subprocess.run(command, check=True, capture_output=True)
            n, dim = map(int, size.split("x"))
            states = torch.from_numpy(np.fromfile(f"{folder}/states.f32", np.float32).reshape(n, dim))
            values = torch.from_numpy(np.fromfile(f"{folder}/values.f32", np.float32))
            radius = torch.from_numpy(np.fromfile(f"{folder}/radius.f32", np.float32))
            count = torch.from_numpy(np.fromfile(f"{folder}/count.i64", np.int64))
        if not same((radius, count), qcse_ext.knn(states, values, k)):
            wrong.append(f"the laboratory's CPU half: {data} {size}, k {k}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--lab", type=Path)
    arguments = parser.parse_args()
    wrong = compare_problems(arguments.device, arguments.problems)
    if arguments.lab is not None:
        wrong += compare_lab(arguments.lab)
    for line in wrong:
        print(f"differs: {line}")
    facts = {"torch": torch.__version__, "problems": arguments.problems, "wrong": len(wrong), **qcse_ext.build_info()}
    print(json.dumps(facts))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Counts the operations of one update as a GPU would run it: what a captured graph has to launch. Needs no GPU.

python benchmarks/gpu/launches.py [--algos cql cal_ql] [--seeds 1 16] [--bonuses none qcse] [--list] [--json FILE]

The update runs on CPU tensors under a dispatch mode, with the operators that have a CUDA kernel in the place of those
that have one for the CPU. An operation of torch's counts once, unless it makes a view or uninitialised memory; one of
ours as often as it launches a kernel, and one that is composed of others as often as they do. (torch itself may launch
more than one kernel for an operation, such as a copy of the bias before a product.)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from qcse.bench import our_step
from qcse.config.commands import BenchArgs
from qcse.learn import streams
from qcse_ext import registration

# Kernels that an operator of ours launches for a training batch, where there is more than one.
LAUNCHES = {"batch_entropy": 3, "conservative_head": 2}
MEMORY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_record_function")


def has_cuda_kernel(name: str, x: torch.Tensor) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"qcse::{name}", "CUDA"))


class AsOnGpu(TorchDispatchMode):
    """Runs what is called on CPU tensors the way that a GPU's dispatcher would, and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if func.namespace == "qcse" and name in registration.composed:
            with self:
                return registration.composed[name](*args, **kwargs)
        if func.namespace == "qcse":
            self.counts[name] += LAUNCHES.get(name, 1)
            return shapes_of(func, args, kwargs)
        aliases = [r.alias_info for r in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        if not view and not name.startswith(MEMORY):
            self.counts[name] += 1
        return func(*args, **kwargs)


def shapes_of(func: Any, args: Any, kwargs: Any) -> Any:
    """What the operator would return, with zeros in it: there may be no kernel for the CPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = func(*args, **kwargs)
    return tree_map_only(torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), result)


@contextmanager
def as_on_gpu() -> Any:
    with mock.patch.object(registration, "has_kernel", has_cuda_kernel), AsOnGpu() as mode:
        yield mode


def count(algo: str, bonus: str, seeds: int) -> Counter[str]:
    """Operation -> how often, in one online update in float32."""
    shapes = BenchArgs(cuda_graph="off")
    on_gpu = mock.patch.object(registration, "has_kernel", has_cuda_kernel)
    with on_gpu, mock.patch.object(streams, "by_counter", lambda device: True):
        step = our_step(algo, bonus, seeds, shapes, torch.device("cpu"))
    with as_on_gpu():
        step()  # what happens once only
    with as_on_gpu() as mode:
        step()
    return mode.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", default=["cql", "cal_ql"], choices=("cql", "cal_ql"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--bonuses", nargs="+", default=["none", "qcse"])
    parser.add_argument("--list", action="store_true", help="every operation and how often")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    if not has_cuda_kernel("knn", torch.zeros(1)):
        sys.exit("launches: qcse_ext is built without its CUDA kernels; build it with -C cmake.define.QCSE_CUDA=ON")
    records = []
    for algo in given.algos:
        for seeds in given.seeds:
            for bonus in given.bonuses:
                counts = count(algo, bonus, seeds)
                records.append({"algo": algo, "bonus": bonus, "seeds": seeds, "operations": counts.total()})
                print(
                    f"{algo:<8}bonus {bonus:<6}{seeds:>3} seeds  {counts.total():>4} operations an update", flush=True
                )
                if given.list:
                    print("    " + ", ".join(f"{name} {n}" for name, n in counts.most_common()))
    if given.json is not None:
        given.json.write_text(json.dumps({"records": records}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

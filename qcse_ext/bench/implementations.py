"""The implementations that are compared, ours and others' ways to k-th neighbours."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import qcse_ext
from qcse_ext import _C
from qcse_ext.bench.records import Answer, Solver, Unavailable

__all__ = ["IMPLEMENTATIONS", "OURS", "Implementation", "module"]

#: Bytes that an implementation may allocate for a matrix of pairs on a CPU.
MEMORY = 4 << 30
#: Points up to which the kernel for small problems is timed.
SMALL = 4096


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
    faiss = module("faiss", "faiss-cpu")
    if states.dtype != torch.float32:
        raise Unavailable("float32 only")
    points = states.numpy()
    faiss.omp_set_num_threads(torch.get_num_threads())

    def run() -> Answer:
        squared, _ = faiss.knn(points, points, k + 1)
        return Answer(np.sqrt(np.maximum(squared[:, -1], 0)))

    return run


def _sklearn(states: Tensor, values: Tensor, k: int) -> Solver:
    neighbours = module("sklearn.neighbors", "scikit-learn")
    points = states.numpy()

    def run() -> Answer:
        model = neighbours.NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=torch.get_num_threads())
        return Answer(model.fit(points).kneighbors()[0][:, -1])

    return run


def _ckdtree(states: Tensor, values: Tensor, k: int) -> Solver:
    spatial = module("scipy.spatial", "scipy")
    points = states.numpy()

    def run() -> Answer:
        tree = spatial.cKDTree(points)
        return Answer(tree.query(points, [k + 1], workers=torch.get_num_threads())[0][:, 0])

    return run


def _keops(states: Tensor, values: Tensor, k: int) -> Solver:
    keops = module("pykeops.torch", "pykeops")
    x, y = keops.LazyTensor(states[:, None].contiguous()), keops.LazyTensor(states[None].contiguous())
    p, q = keops.LazyTensor(values[:, None, None].contiguous()), keops.LazyTensor(values[None, :, None].contiguous())

    def run() -> Answer:
        gap = (p - q).abs()
        distance = ((x - y) ** 2).sum(-1).sqrt()
        key = (distance - gap).relu() + gap  # the maximum of the two
        return Answer(key.Kmin(k + 1, dim=1)[:, -1])

    return run


def _flashlib(states: Tensor, values: Tensor, k: int) -> Solver:
    knn = module("flashlib.primitives.knn", "flashlib").flash_knn
    if states.dtype != torch.float32:
        raise Unavailable("float32 only")

    def run() -> Answer:
        squared, indices = knn(states, states, k + 1)
        # In the order of a score from tensor cores, which need not be that of the distances: hence the maximum. The
        # distances are sums of squares, taken anew, and not negative.
        return Answer(squared.amax(-1).sqrt(), indices=indices)

    return run


def module(name: str, package: str) -> Any:
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

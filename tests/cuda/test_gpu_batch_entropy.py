"""The bonus of a training batch on a GPU against the CPU: the same moments, rows and radii, in every way to call it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import astuple

import numpy as np
import pytest
import torch
from gpu_device import DEVICE
from torch import Tensor

from qcse_ext import _C
from qcse_ext.bonus import batch_entropy

pytestmark = pytest.mark.cuda
PROBLEMS = int(os.environ.get("QCSE_CUDA_PROBLEMS", "300"))
CALL = torch.ops.qcse.batch_entropy
Arguments = list[Tensor | int | float | bool]


def drawn(seed: int, rows: int = 256, dim: int = 17, seeds: int = 3, dtype: torch.dtype = torch.float32) -> Arguments:
    """A batch with duplicates, rows that are not eligible and one that is not finite; half of its moments are new."""
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(rows, (seeds, rows), generator=g)
    states = torch.randn(seeds, rows, dim, generator=g).take_along_dim(index[..., None], 1)
    values = torch.randn(seeds, rows, generator=g).take_along_dim(index, 1)
    states[:, 3, 0] = torch.nan
    eligible = torch.rand(seeds, rows, generator=g) < 0.7
    moments = torch.zeros(seeds, dim + 1), torch.ones(seeds, dim + 1), torch.arange(seeds).float()
    floats = [x.to(dtype) for x in (states, values, *moments)]
    return [*floats[:2], index, eligible, *floats[2:], min(12, rows), True, True, 50.0, dim**0.5, 1e-5]


def on(device: str, arguments: Arguments) -> Arguments:
    """Copies: a call changes the moments in place."""
    return [x.clone().to(device) if isinstance(x, Tensor) else x for x in arguments]


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str = "") -> None:
    """Everything in bits but for the entropies, whose logarithms come from another library."""
    entropy, wanted = got[0].cpu(), expected[0]
    tolerance = 4 * torch.finfo(wanted.dtype).eps
    assert torch.allclose(entropy, wanted, rtol=tolerance, atol=tolerance), what
    for name, a, b in zip(("covered", "statistics", "mean", "variance", "batches"), got[1:], expected[1:], strict=True):
        assert torch.equal(a.cpu(), b), f"{name}: {what}"


def run(arguments: Arguments) -> tuple[Tensor, ...]:
    return (*CALL(*arguments), *arguments[4:7])


def check(arguments: Arguments, what: str = "") -> None:
    assert_same(run(on(DEVICE, arguments)), run(on("cpu", arguments)), what)


def of_batch(b: object) -> Arguments:
    """A problem of the emulator's tests."""
    *arrays, k, count_self, learn, horizon, divisor = astuple(b)
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    return [*tensors, k, count_self, learn, horizon, divisor, 1e-5]


@pytest.mark.parametrize("seed", range(PROBLEMS))
def test_random_batch(seed: int) -> None:
    from problems_bonus import draw

    b, _, what = draw(seed, largest=500)
    check(of_batch(b), what)


def test_directed_batch() -> None:
    from problems_bonus import directed

    for what, b in directed():
        check(of_batch(b), what)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "dim", "seeds"),
    [(0, 3, 2), (1, 1, 1), (256, 17, 1), (256, 17, 16), (512, 111, 4), (128, 1024, 2), (4096, 17, 2), (4097, 17, 2)],
)
def test_size(rows: int, dim: int, seeds: int, dtype: torch.dtype) -> None:
    if rows == 0:
        empty = drawn(0, 4, dim, seeds, dtype)
        return check([x[:, :0] if i < 4 and isinstance(x, Tensor) else x for i, x in enumerate(empty)])
    arguments = drawn(rows + dim, max(rows, 4), dim, seeds, dtype)
    check([x[:, :rows] if i < 4 and isinstance(x, Tensor) else x for i, x in enumerate(arguments)])


def test_many_rows() -> None:
    check(drawn(1, 30_000, 5, 1))


@pytest.mark.parametrize("path", ["large", "screened"])
def test_every_search(path: str) -> None:
    if DEVICE == "cpu":
        return check(drawn(2))
    _C.set_cuda_path(path)
    try:
        check(drawn(2))
    finally:
        _C.set_cuda_path("auto")


def test_the_function_takes_the_kernel() -> None:
    """Views of a larger batch, and a call under torch.compile's and autograd's eyes."""
    arguments = on(DEVICE, drawn(3, rows=300))
    arguments[0].requires_grad_()
    halves = [x[:, ::2] if i < 4 else x for i, x in enumerate(arguments)]
    expected = on("cpu", halves)
    got = batch_entropy(*halves)
    assert not got[0].requires_grad
    assert_same((*got, *(x.detach() for x in halves[4:7])), run([x.detach() if isinstance(x, Tensor) else x
                                                                 for x in expected]))  # fmt: skip


@pytest.mark.skipif(DEVICE == "cpu", reason="a graph is the GPU's")
@pytest.mark.parametrize("rows", [256, 5000])
def test_graph_replay_with_changed_inputs(rows: int) -> None:
    """The number of distinct transitions differs from one replay to the next, and the moments go on."""
    arguments, host = on("cuda", drawn(4, rows)), on("cpu", drawn(4, rows))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            CALL(*arguments)
            CALL(*host)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = CALL(*arguments)
    for seed in range(1, 5):
        fresh = drawn(10 + seed, rows)
        fresh[2] //= seed
        for to, x in zip(arguments[:4], fresh[:4], strict=True):
            to.copy_(x)
        graph.replay()
        torch.cuda.synchronize()
        host[:4] = fresh[:4]
        assert_same((*answer, *arguments[4:7]), run(host), f"replay {seed}")


@pytest.mark.skipif(DEVICE == "cpu", reason="a graph is the GPU's")
def test_first_call_inside_a_capture() -> None:
    """In a fresh process no kernel has been loaded yet; loading one must not end the capture."""
    code = """
import sys, torch, qcse_ext.bonus
sys.path[:0] = sys.argv[1:]
from test_gpu_batch_entropy import CALL, assert_same, drawn, on, run
arguments = on("cuda", drawn(5))
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    answer = CALL(*arguments)
graph.replay()
torch.cuda.synchronize()
assert_same((*answer, *arguments[4:7]), run(drawn(5)))
"""
    subprocess.run([sys.executable, "-P", "-c", code, os.path.dirname(__file__)], check=True)


@pytest.mark.skipif(DEVICE == "cpu", reason="of a GPU's memory")
def test_repeated_calls_leave_memory_as_it_was() -> None:
    arguments = on("cuda", drawn(6))
    for _ in range(10):
        CALL(*arguments)
    torch.cuda.synchronize()
    allocated = torch.cuda.memory_allocated()
    for _ in range(2000):
        CALL(*arguments)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == allocated

"""The operator on a GPU against the operator on the CPU: the same bits, in every way that torch can call it."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gpu_device import DEVICE
from torch import Tensor

import qcse_ext
from qcse_ext import _C

pytestmark = pytest.mark.cuda
PROBLEMS = int(os.environ.get("QCSE_CUDA_PROBLEMS", "300"))
KNN = torch.ops.qcse.knn
ENTROPY = torch.ops.qcse.entropy


def on(device: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], what: str = "") -> None:
    """Bits, except that NaNs compare by position."""
    radius, count = got[0].cpu(), got[1].cpu()
    assert torch.equal(radius.isnan(), expected[0].isnan()), what
    assert torch.equal(radius.nan_to_num(nan=-1.0), expected[0].nan_to_num(nan=-1.0)), what
    assert torch.equal(count, expected[1]), what


def check(arguments: tuple[Any, ...], what: str = "") -> None:
    expected = KNN(*arguments)
    assert_same(KNN(*on(DEVICE, arguments)), expected, what)
    entropy = ENTROPY(*arguments)
    got = ENTROPY(*on(DEVICE, arguments)).cpu()
    tolerance = 4 * torch.finfo(entropy.dtype).eps
    assert torch.allclose(got, entropy, rtol=tolerance, atol=tolerance, equal_nan=True), what


def normal(*shape: int, seed: int = 0, k: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    return states, torch.randn(*shape[:-1], generator=generator, dtype=torch.float64).to(dtype), k


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Has the named kernel used, whatever the shape."""
    if DEVICE == "cpu":  # a rehearsal
        yield
        return
    _C.set_cuda_path(request.param)
    yield
    _C.set_cuda_path("auto")


every_kernel = pytest.mark.parametrize("kernel", ["auto", "large", "screened"], indirect=True)


@every_kernel
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("seed", range(PROBLEMS))
def test_random_problem(seed: int) -> None:
    from problems import draw

    problem, _, what = draw(seed, largest=400)
    parts = [problem.ref_states, problem.ref_values, problem.self_index]
    tensors = [None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for a in parts]
    check((torch.from_numpy(problem.states), torch.from_numpy(problem.values), problem.k, *tensors), what)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "dim", "k"),
    [(256, 17, 12), (1024, 17, 12), (4096, 17, 12), (4096, 111, 100), (4097, 17, 12), (20000, 29, 50), (300, 1024, 5)],
)
def test_size(n: int, dim: int, k: int, dtype: torch.dtype) -> None:
    check(normal(n, dim, k=k, dtype=dtype))


@pytest.mark.parametrize(("queries", "references"), [(256, 4096), (256, 30000), (5000, 300), (1, 10000)])
def test_separate_references(queries: int, references: int) -> None:
    states, values, k = normal(queries, 11)
    ref_states, ref_values, _ = normal(references, 11, seed=1)
    check((states, values, k, ref_states, ref_values, None))
    common = min(queries, references)
    ref_states[:common], ref_values[:common] = states[:common], values[:common]
    check((states, values, k, ref_states, ref_values, torch.arange(queries) % references))


@pytest.mark.parametrize("n", [256, 5000])
def test_batch_of_seeds(n: int) -> None:
    check(normal(6, n, 17))


@every_kernel
@pytest.mark.usefixtures("kernel")
def test_directed_problem() -> None:
    from problems import directed

    for what, problem in directed():
        parts = [problem.ref_states, problem.ref_values, problem.self_index]
        tensors = [None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for a in parts]
        check((torch.from_numpy(problem.states), torch.from_numpy(problem.values), problem.k, *tensors), what)


@every_kernel
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_values_that_prune_and_values_that_do_not(scale: float) -> None:
    states, values, k = normal(6000, 8)
    check((states, values * scale, k))
    check((states * scale, values, k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    check(normal(500, 17, dtype=dtype))


def test_strides_and_offsets() -> None:
    states, values, k = normal(601, 36)
    check((states[1:, 1::2], values[1:], k))
    check((states[1:, 1:18].contiguous(), values[1:], k))


@pytest.mark.parametrize("n", [256, 4096, 9000])
def test_graph_replay_with_changed_inputs(n: int) -> None:
    states, values, k = on("cuda", normal(n, 17))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            KNN(states, values, k)
            ENTROPY(states, values, k)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = KNN(states, values, k)
        entropy = ENTROPY(states, values, k)
    for seed in range(1, 4):
        fresh = normal(n, 17, seed=seed)
        states.copy_(fresh[0])
        values.copy_(fresh[1])
        graph.replay()
        torch.cuda.synchronize()
        assert_same(answer, KNN(*fresh), f"replay {seed}")
        assert torch.allclose(entropy.cpu(), ENTROPY(*fresh), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [256, 9000])
def test_first_call_inside_a_capture(n: int) -> None:
    """In a fresh process no kernel has been loaded yet; loading one must not end the capture."""
    code = f"""
import torch, qcse_ext
generator = torch.Generator().manual_seed(0)
states, values = torch.randn({n}, 17, generator=generator), torch.randn({n}, generator=generator)
on_gpu = states.cuda(), values.cuda()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    radius, count = qcse_ext.knn(*on_gpu, 12)
graph.replay()
expected = qcse_ext.knn(states, values, 12)
assert torch.equal(radius.cpu(), expected[0]) and torch.equal(count.cpu(), expected[1])
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize("n", [512, 6000])
def test_side_stream(n: int) -> None:
    arguments = normal(n, 17)
    expected = KNN(*arguments)
    stream = torch.cuda.Stream()
    for _ in range(20):
        with torch.cuda.stream(stream):
            states = arguments[0].pin_memory().cuda(non_blocking=True)
            # Slow work ahead of the inputs: an operator on another stream would read them too early.
            late = torch.empty_like(states)
            torch.cuda._sleep(2_000_000)
            late.copy_(states)
            got = KNN(late, arguments[1].cuda(), 12)
        stream.synchronize()
        assert_same(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device() -> None:
    arguments = normal(700, 17)
    with torch.cuda.device(0):
        got = KNN(*on("cuda:1", arguments))
        assert got[0].device == torch.device("cuda:1")
        assert torch.cuda.current_device() == 0
    assert_same(got, KNN(*arguments))


def test_compile_reduce_overhead() -> None:
    @torch.compile(mode="reduce-overhead", fullgraph=True)
    def bonus(states: Tensor, values: Tensor) -> Tensor:
        return torch.tanh(qcse_ext.entropy(2 * states, values, 12))

    for seed in range(5):
        states, values, k = normal(256, 17, seed=seed)
        expected = torch.tanh(ENTROPY(2 * states, values, k))
        assert torch.allclose(bonus(states.cuda(), values.cuda()).cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "calls"), [(256, 10_000), (5000, 500)])
def test_repeated_calls_leave_memory_as_it_was(n: int, calls: int) -> None:
    arguments = on("cuda", normal(n, 17))
    for _ in range(10):
        KNN(*arguments)
    torch.cuda.synchronize()
    allocated, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(calls):
        KNN(*arguments)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == allocated
    assert free - torch.cuda.mem_get_info()[0] < 16 << 20


def test_memory_grows_with_the_points_and_not_with_the_pairs() -> None:
    n, dim = 200_000, 17
    states, values = torch.randn(n, dim, device="cuda"), torch.randn(n, device="cuda") * 1000
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    qcse_ext.knn(states, values, 12)
    assert torch.cuda.max_memory_allocated() - before < 8 * states.nbytes


def test_fewer_finite_candidates_than_k() -> None:
    states, values, _ = normal(5000, 3)
    values[8:] = math.nan
    check((states, values, 8))
    check((states, values, 7))

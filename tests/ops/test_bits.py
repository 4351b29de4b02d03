"""The kernels against the bit oracle: radius and count, for every instruction set, search path and thread count.

QCSE_TEST_PROBLEMS sets how many random problems are drawn (default 2000).
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from oracle import (
    INSTRUCTION_SETS,
    KINDS,
    SEARCH_PATHS,
    Problem,
    assert_equals_oracle,
    draw_points,
    draw_problem,
    oracle_knn,
    same_bits,
)

from qcse_ext import _C, reference

PROBLEMS = int(os.environ.get("QCSE_TEST_PROBLEMS", "2000"))
SHARES = 20


@pytest.fixture(autouse=True)
def restore_choices() -> Iterator[None]:
    threads = torch.get_num_threads()
    _C.set_work_per_thread(1)
    yield
    torch.set_num_threads(threads)
    _C.set_work_per_thread(0)
    _C.set_instruction_set("")
    _C.set_search_path("auto")


@pytest.mark.parametrize("share", range(SHARES))
def test_random_problems(share: int) -> None:
    for seed in range(share, PROBLEMS, SHARES):
        problem = draw_problem(seed)
        expected = oracle_knn(problem)
        for turn, threads in enumerate((1, 2, 7)):
            # All combinations come round; the best instruction set comes with every problem.
            name = INSTRUCTION_SETS[-1] if turn == 0 else INSTRUCTION_SETS[(seed // 3 + turn) % len(INSTRUCTION_SETS)]
            path = SEARCH_PATHS[(seed + turn) % len(SEARCH_PATHS)]
            torch.set_num_threads(threads)
            _C.set_instruction_set(name)
            _C.set_search_path(path)
            assert_equals_oracle(problem, f"{name}, path {path}, {threads} threads", expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_data(kind: str, dtype: torch.dtype) -> None:
    """Larger problems, in which every rule that skips pairs gets to work, on data made to mislead it."""
    for n, dim, k in ((1500, 3, 12), (1100, 17, 5), (900, 40, 33)):
        rng = np.random.default_rng([n, dim, KINDS.index(kind)])
        s, q = draw_points(rng, kind, n, dim)
        problem = Problem(torch.from_numpy(s).to(dtype), torch.from_numpy(q).to(dtype), k, origin=f"{kind} {n} x {dim}")
        expected = oracle_knn(problem)
        for name in INSTRUCTION_SETS:
            if name == "portable" and n > 1000:
                continue
            for path in SEARCH_PATHS:
                for threads in (1, 2, 5):
                    torch.set_num_threads(threads)
                    _C.set_instruction_set(name)
                    _C.set_search_path(path)
                    assert_equals_oracle(problem, f"{name}, path {path}, {threads} threads", expected)


@pytest.mark.parametrize("kind", KINDS)
def test_problems_that_are_worth_a_choice(kind: str) -> None:
    """So many points that the path is chosen from a sample, and more tiles than the screen's first kernel takes."""
    for dtype, n, ks in ((torch.float32, 4500, (1, 12, 100)), (torch.float64, 6000, (12,))):
        rng = np.random.default_rng([n, KINDS.index(kind)])
        s, q = draw_points(rng, kind, n, 9)
        states, values = torch.from_numpy(s).to(dtype), torch.from_numpy(q).to(dtype)
        for k in ks:
            problem = Problem(states, values, k, origin=f"{kind} {n} {dtype}, k = {k}")
            expected = oracle_knn(problem)
            for path in ("screen", "auto"):
                _C.set_search_path(path)
                assert_equals_oracle(problem, path, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_widest_states_and_repeated_ones(dtype: torch.dtype) -> None:
    """1024 dimensions, and a row that is there 300 times, so that radii are 0 and nothing can be nearer."""
    rng = np.random.default_rng(7)
    for n, dim in ((600, 1024), (5000, 5)):
        s, q = draw_points(rng, "normal", n, dim)
        s[:300], q[:300] = s[0], q[0]
        problem = Problem(torch.from_numpy(s).to(dtype), torch.from_numpy(q).to(dtype), 12, origin=f"{n} x {dim}")
        expected = oracle_knn(problem)
        for path in SEARCH_PATHS:
            _C.set_search_path(path)
            assert_equals_oracle(problem, path, expected)


def test_few_queries_against_many_references() -> None:
    rng = np.random.default_rng(5)
    s, q = draw_points(rng, "trajectory", 20_000, 11)
    rows = torch.from_numpy(rng.permutation(20_000)[:100])
    for dtype in (torch.float32, torch.float64):
        states, values = torch.from_numpy(s).to(dtype), torch.from_numpy(q).to(dtype)
        problem = Problem(states[rows], values[rows], 10, states, values, rows, origin=f"buffer {dtype}")
        expected = oracle_knn(problem)
        for path in SEARCH_PATHS:
            _C.set_search_path(path)
            assert_equals_oracle(problem, path, expected)


@pytest.mark.parametrize("k", [1, 12, 100])
def test_references_that_are_packed_tile_by_tile(k: int) -> None:
    """Over a mebibyte of them; more queries than one pass takes; queries that are references, or not finite."""
    rng = np.random.default_rng(6)
    s, q = draw_points(rng, "normal", 12_001, 24)
    s[rng.integers(0, 12_001, 50), 3] = np.nan
    rows = torch.from_numpy(rng.integers(0, 12_001, 800))
    rows[::5] = -1
    states, values = torch.from_numpy(s).float(), torch.from_numpy(q).float()
    queries, query_values = states[rows], values[rows]
    for few in (3, 191, 800):
        problem = Problem(queries[:few], query_values[:few], k, states, values, rows[:few], origin=f"{few} queries")
        expected = oracle_knn(problem)
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            for name in INSTRUCTION_SETS[-1:] if few == 800 else INSTRUCTION_SETS:
                _C.set_instruction_set(name)
                for path in ("auto", "all"):
                    _C.set_search_path(path)
                    assert_equals_oracle(problem, f"{name}, path {path}, {threads} threads", expected)


def test_few_queries_do_not_copy_the_references() -> None:
    """Peak memory of a process of its own, above that of the inputs."""
    code = """
import resource, torch, qcse_ext
from qcse_ext import _C
_C.set_work_per_thread(1)
torch.set_num_threads(2)
states, values = torch.rand(400_000, 256), torch.rand(400_000)
qcse_ext.knn(states[:3], values[:3], 5, states[:50], values[:50])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
radius, _ = qcse_ext.knn(states[:3].clone(), values[:3].clone(), 5, states, values)
assert radius.isfinite().all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40, f"{done.stdout.strip()} MiB beside 390 MiB of references"


def test_reference_module_has_the_oracles_bits() -> None:
    """The plain-torch definition is exact in float32: fma and square root are rounded correctly."""
    drawn = 0
    for seed in range(400):
        problem = draw_problem(seed)
        if problem.states.dtype == torch.float64 or problem.states.numel() > 20_000:
            continue
        radius, count = reference.knn(*problem.args())
        expected_radius, expected_count = oracle_knn(problem)
        assert same_bits(radius, expected_radius), problem.origin
        assert torch.equal(count, expected_count), problem.origin
        drawn += 1
    assert drawn > 200


def test_float64_reference_is_close() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(200, 9, dtype=torch.float64, generator=generator)
    values = torch.randn(200, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(
        reference.knn(states, values, 5)[0], oracle_knn(Problem(states, values, 5))[0], rtol=1e-14, atol=0
    )

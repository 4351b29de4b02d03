"""The kernels of csrc/bonus/cuda under the emulator against the CPU's kernel, bit for bit."""

import os
from dataclasses import fields

import numpy as np
import pytest
from emulated import Emulator, EmulatorError, same_bits
from emulated_bonus import Batch, Bonus, batch_entropy, cpu_batch_entropy
from problems_bonus import directed, draw, normal

PROBLEMS = int(os.environ.get("QCSE_EMULATED_PROBLEMS", "60"))
FIRST = int(os.environ.get("QCSE_EMULATED_FIRST", "0"))
every_path = pytest.mark.parametrize("path", ["small", "large", "screened"])


def check(emulator: Emulator, b: Batch, path: str = "auto", tables: str = "auto", what: str = "") -> Bonus:
    got, expected = batch_entropy(emulator, b, path, tables), cpu_batch_entropy(emulator, b)
    for f in fields(expected):
        one, two = getattr(got, f.name), getattr(expected, f.name)
        same = np.array_equal(one, two) if one.dtype == bool else same_bits(one, two)
        assert same, f"{f.name}: {what}\n{one}\n{two}"
    return got


@pytest.mark.parametrize("seed", range(FIRST, FIRST + PROBLEMS))
def test_random_batch(emulator: Emulator, seed: int) -> None:
    b, device, what = draw(seed)
    emulator.configure(seed=seed % 97, **device)
    check(emulator, b, ("small", "large", "screened", "auto")[seed % 4], ("shared", "workspace")[seed // 4 % 2], what)


@pytest.mark.parametrize("tables", ["shared", "workspace"])
@pytest.mark.parametrize(("what", "b"), directed(), ids=lambda x: x if isinstance(x, str) else "")
def test_directed_batch(emulator: Emulator, what: str, b: Batch, tables: str) -> None:
    for seed in (0, 1, 2):
        emulator.configure(seed=seed, checks=seed == 2 or b.states.shape[1] < 300)
        check(emulator, b, tables=tables, what=what)


def test_what_a_batch_means(emulator: Emulator) -> None:
    """The oracle is not wrong in the same way: a few facts that need none."""
    b = normal(5, 40, 2, 5)
    b.index %= 6
    got = check(emulator, b)
    assert got.covered.all() and (got.batches == 1).all() and got.statistics[1, 0] == 1
    np.testing.assert_allclose(got.mean[0, :2], b.states[0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(got.variance[0, 2], b.values[0].var(), rtol=1e-5)
    for i in range(6):
        assert len(set(got.entropy[0, b.index[0] == i])) == 1
    b.k = 6
    got = check(emulator, b)
    assert not got.covered.any() and not got.entropy.any() and not got.statistics.any()


@every_path
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "dim", "k"), [(1, 1, 1), (2, 3, 1), (60, 111, 12), (130, 17, 128), (9, 130, 5)])
def test_shape(emulator: Emulator, n: int, dim: int, k: int, dtype: type, path: str) -> None:
    emulator.configure(seed=3)
    check(emulator, normal(n, n, dim, k, dtype, seeds=2), path, what=f"rows {n} dim {dim} k {k}")


def test_as_many_dimensions_as_there_may_be(emulator: Emulator) -> None:
    check(emulator, normal(1, 9, 1024, 5))


@pytest.mark.parametrize("learn", [False, True])
def test_a_batch_without_rows(emulator: Emulator, learn: bool) -> None:
    b = normal(1, 0, 4, 2, seeds=2)
    b.learn = learn
    got = check(emulator, b)
    assert not got.statistics.any() and (got.batches == 0).all()


@pytest.mark.parametrize("seed", range(12))
def test_the_schedule_does_not_matter(emulator: Emulator, seed: int) -> None:
    emulator.configure(seed=seed, multiprocessors=1 + seed % 3 * 15)
    for tables in ("shared", "workspace"):
        check(emulator, normal(9, 90, 26, 6, seeds=2, known=40), tables=tables, what=f"schedule {seed}")


def test_moments_over_several_batches(emulator: Emulator) -> None:
    b = normal(12, 40, 6, 3, seeds=2)
    for seed in range(4):
        fresh = normal(20 + seed, 40, 6, 3, seeds=2, known=25)
        b.states, b.values, b.index = fresh.states, fresh.values, fresh.index
        got = check(emulator, b)
        b.mean, b.variance, b.batches = got.mean, got.variance, got.batches
    assert (b.batches == 4).all()


def test_tables_that_are_too_large_for_shared_memory(emulator: Emulator) -> None:
    """By the shape alone; a search among so many takes long to emulate, so few rows are eligible."""
    b = normal(13, 4097, 1, 1)
    b.eligible[0, 40:-40] = False
    emulator.configure(seed=1, checks=False)
    check(emulator, b)


def test_a_launch_that_fails_names_the_kernel_and_the_reason(emulator: Emulator) -> None:
    emulator.configure(shared_bytes=20 * 1024)
    with pytest.raises(EmulatorError, match="batch_prepare_kernel: invalid argument"):
        batch_entropy(emulator, normal(0, 4000, 2, 1))

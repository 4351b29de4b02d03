"""The random operators and the gather on a CPU: published vectors, bits of the definition, statistics, errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from qcse_ext import random as random_module
from qcse_ext.random import random, random_in_torch, random_rows, random_rows_in_torch
from qcse_ext.transitions import gather_transitions, gather_transitions_in_torch


def stream(*keys: int, counter: int = 0) -> tuple[Tensor, Tensor]:
    return torch.tensor(keys), torch.full((len(keys),), counter)


# The known answer of Random123 (Salmon et al.) for philox4x32-10 with counter and key 0.
ZERO = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_known_answer() -> None:
    assert random_module._take(*stream(0), 1)[0, 0].tolist() == ZERO
    numbers = random(*stream(0), [("unit", 4)])[0][0]
    assert numbers.tolist() == [(word >> 8) / 2**24 for word in ZERO]
    high = 2**31 - 1
    expected = [(ZERO[i] + (ZERO[i + 1] << 32)) * high >> 64 for i in (0, 2)]
    assert random_rows(*stream(0), 2, high, 0)[0].tolist() == expected


def python_philox(counter: list[int], key: list[int]) -> list[int]:
    """Another implementation, with Python's integers."""
    mask = 2**32 - 1
    for _ in range(10):
        p, q = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [q >> 32 ^ counter[1] ^ key[0], q & mask, p >> 32 ^ counter[3] ^ key[1], p & mask]
        key = [key[0] + 0x9E3779B9 & mask, key[1] + 0xBB67AE85 & mask]
    return counter


def test_every_bit_of_key_and_counter_counts() -> None:
    full = [0xFFFFFFFF] * 4
    assert python_philox(full, full[:2]) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]  # Random123's
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert python_philox(pi, [0xA4093822, 0x299F31D0]) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    rng = np.random.default_rng(0)
    for _ in range(20):
        key, block = int(rng.integers(-(1 << 63), (1 << 63) - 1)), int(rng.integers(1 << 47))
        expected = python_philox([block & 0xFFFFFFFF, block >> 32, 0, 0], [key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF])
        assert random_module._take(*stream(key, counter=block), 1)[0, 0].tolist() == expected
        drawn = random(*stream(key, counter=block), [("unit", 4)])[0][0]
        assert drawn.tolist() == [(word >> 8) / 2**24 for word in expected]


SEGMENTS = [[(law, count)] for law in random_module.LAWS for count in (1, 3, 4, 31, 32, 33, 1000, 5001)]
SEGMENTS.append([("normal", 5), ("unit", 1), ("symmetric", 7), ("normal", 1024), ("unit", 6)])


@pytest.mark.parametrize("segments", SEGMENTS, ids=str)
@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_the_kernel_has_the_definitions_bits(segments: list[tuple[str, int]], seeds: int, threads: int) -> None:
    keys = torch.arange(seeds) * 7919 - 3
    counters, other = (torch.full((seeds,), 2**32 - 2) for _ in range(2))
    for _ in range(2):
        got, expected = random(keys, counters, segments), random_in_torch(keys, other, segments)
        assert all(a.is_contiguous() and torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert torch.equal(counters, other)


@pytest.mark.parametrize("held", [9, torch.tensor(9.0, dtype=torch.float64)], ids=["number", "tensor"])
@pytest.mark.parametrize("leading", [None, 0, 5, 33])
def test_rows_have_the_definitions_bits(held: int | Tensor, leading: int | None) -> None:
    keys = torch.arange(3) + 2**62
    counters, other = torch.arange(3), torch.arange(3)
    for _ in range(2):
        rows = random_rows(keys, counters, 33, 100, held, leading)
        assert torch.equal(rows, random_rows_in_torch(keys, other, 33, 100, held, leading))
        assert torch.equal(counters, other)
        head, tail = rows[:, : leading or 0], rows[:, leading or 0 :]
        assert (head < 100).all() and (tail < 109).all() and (rows >= 0).all()
        assert leading is None or (tail >= 100).all()


def test_a_seed_draws_the_same_beside_others() -> None:
    segments = [("normal", 77), ("unit", 10)]
    together = random(*stream(5, 6, 7), segments)
    for s, key in enumerate((5, 6, 7)):
        assert all(torch.equal(a[s], b[0]) for a, b in zip(together, random(*stream(key), segments), strict=True))
    rows = random_rows(*stream(5, 6), 9, 50, 3, 4)
    assert torch.equal(rows[1:], random_rows(*stream(6), 9, 50, 3, 4))


def test_normal_numbers_are_the_exact_transform() -> None:
    keys, counters = stream(1, 2)
    bits = random_module._take(keys, counters.clone(), 200_000).numpy()
    got = random(keys, counters, [("normal", 800_000)])[0].view(2, -1, 4).numpy()
    u = (bits[..., ::2] >> 1).astype(np.float32) * np.float32(2.0**-31) + np.float32(2.0**-32)
    radius, angle = np.sqrt(-2 * np.log(u.astype(np.float64))), 2 * np.pi * (bits[..., 1::2] / 2.0**32)
    exact = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(got.shape)
    away = np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))
    # float64 itself errs in a sine or cosine by 1e-16, which counts where that is hardly more than 0
    assert away[np.abs(exact) > 1e-6].max() < 5


@pytest.mark.parametrize("law", list(random_module.LAWS))
def test_law(law: str) -> None:
    numbers = random(*stream(*range(8)), [(law, 50_001)])[0].double()
    exact = {"normal": stats.norm(), "unit": stats.uniform(), "symmetric": stats.uniform(-1, 2)}[law]
    count = numbers.numel()
    assert stats.kstest(numbers.flatten().numpy(), exact.cdf).pvalue > 1e-3
    mean, variance = (float(x) for x in exact.stats())
    assert abs(numbers.mean() - mean) < 4 * (variance / count) ** 0.5
    assert abs(numbers.var() - variance) < 4 * variance * (2 / count) ** 0.5
    # neither seeds, nor neighbours, nor the numbers of one block after the other hang together
    assert (torch.corrcoef(numbers) - torch.eye(8, dtype=torch.float64)).abs().max() < 5 / 50_001**0.5
    for lag in (1, 2, 3, 4, 5, 8):
        pairs = torch.stack([numbers[:, lag:].flatten(), numbers[:, :-lag].flatten()])
        assert abs(torch.corrcoef(pairs)[0, 1]) < 4 / count**0.5, lag
        pairs = pairs.square()
        assert abs(torch.corrcoef(pairs)[0, 1]) < 4 / count**0.5, lag


def test_rows_are_uniform() -> None:
    counts = random_rows(*stream(3), 200_000, 90, 10)[0].bincount(minlength=100)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert set(random_rows(*stream(3), 300, 1, 2)[0].tolist()) == {0, 1, 2}


NUMBERS, KEYS = [("unit", 4)], torch.arange(2)
ERRORS: list[tuple[Callable[[], object], str]] = [
    (lambda: random(KEYS.view(1, 2), KEYS.clone(), NUMBERS), "keys must have shape \\[S\\]"),
    (lambda: random(KEYS[:0], KEYS[:0], NUMBERS), "keys must .* not be empty"),
    (lambda: random(KEYS.int(), KEYS.clone(), NUMBERS), "keys must .*be int64"),
    (lambda: random(KEYS, torch.zeros(3, dtype=torch.int64), NUMBERS), "counters must have shape \\[2\\]"),
    (lambda: random(KEYS, torch.zeros(2), NUMBERS), "counters must .*int64.* got float32"),
    (lambda: random(KEYS, KEYS.clone(), []), "expected 1 to 16"),
    (lambda: random(KEYS, KEYS.clone(), NUMBERS * 17), "expected 1 to 16"),
    (lambda: random(KEYS, KEYS.clone(), [("unit", 0)]), "a count must be at least 1, got 0"),
    (lambda: random_rows(KEYS, KEYS.clone(), 0, 5, 5), "count must be at least 1, got 0"),
    (lambda: random_rows(KEYS, KEYS.clone(), 4, 5, 5, 6), "leading must be from 0 to count \\(4\\), got 6"),
    (lambda: random_rows(KEYS, KEYS.clone(), 4, -1, 5), "from 0 on, and at most 2147483647"),
    (lambda: random_rows(KEYS, KEYS.clone(), 4, 2**31 - 1, 1), "from 0 on, and at most 2147483647"),
    (lambda: random_rows(KEYS, KEYS.clone(), 4, 0, 0), "no rows to draw from"),
    (lambda: random_rows(KEYS, KEYS.clone(), 4, 0, 3, 2), "no rows to draw from"),
    (lambda: random_rows(KEYS, KEYS.clone(), 4, 3, 0, 2), "no rows to draw from"),
    (lambda: random_rows(KEYS, KEYS.clone(), 4, 3, torch.zeros(())), "must .*float64"),
]


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_error(number: int, kernels: bool, without_kernels: Callable[[], None]) -> None:
    if not kernels:
        without_kernels()
    call, message = ERRORS[number]
    with pytest.raises(RuntimeError, match=message):
        call()


def test_counters_that_are_not_contiguous_and_unknown_laws() -> None:
    with pytest.raises(RuntimeError, match="counters are changed in place"):
        random(KEYS, torch.zeros(4, dtype=torch.int64)[::2], NUMBERS)
    with pytest.raises(KeyError, match="cauchy"):
        random(KEYS, KEYS.clone(), [("cauchy", 1)])


def test_opcheck() -> None:
    ops = torch.ops.qcse
    torch.library.opcheck(
        ops.random, (KEYS, KEYS.clone(), [0, 1], [6, 8])
    )  # no gap between segments, which is left as it is
    torch.library.opcheck(ops.random_rows, (KEYS, KEYS.clone(), 5, 10, 3, None, 2))
    held = torch.tensor(3.0, dtype=torch.float64)
    torch.library.opcheck(ops.random_rows, (KEYS, KEYS.clone(), 5, 10, 0, held, None))
    torch.library.opcheck(ops.gather_transitions, transitions(2, 5, 4, 3))


def test_meta_and_compiled() -> None:
    keys = torch.empty(3, dtype=torch.int64, device="meta")
    shapes = [tuple(x.shape) for x in random(keys, keys, [("normal", 5), ("unit", 2)])]
    assert shapes == [(3, 5), (3, 2)] and random_rows(keys, keys, 7, 5, 0).shape == (3, 7)
    with pytest.raises(RuntimeError, match="counters is on cpu, but keys on meta"):
        torch.ops.qcse.random(keys, torch.zeros(3, dtype=torch.int64), [0], [4])

    def both(keys: Tensor, counters: Tensor) -> tuple[Tensor, Tensor]:
        return random(keys, counters, [("normal", 6), ("unit", 3)])[0], random_rows(keys, counters, 4, 9, 1)

    counters = KEYS.clone(), KEYS.clone()
    got = torch.compile(both, fullgraph=True, backend="aot_eager")(KEYS, counters[0])
    assert all(torch.equal(a, b) for a, b in zip(got, both(KEYS, counters[1]), strict=True))
    assert torch.equal(*counters)


# --- The gather -------------------------------------------------------------------------------------------------------


def transitions(seeds: int, rows: int, size: int, capacity: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    g = torch.Generator().manual_seed(seeds + rows)
    shapes = ((4,), (2,), (), (4,), ())
    dataset = [torch.randn(size, *shape, generator=g) for shape in shapes]
    online = [torch.randn(seeds, capacity, *shape, generator=g) for shape in shapes]
    return dataset, online, torch.randint(size + capacity, (seeds, rows), generator=g)


@pytest.mark.parametrize(
    ("seeds", "rows", "size", "capacity"),
    [(1, 1, 3, 1), (2, 300, 50, 20), (3, 64, 0, 5), (2, 9, 5, 1), (5, 400, 1, 1), (1, 0, 5, 4)],
)
def test_gathered_are_the_definitions(seeds: int, rows: int, size: int, capacity: int, threads: int) -> None:
    problem = transitions(seeds, rows, size, capacity)
    (columns, online), (expected, mask) = gather_transitions(*problem), gather_transitions_in_torch(*problem)
    assert all(torch.equal(a, b) for a, b in zip(columns, expected, strict=True)) and torch.equal(online, mask)
    index = problem[2]
    for s in range(seeds):
        for b in range(0, rows, 37):
            i = int(index[s, b])
            row = problem[0][0][i] if i < size else problem[1][0][s, i - size]
            assert torch.equal(columns[0][s, b], row) and bool(online[s, b]) == (i >= size)


def test_gather_of_other_dtypes_and_of_views_of_the_index() -> None:
    dataset, online, index = transitions(2, 40, 6, 3)
    doubled = [[x.double() for x in xs] for xs in (dataset, online)]
    columns, _ = gather_transitions(*doubled, index)
    expected, _ = gather_transitions(dataset, online, index)
    assert all(torch.equal(a, b.double()) for a, b in zip(columns, expected, strict=True))
    half, _ = gather_transitions(dataset, online, index[:, ::2])
    assert torch.equal(half[0], expected[0][:, ::2])


def test_gather_errors(without_kernels: Callable[[], None]) -> None:
    dataset, online, index = transitions(2, 5, 4, 3)
    for wrong in (-1, 7):
        bad = index.clone()
        bad[1, 2] = wrong
        with pytest.raises(RuntimeError, match="index must be from 0 to 6"):
            gather_transitions(dataset, online, bad)
    with pytest.raises(RuntimeError, match="must be contiguous"):
        gather_transitions([x.repeat_interleave(2, 0)[::2] for x in dataset], online, index)
    for _ in range(2):  # the kernel's checks, then the definition's
        with pytest.raises(RuntimeError, match="index must have shape \\[S, B\\] and be int64"):
            gather_transitions(dataset, online, index[0])
        with pytest.raises(RuntimeError, match="as many"):
            gather_transitions(dataset[:3], online, index)
        with pytest.raises(RuntimeError, match="dataset\\[1\\] must have shape"):
            gather_transitions([dataset[0], dataset[1][:2], *dataset[2:]], online, index)
        with pytest.raises(RuntimeError, match="online\\[0\\] must have shape"):
            gather_transitions(dataset, [online[0][:1], *online[1:]], index)
        without_kernels()


def test_gather_compiled() -> None:
    problem = transitions(2, 30, 6, 3)
    got = torch.compile(gather_transitions, fullgraph=True, backend="aot_eager")(*problem)
    expected = gather_transitions(*problem)
    assert torch.equal(got[0][3], expected[0][3]) and torch.equal(got[1], expected[1])

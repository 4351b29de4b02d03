"""Random batches for the emulated bonus: rows drawn with replacement, rows to be left out, every option."""

from __future__ import annotations

import numpy as np
from emulated_bonus import Batch
from problems import DATA, rows


def spoil(rng: np.random.Generator, b: Batch) -> None:
    """Makes some numbers not finite, or too large to move the moments, in place."""
    seeds, n, dim = b.states.shape
    largest = 1e18 if b.states.dtype == np.float32 else 1e140
    for s in range(seeds):
        for i in rng.integers(0, n, 1 + n // 8):
            bad = rng.choice([np.nan, np.inf, -np.inf, largest, -np.nextafter(largest, np.inf), 1e3 * largest])
            if rng.random() < 0.3:
                b.values[s, i] = bad
            else:
                b.states[s, i, rng.integers(dim)] = bad


def draw(seed: int, largest: int = 60) -> tuple[Batch, dict[str, int], str]:
    """A batch, settings of the emulated device, and a line that says what was drawn."""
    rng = np.random.default_rng(seed)
    dtype = rng.choice([np.float32, np.float64])
    data = str(rng.choice(DATA))
    seeds = int(rng.choice([1, 1, 2, 3]))
    dim = int(rng.choice([1, 2, 3, 8, 11, 15, 16, 17, 31, 40]))
    n = int(rng.integers(1, largest))
    k = int(rng.integers(1, int(rng.choice([4, 4, 12, 128])) + 1))
    known = int(rng.choice([3, max(1, n // 2), n, 10 * n]))  # transitions that the rows are drawn from
    drawn = rng.integers(0, known, (seeds, n))
    numbers = rng.choice([np.arange(known), rng.integers(-(2**62), 2**62, known), 2**32 * np.arange(known)])
    places = np.arange(seeds)[:, None], drawn
    with np.errstate(over="ignore"):
        states = rows(rng, data, (seeds, known, dim))[places].astype(dtype)
        values = (rng.standard_normal((seeds, known)) * 10.0 ** rng.integers(-2, 3))[places].astype(dtype)
    shape = seeds, dim + 1
    b = Batch(
        states,
        np.round(values) if data in ("ties", "constant") else values,
        numbers[drawn],
        rng.random((seeds, n)) < rng.choice([0.5, 0.9, 1.0]),
        rng.standard_normal(shape).astype(dtype),
        np.where(rng.random(shape) < 0.1, 0, rng.uniform(0.5, 2, shape)).astype(dtype),
        rng.integers(0, 8, seeds).astype(dtype),
        k,
        count_self=bool(rng.random() < 0.5),
        learn=bool(rng.random() < 0.7),
        horizon=float(rng.choice([1, 3.5, 1e6])),
        divisor=float(rng.choice([1, np.sqrt(17), 17])),
    )
    spoiled = rng.random() < 0.5
    if spoiled:
        spoil(rng, b)
    device = {
        "multiprocessors": int(rng.choice([1, 8, 200])),
        "shared_bytes": int(rng.choice([99, 163, 227])) * 1024,
    }
    what = f"seed {seed}: {data} {np.dtype(dtype).name} seeds {seeds} rows {n} of {known} dim {dim} k {k}"
    return b, device, f"{what} count_self {b.count_self} learn {b.learn} spoiled {spoiled} {device}"


def normal(seed: int, n: int, dim: int, k: int, dtype: type = np.float32, seeds: int = 1, known: int = 0) -> Batch:
    """Rows of `known` transitions (0: each row its own), first batch of fresh moments."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, known, (seeds, n)) if known else np.tile(rng.permutation(n), (seeds, 1))
    states = rng.normal(1, 2, (seeds, max(known, n), dim))[np.arange(seeds)[:, None], index]
    values = rng.normal(5, 3, (seeds, max(known, n)))[np.arange(seeds)[:, None], index]
    moments = np.zeros((seeds, dim + 1), dtype), np.ones((seeds, dim + 1), dtype), np.zeros(seeds, dtype)
    return Batch(states.astype(dtype), values.astype(dtype), index, np.full((seeds, n), True), *moments, k)


def directed() -> list[tuple[str, Batch]]:
    """Batches that only a particular mistake gets wrong."""
    found = []

    # Rows of one index need not be equal: the first finite row stands for all, in whatever order they come.
    b = normal(1, 70, 3, 2, known=20)
    b.states += np.random.default_rng(2).standard_normal(b.states.shape).astype(np.float32)
    b.states[0, :9, 1], b.values[0, 9:14], b.eligible[0, 14:20] = np.nan, np.inf, False
    found.append(("rows of an index that differ", b))

    # More rows than a block has threads, and transitions in all parts of them.
    b = normal(3, 1100, 1, 3, known=700)
    b.eligible[0, ::3] = False
    found.append(("more rows than threads", b))

    # All rows are one transition, or none is any.
    b = normal(4, 600, 1, 1, known=1, seeds=2)
    b.eligible[1] = False
    found.append(("one transition", b))

    # k distinct transitions leave nothing covered, k + 1 all.
    for known in (5, 6):
        b = normal(5, 40, 2, 5)
        b.index %= known
        found.append((f"{known} transitions and k 5", b))

    # Equal points: a radius of 0 in which nobody is closer, and a point that is not its own neighbour by count.
    b = normal(6, 40, 2, 3, seeds=2)
    b.states[0, :30], b.values[0, :30], b.count_self = 1.5, 2.5, True
    b.states[1, :], b.values[1, :] = 0, 0
    found.append(("radius 0", b))

    # The moments' sums depend on their order in the last bits, and on the last row.
    for dtype in (np.float32, np.float64):
        b = normal(7, 333, 17, 4, dtype)
        b.states *= 10.0 ** np.random.default_rng(8).integers(-8, 8, b.states.shape)
        b.values[0, -1] = 1e6
        found.append(("sums of many sizes", b))

    # At the limit of what moves the moments and just beyond it, and beyond it in the values alone.
    for dtype, limit in ((np.float32, 1e18), (np.float64, 1e140)):
        b = normal(9, 30, 4, 3, dtype, seeds=3)
        b.states[0, 3, 2] = limit
        b.states[1, 4, 1] = np.nextafter(dtype(limit), dtype(np.inf))
        b.values[2, 5] = -10 * limit
        b.states[2, 6:9] = 10 * limit, np.nan, -np.inf, 10 * limit  # several in a row
        found.append(("huge rows", b))

    # What is finite, but not once it is standardised: a transition, and nobody's neighbour.
    b = normal(10, 20, 2, 3)
    b.states[0, 4:7, 0], b.variance[0, 0], b.learn = 1e38, 1e-10, False
    found.append(("standardised away", b))

    # Channels that vary, that hardly vary and that do not: only the first are scaled.
    b = normal(14, 30, 3, 3)
    b.variance[0], b.learn = (0, 1e-14, 4, 1e-14), False
    found.append(("hardly any spread", b))

    # Rows that all move the moments, so that these are loaded two at a time.
    found.append(("an odd number of rows", normal(16, 65, 3, 2)))

    # A warp's lanes of states, and the values behind them.
    b = normal(15, 30, 32, 3)
    b.values[0, 4:7] = np.inf, 1e30, np.nan
    found.append(("a channel more than a warp has lanes", b))

    # A row of seeds, of which each has its own.
    b = normal(11, 50, 33, 4, seeds=3, known=30)
    b.batches[:] = 0, 3, 9
    b.index[1] += 1 << 40
    b.eligible[2, 10:] = False
    found.append(("seeds", b))
    return found

"""The emulated operators of csrc/random and csrc/buffer as Python functions, and problems for them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from emulated import Array, Emulator, same_bits

from qcse_ext.random import LAWS, random_in_torch, random_rows_in_torch
from qcse_ext.transitions import gather_transitions_in_torch

Segments = Sequence[tuple[str, int]]


def pointer(array: Array | None) -> Any:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def pointers(arrays: Sequence[Array]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])


def sizes(*numbers: int) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def random(emulator: Emulator, keys: Array, counters: Array, segments: Segments) -> list[Array]:
    """Each segment's numbers, [S, count]; changes the counters."""
    seeds, blocks, numbers, facts, places = len(keys), 0, 0, [], []
    for law, count in segments:
        facts += [LAWS[law], count, blocks, numbers]
        places.append((numbers, numbers + seeds * count))
        blocks += -(-count // 4)
        numbers += -(-seeds * count // 4) * 4
    out = np.full(numbers, np.nan, np.float32)
    emulator.call(
        "emulator_random", ctypes.c_int64(seeds), ctypes.c_int64(len(segments)), sizes(*facts), ctypes.c_int64(blocks),
        ctypes.c_int64(numbers), pointer(keys), pointer(counters), pointer(out),
    )  # fmt: skip
    return [out[begin:end].reshape(seeds, -1) for begin, end in places]


def random_rows(
    emulator: Emulator,
    keys: Array,
    counters: Array,
    count: int,
    dataset: int,
    held: int,
    leading: int | None,
    there: bool,
) -> Array:
    """Row numbers [S, count]; changes the counters. `there`: the number held is read from the device's memory."""
    out = np.full((len(keys), count), -1, np.int64)
    known = sizes(len(keys), count, leading or 0, dataset, 0 if there else held, leading is None)
    held_there = pointer(np.array(held, np.float64)) if there else None
    emulator.call("emulator_random_rows", known, held_there, pointer(keys), pointer(counters), pointer(out))
    return out


def gather(
    emulator: Emulator, dataset: Sequence[Array], online: Sequence[Array], index: Array
) -> tuple[list[Array], Array]:
    columns = [np.full(index.shape + rows.shape[1:], 7, np.float32) for rows in dataset]
    is_online = np.zeros(index.shape, bool)
    emulator.call(
        "emulator_gather", sizes(*index.shape, len(dataset[0]), online[0].shape[1], len(dataset)),
        sizes(*[int(np.prod(rows.shape[1:])) for rows in dataset]), pointers(dataset), pointers(online), pointer(index),
        pointers(columns), pointer(is_online),
    )  # fmt: skip
    return columns, is_online


# --- Problems, and what is wrong with the answers ---------------------------------------------------------------------

SEGMENTS: list[Segments] = [
    *[[(law, count)] for law in LAWS for count in (1, 3, 4, 31, 32, 33, 1000)],
    [("normal", 5), ("unit", 1), ("symmetric", 8), ("normal", 1024), ("unit", 6)],
    [("normal", 4400), ("symmetric", 40), ("normal", 2)],
]
ROWS = [
    (1, 9, 0, None),
    (5, 7, 3, None),
    (256, 1000, 77, 128),
    (33, 5, 1, 0),
    (64, 6, 2, 64),
    (700, 1, 2, 350),
    (64, 5, 90, 33),
]


def streams_of(seeds: int, seed: int) -> tuple[Array, Array]:
    """Keys of any bits; counters, one of which has its lower word full."""
    rng = np.random.default_rng(seed)
    counters = rng.integers(0, 1 << 40, seeds)
    counters[-1] = (1 << 32) - 3
    return rng.integers(-(1 << 63), (1 << 63) - 1, seeds), counters


def wrong_numbers(emulator: Emulator) -> Iterator[str]:
    """Two draws in a row of each problem against the definition, in one order of the threads after the other."""
    for number, segments in enumerate(SEGMENTS):
        seeds = 1 + number % 5
        emulator.configure(seed=number % 7, multiprocessors=(1, 8)[number % 2])
        keys, counters = streams_of(seeds, number)
        expected_counters = torch.from_numpy(counters.copy())
        for turn in range(2):
            expected = random_in_torch(torch.from_numpy(keys), expected_counters, segments)
            got = random(emulator, keys, counters, segments)
            if not all(same_bits(a, b.numpy()) for a, b in zip(got, expected, strict=True)):
                yield f"draw {turn} of {segments} for {seeds} seeds"
            if counters.tolist() != expected_counters.tolist():
                yield f"counters after draw {turn} of {segments} for {seeds} seeds"


def wrong_rows(emulator: Emulator) -> Iterator[str]:
    for number, (count, dataset, held, leading) in enumerate(ROWS):
        for there in (False, True):
            emulator.configure(seed=number)
            keys, counters = streams_of(1 + number % 4, number)
            expected_counters = torch.from_numpy(counters.copy())
            arguments = count, dataset, held, leading
            for turn in range(2):
                expected = random_rows_in_torch(torch.from_numpy(keys), expected_counters, *arguments)
                if not np.array_equal(random_rows(emulator, keys, counters, *arguments, there), expected.numpy()):
                    yield f"draw {turn} of rows {arguments}"
                if counters.tolist() != expected_counters.tolist():
                    yield f"counters after draw {turn} of rows {arguments}"


GATHERS = [(1, 1, 4, 1), (2, 33, 0, 3), (3, 64, 50, 7), (2, 9, 5, 1), (5, 100, 3, 40), (1, 700, 1000, 1)]
WIDTHS = [(17, 6, 1, 17, 1, 1, 1), (1,), (3, 1, 64, 31, 33), (111, 8, 1, 111)]


def transitions(
    seeds: int, rows: int, size: int, capacity: int, widths: Sequence[int]
) -> tuple[list[Array], list[Array], Array]:
    """Columns of a dataset and of rings, and row numbers of both."""
    rng = np.random.default_rng(rows)
    shapes = [() if width == 1 else (width,) for width in widths]
    dataset = [rng.standard_normal((size, *shape)).astype(np.float32) for shape in shapes]
    online = [rng.standard_normal((seeds, capacity, *shape)).astype(np.float32) for shape in shapes]
    return dataset, online, rng.integers(0, size + capacity, (seeds, rows))


def wrong_gathers(emulator: Emulator) -> Iterator[str]:
    for number, problem in enumerate(GATHERS):
        for widths in WIDTHS:
            emulator.configure(seed=number)
            dataset, online, index = transitions(*problem, widths)
            index[0, 0] = sum(problem[2:]) - 1
            index[-1, -1] = 0
            columns, is_online = gather(emulator, dataset, online, index)
            tensors = [[torch.from_numpy(x) for x in xs] for xs in (dataset, online, [index])]
            expected, mask = gather_transitions_in_torch(tensors[0], tensors[1], tensors[2][0])
            if not all(same_bits(a, b.numpy()) for a, b in zip(columns, expected, strict=True)):
                yield f"columns of {problem}, {widths}"
            if not np.array_equal(is_online, mask.numpy()):
                yield f"mask of {problem}"
        index[0, 0], index[-1, -1] = -1, sum(problem[2:])
        columns, _ = gather(emulator, dataset, online, index)
        if not all(np.isnan(c[0, 0]).all() and np.isnan(c[-1, -1]).all() for c in columns):
            yield f"rows out of range of {problem}"

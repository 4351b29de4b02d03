"""The emulated operators of csrc/bonus, and the CPU's kernels of them, as Python functions."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from emulated import OFFSET, PATHS, Array, Emulator

TABLES = {"auto": -1, "shared": 0, "workspace": 1}


def pointers(arrays: list[Array]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])


@dataclass
class Batch:
    """One call of the operator, as in ``csrc/bonus/batch_entropy.h``: states ``[S, N, D]``, values ``[S, N]``."""

    states: Array
    values: Array
    index: Array
    eligible: Array
    mean: Array
    variance: Array
    batches: Array
    k: int
    count_self: bool = False
    learn: bool = True
    horizon: float = 4.0
    divisor: float = 2.0


@dataclass
class Bonus:
    """What a call leaves behind; the first three are the moments."""

    mean: Array
    variance: Array
    batches: Array
    entropy: Array
    covered: Array
    statistics: Array


def batch_entropy(emulator: Emulator, b: Batch, path: str = "auto", tables: str = "auto") -> Bonus:
    """``path``: a key of PATHS, where ``brute force`` is the CPU's kernel; the batch's own moments are left alone."""
    seeds, rows, dim = b.states.shape
    kind = b.states.dtype
    inputs = [np.ascontiguousarray(a) for a in (b.states, b.values, b.index, b.eligible)]
    bonus = Bonus(
        *(np.array(a, order="C") for a in (b.mean, b.variance, b.batches)),
        np.full((seeds, rows), np.nan, kind),
        np.full((seeds, rows), True),
        np.full((3, seeds), np.nan, kind),
    )

    emulator.call(
        "emulator_batch_entropy",
        int(kind == np.float64),
        PATHS[path],
        TABLES[tables],
        (ctypes.c_int64 * 6)(seeds, rows, dim, b.k, b.count_self, b.learn),
        (ctypes.c_double * 3)(b.horizon, b.divisor, OFFSET),
        pointers(inputs),
        pointers([getattr(bonus, f.name) for f in fields(bonus)]),
    )
    return bonus


def cpu_batch_entropy(emulator: Emulator, b: Batch) -> Bonus:
    """The oracle: the CPU's kernel, in which brute force searches."""
    return batch_entropy(emulator, b, "brute force")


def add_bonus(emulator: Emulator, rewards: Array, inputs: list[Array], squash: bool) -> Array:
    """Changes the rewards, [S, N], whose rows may lie apart; inputs as in ``csrc/bonus/add_bonus.h``. Returns the
    statistics."""
    seeds, rows = rewards.shape
    kind = rewards.dtype
    statistics = np.zeros((5, seeds), kind)
    sizes = (ctypes.c_int64 * 3)(seeds, rows, rewards.strides[0] // kind.itemsize)
    results = pointers([rewards, statistics])
    emulator.call("emulator_add_bonus", int(kind == np.float64), int(squash), sizes, pointers(inputs), results)
    return statistics

"""The emulated operator and its oracle as Python functions."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
OFFSET = 1e-5
PATHS = {"brute force": 0, "auto": 1, "small": 2, "large": 3, "screened": 4}


class EmulatorError(RuntimeError):
    """A rule of CUDA was broken. ``kind`` is its short name, such as ``data race``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Problem:
    """One call of the operator: states ``[batch, N, D]``, values ``[batch, N]``, as in ``csrc/knn/knn.h``."""

    states: Array
    values: Array
    k: int
    ref_states: Array | None = None
    ref_values: Array | None = None
    self_index: Array | None = None


@dataclass
class Answer:
    """Radius, count and entropy, each ``[batch, N]``; None where not asked for."""

    radius: Array | None
    count: Array | None
    entropy: Array | None


class Emulator:
    """The shared library that ``build.py`` made."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.emulator_error.restype = ctypes.c_char_p
        self._library.emulator_error_kind.restype = ctypes.c_char_p
        self._library.emulator_accesses.restype = ctypes.c_uint64
        self._library.emulator_launches.restype = ctypes.c_uint64
        self.configure()

    def configure(
        self, seed: int = 0, checks: bool = True, multiprocessors: int = 8, shared_bytes: int = 227 * 1024
    ) -> None:
        """Order of the threads, whether memory rules are checked, and what the emulated device says of itself."""
        self._library.emulator_configure(
            ctypes.c_uint64(seed), int(checks), multiprocessors, ctypes.c_uint64(shared_bytes)
        )

    def call(self, function: str, *arguments: Any) -> None:
        """An entry point that returns 0, or 1 and leaves a message."""
        self._check(getattr(self._library, function)(*arguments))

    def _check(self, failed: int) -> None:
        if failed:
            raise EmulatorError(
                self._library.emulator_error_kind().decode(), self._library.emulator_error().decode(errors="replace")
            )

    def _call(self, p: Problem, path: str, outputs: str, variant: int = -1) -> Answer:
        batch, queries, dim = p.states.shape
        refs = queries if p.ref_states is None else p.ref_states.shape[1]
        kind = p.states.dtype
        inputs = [p.states, p.values, p.ref_states, p.ref_values, p.self_index]
        kept = [None if a is None else np.ascontiguousarray(a) for a in inputs]
        radius = np.zeros((batch, queries), kind) if "r" in outputs else None
        count = np.zeros((batch, queries), np.int64) if "c" in outputs else None
        entropy = np.zeros((batch, queries), kind) if "e" in outputs else None

        def pointers(arrays: list[Array | None]) -> Any:
            return (ctypes.c_void_p * len(arrays))(*[None if a is None else a.ctypes.data for a in arrays])

        self._check(
            self._library.emulator_knn(
                int(kind == np.float64),
                PATHS[path],
                variant,
                (ctypes.c_int64 * 5)(batch, queries, refs, dim, p.k),
                pointers(kept),
                pointers([radius, count, entropy]),
                ctypes.c_double(OFFSET),
            )
        )
        return Answer(radius, count, entropy)

    def knn(self, problem: Problem, path: str = "auto", outputs: str = "rce", variant: int = -1) -> Answer:
        """The kernels of csrc/knn/cuda, emulated.

        ``path``: a key of PATHS; ``auto`` goes by the shape. ``outputs``: which of r(adius), c(ount), e(ntropy) to ask
        for. ``variant``: number of a variant of the path's tiles; -1 leaves it to the rule.
        """
        return self._call(problem, path, outputs, variant)

    def choice(self, p: Problem) -> tuple[str, tuple[int, ...] | None]:
        """The path that ``auto`` gives this problem, and its variant's four numbers; None where the rule decides."""
        batch, queries, dim = p.states.shape
        refs = queries if p.ref_states is None else p.ref_states.shape[1]
        answer = (ctypes.c_int64 * 6)()
        sizes = (ctypes.c_int64 * 5)(batch, queries, refs, dim, p.k)
        joined = int(p.ref_states is None)
        self._library.emulator_choice(int(p.states.dtype == np.float64), sizes, joined, answer)
        name = next(name for name, number in PATHS.items() if number == answer[0])
        return name, None if answer[1] < 0 else tuple(answer[2:])

    def screen_division(self, refs: int, dim: int, k: int, dtype: type, capability: int) -> tuple[int, ...]:
        """The screened kernel's warps and stages of a block, how many blocks share a multiprocessor, and its bytes."""
        answer = (ctypes.c_int64 * 4)()
        sizes = (ctypes.c_int64 * 5)(1, refs, refs, dim, k)
        self._library.emulator_screen_division(int(dtype == np.float64), sizes, capability, answer)
        return tuple(answer)

    def variants(self, path: str) -> int:
        """How many variants this library holds."""
        return int(self._library.emulator_variants(PATHS[path]))

    def brute_force(self, problem: Problem, outputs: str = "rce") -> Answer:
        """The oracle."""
        return self._call(problem, "brute force", outputs)

    def accesses(self) -> int:
        """Loads and stores of all kernels so far: a measure of the work done."""
        return int(self._library.emulator_accesses())

    def launches(self) -> int:
        """Kernels and calls of CUDA's libraries so far."""
        return int(self._library.emulator_launches())

    def self_kernel(self, name: str, elements: int = 256) -> Array:
        """Runs one of the emulator's own kernels and returns its output."""
        out = np.zeros(elements, np.int32)
        self._check(self._library.emulator_run_self_kernel(name.encode(), ctypes.c_void_p(out.ctypes.data), elements))
        return out


def same_bits(a: Array, b: Array) -> bool:
    """Equal bit for bit, except that NaNs compare by position and not by payload."""
    nan_a, nan_b = np.isnan(a), np.isnan(b)
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    return bool(np.array_equal(nan_a, nan_b) and np.array_equal(a.view(unsigned)[~nan_a], b.view(unsigned)[~nan_b]))

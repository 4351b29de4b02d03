"""A planted fault, and what judges it: for each folder of csrc, what its kernels are given to compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from emulated import Emulator, Problem, same_bits

Verdicts = Iterator[str]


@dataclass
class Fault:
    """``old`` occurs once in ``file`` of csrc/*/cuda or csrc/* and becomes ``new``.

    ``nth`` names the occurrence, from 0, where there are several.
    """

    name: str
    file: str
    old: str
    new: str
    nth: int | None = None


def knn(emulator: Emulator, paths: tuple[str, ...] = ("small", "large", "screened")) -> Verdicts:
    from problems import directed, draw, shared

    device = {"multiprocessors": 1, "shared_bytes": 227 * 1024}
    cases = [(problem, device, what) for what, problem in directed()]
    cases += [(problem, device | {"multiprocessors": 200}, what) for what, problem in shared()]
    rng = np.random.default_rng(0)
    for dim in (96, 48):  # the first takes more shared memory of the same kernel
        states, values = (rng.standard_normal((1, 20, *more)).astype(np.float32) for more in ((dim,), ()))
        cases.append((Problem(states, values, 3), device, f"{dim} dimensions"))
    cases += [draw(seed) for seed in range(1000, 1050)]
    cases += [draw(seed, 140) for seed in range(1050, 1060)]
    for seed, (problem, device, what) in enumerate(cases):
        for path in paths:
            emulator.configure(seed=seed % 7, **device)
            expected = emulator.brute_force(problem)
            got = emulator.knn(problem, path)
            right = same_bits(got.radius, expected.radius) and np.array_equal(got.count, expected.count)
            if not (right and same_bits(got.entropy, expected.entropy)):
                yield f"{path}, {what}"


def bonus(emulator: Emulator) -> Verdicts:
    yield from batch_entropy(emulator)
    yield from added_bonus(emulator)


def batch_entropy(emulator: Emulator) -> Verdicts:
    import emulated_bonus
    from problems_bonus import directed, draw, normal

    device = {"multiprocessors": 8, "shared_bytes": 227 * 1024}
    cases = [(b, device, what) for what, b in directed()] + [draw(seed) for seed in range(2000, 2040)]
    schedules = [seed % 7 for seed in range(len(cases))]
    # Whether a seed's last block has waited for the others shows in few schedules, of which number 224 is one: there
    # another block is the last to add to what it reads.
    b = normal(1, 600, 1, 1, seeds=2)
    b.eligible[:, 30:-30] = False
    cases += [(b, device, "schedules")] * 10
    schedules += range(212, 242, 3)  # three blocks at a time
    for schedule, (b, device, what) in zip(schedules, cases, strict=True):
        expected = emulated_bonus.cpu_batch_entropy(emulator, b)
        for tables in ("shared", "workspace"):
            emulator.configure(seed=schedule, **device)
            got = emulated_bonus.batch_entropy(emulator, b, tables=tables)
            for f in fields(got):
                one, two = getattr(got, f.name), getattr(expected, f.name)
                if not (np.array_equal(one, two) if one.dtype == bool else same_bits(one, two)):
                    yield f"{f.name}, {what}"


def added_bonus(emulator: Emulator) -> Verdicts:
    import torch
    from emulated_bonus import add_bonus

    from qcse_ext.reward import add_bonus_in_torch

    for seed, (seeds, n) in enumerate([(1, 1), (2, 31), (3, 128), (1, 300), (2, 700)]):
        rng = np.random.default_rng(seed)
        rewards = rng.standard_normal((seeds, n))
        novelty = 2 * rng.standard_normal((seeds, n))
        novelty[:, ::9] = np.inf
        masks = rng.random((2, seeds, n)) < 0.7
        inputs = [novelty, masks[0], masks[1], np.array(0.3)]
        expected = torch.from_numpy(rewards.copy())
        wanted = add_bonus_in_torch(expected, *(torch.from_numpy(a) for a in inputs), seed % 2 > 0)
        emulator.configure(seed=seed)
        got = add_bonus(emulator, rewards, inputs, seed % 2 > 0)
        if not (np.allclose(got, wanted, 1e-12, 1e-12) and np.allclose(rewards, expected, 1e-12, 1e-12)):
            yield f"rewards of {seeds} x {n}"


def random(emulator: Emulator) -> Verdicts:
    from emulated_random import wrong_numbers, wrong_rows

    yield from wrong_numbers(emulator)
    yield from wrong_rows(emulator)


def buffer(emulator: Emulator) -> Verdicts:
    from emulated_random import wrong_gathers

    return wrong_gathers(emulator)


def nets(emulator: Emulator) -> Verdicts:
    yield from layers(emulator)
    yield from policies(emulator)


def layers(emulator: Emulator) -> Verdicts:
    from emulated_nets import problems, wrong

    for seed, case in enumerate(problems()):
        emulator.configure(seed=seed % 7)
        if (what := wrong(emulator, case)) is not None:
            yield what


def policies(emulator: Emulator) -> Verdicts:
    from problems_policy import directed, is_close

    for seed, (what, problem) in enumerate(directed()):
        for order in (seed % 7, 1 + seed % 6):
            emulator.configure(seed=order)
            got, want = problem(emulator)
            if not all(is_close(a, b) for a, b in zip(got, want, strict=True)):
                yield what


# Yields what was got wrong.
JUDGES = {
    "knn": knn,
    "small": partial(knn, paths=("small",)),
    "large": partial(knn, paths=("large",)),
    "screened": partial(knn, paths=("screened",)),
    "bonus": bonus,
    "add_bonus": added_bonus,
    "nets": nets,
    "random": random,
    "buffer": buffer,
}
# Of a file that one kernel alone includes; otherwise the folder's, and those of all folders for csrc/base.
OF_FILES = {"small.cu": "small", "large.cu": "large", "add_bonus.cu": "add_bonus"}
OF_FILES |= dict.fromkeys(("screened.cu", "screen.h", "warp_queries.h", "ring.h"), "screened")
OF_BASE = {"sums.h": ["nets", "bonus"]}  # of csrc/base/cuda, where not all folders use it
OF_FOLDERS = ("knn", "bonus", "nets", "random", "buffer")


def judges_of(file: Path | None) -> list[str]:
    """Names of those that a fault in this file of csrc may show to; None: no fault."""
    folder = "" if file is None else file.parent.name if file.parent.name != "cuda" else file.parent.parent.name
    if file is None or folder not in OF_FOLDERS:
        return OF_BASE.get(file.name if file else "", list(OF_FOLDERS))
    return [OF_FILES.get(file.name, folder)]

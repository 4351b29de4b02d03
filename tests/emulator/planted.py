"""A planted fault, and what judges it: for each folder of csrc, what its kernels are given to compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from emulated import Emulator, same_bits

Verdicts = Iterator[str]


@dataclass
class Fault:
    """``old`` occurs once in csrc/*/cuda/``file`` (or ``nth`` names the occurrence, from 0) and becomes ``new``."""

    name: str
    file: str
    old: str
    new: str
    nth: int | None = None


def knn(emulator: Emulator) -> Verdicts:
    from problems import directed, draw

    device = {"multiprocessors": 1, "shared_bytes": 227 * 1024}
    cases = [(problem, device, what) for what, problem in directed()] + [draw(seed) for seed in range(1000, 1050)]
    for seed, (problem, device, what) in enumerate(cases):
        for path in ("small", "large", "screened"):
            emulator.configure(seed=seed % 7, **device)
            expected = emulator.brute_force(problem)
            got = emulator.knn(problem, path)
            if not (same_bits(got.radius, expected.radius) and np.array_equal(got.count, expected.count)):
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
    # Whether a seed's last block has waited for the others shows in few schedules.
    cases += [(normal(1, 70, 1, 1, seeds=2), device, "many schedules")] * 80
    schedules += [2 + 3 * i for i in range(80)]  # three blocks at a time
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


# Yields what was got wrong. A fault of csrc/base is judged by all.
JUDGES = {"knn": knn, "bonus": bonus}


def judges_of(folder: str) -> list[str]:
    """Those of a fault in csrc/``folder``."""
    return [folder] if folder in JUDGES else list(JUDGES)

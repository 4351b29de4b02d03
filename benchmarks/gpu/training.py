"""Times one online update of Cal-QL for S seeds: ours, CORL's, and the one in JAX beside this file, in one process.

python benchmarks/gpu/training.py [--device cuda] [--seeds 1 8 16] [--precision tf32] [--corl CHECKOUT] [--eager]

Candidates take turns within each round, so that what slows the machine slows them all; ratios are taken within rounds
and are those of times per seed and update. CORL trains one seed and takes part in the rounds of every S. JAX's update
needs `jax` and is left out with a line that says why where it cannot run; it and CORL's have no bonus. Each record is
one line of JSON; those of one S are printed before the next S is built, one seed first, then from many to few. Ours
and JAX's read the same random data, ours with the bonus at weight 0, as `qcse bench` does.

With --precision tf32 all candidates use TF32. With bf16 only ours does (the critics' hidden layers): CORL's runs in
float32 and JAX's is left out.
"""

# ruff: noqa: E402 (the clock starts before the imports)
from __future__ import annotations

import time

BEGIN = time.monotonic()  # the budget pays for the imports as well

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qcse.bench import configuration, corl_step, our_step, random_transitions
from qcse.bench.candidates import CORL_POLICY_HIDDEN, DATASET_ROWS, ONLINE_ROWS
from qcse.bench.rates import quartiles
from qcse.config.commands import BenchArgs
from qcse.errors import QcseError
from qcse.learn.agents import AGENTS
from qcse.learn.streams import Streams
from qcse.learn.update import WARM_UP, capturable
from qcse.runs.device import keep_freed_memory, resolve_device, use_precision

ALGO = "cal_ql"
WARM = WARM_UP + 2  # updates that are not timed: the capture and a replay are among them
SHAPES = ("state_dim", "action_dim", "batch_size", "actions")
WIDTHS = ("policy_hidden", "critic_hidden")


@dataclass
class Candidate:
    implementation: str
    bonus: str
    seeds: int
    precision: str
    timing: str
    update: Callable[[], object]
    wait: Callable[[], object]  # until all updates are done
    seconds: list[float] = field(default_factory=list)  # per update of all seeds, one for each round

    def timed(self, updates: int) -> float:
        begin = time.perf_counter()
        for _ in range(updates):
            self.update()
        self.wait()
        return (time.perf_counter() - begin) / updates

    @property
    def per_seed(self) -> list[float]:
        return [seconds / self.seeds for seconds in self.seconds]


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--precision", default="float32", choices=("float32", "tf32", "bf16"))
    parser.add_argument("--bonuses", nargs="+", default=["none", "qcse"], choices=("none", "qcse"))
    parser.add_argument("--corl", type=Path, help="a checkout of CORL")
    parser.add_argument("--no-jax", action="store_true")
    parser.add_argument("--eager", action="store_true", help="on a GPU ours without a captured graph as well")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=20, help="of each candidate in a round")
    parser.add_argument("--budget-s", type=float, default=80.0, help="nothing is begun that would not end in time")
    shapes = BenchArgs()
    for name in SHAPES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(shapes, name))
    for name in WIDTHS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, nargs="+", default=list(getattr(shapes, name)))
    given = parser.parse_args(argv)
    for name in ("rounds", "updates", *SHAPES):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(given, name)}, expected 1 or more")
    if min(given.seeds) < 1:
        parser.error(f"--seeds: got {min(given.seeds)}, expected 1 or more")
    if given.corl is not None and tuple(given.policy_hidden) != CORL_POLICY_HIDDEN:
        parser.error(f"--policy-hidden: got {given.policy_hidden}, but CORL's policy has {list(CORL_POLICY_HIDDEN)}")
    return given


def waiting(device: torch.device) -> Callable[[], object]:
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def ours(seeds: int, bonus: str, precision: str, captured: bool, shapes: BenchArgs, device: torch.device) -> Candidate:
    shapes = replace(shapes, cuda_graph="auto" if captured else "off")
    timing = "graph" if capturable(configuration(ALGO, bonus, shapes, precision), device) else "eager"
    update = our_step(ALGO, bonus, seeds, shapes, device, precision)
    return Candidate("qcse", bonus, seeds, precision, timing, update, waiting(device))


def corl(checkout: Path, precision: str, shapes: BenchArgs, device: torch.device) -> Candidate:
    precision = "tf32" if precision == "tf32" else "float32"
    return Candidate("corl", "none", 1, precision, "eager", corl_step(checkout, ALGO, shapes, device), waiting(device))


def import_jax(device: torch.device) -> str:
    """JAX's version; it takes memory as it needs it, and only this device."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.3"  # the rest is torch's
    os.environ["JAX_PLATFORMS"] = device.type
    sys.path.append(str(Path(__file__).resolve().parent))  # python -P leaves it out
    import jax

    jax.devices()  # fails where there is none of the kind
    return jax.__version__


def in_jax(seeds: int, precision: str, shapes: BenchArgs) -> Candidate:
    import jax
    import jax_update

    config = configuration(ALGO, "none", shapes)
    agent = AGENTS[ALGO](shapes.state_dim, shapes.action_dim, config, Streams(list(range(seeds))))
    generator = torch.Generator().manual_seed(0)  # the data of `our_step`
    dataset, online = (random_transitions(n, shapes, generator) for n in (DATASET_ROWS, ONLINE_ROWS * seeds))
    rings = {name: column.view(seeds, ONLINE_ROWS, *column.shape[1:]) for name, column in online.items()}
    buffer, state = jax_update.buffer_of(dataset, rings), jax_update.state_of(agent)
    update = jax_update.make_update(jax_update.Options.of(config, shapes.action_dim), shapes.state_dim, precision)

    def step() -> None:
        nonlocal state
        state, _ = update(state, buffer)

    return Candidate("jax", "none", seeds, precision, "jit", step, lambda: jax.block_until_ready(state))


def record(candidate: Candidate, group: Sequence[Candidate], facts: dict[str, Any]) -> dict[str, Any]:
    """What is known of a candidate after its rounds beside the group."""

    def ratio(implementation: str) -> float | None:
        """Another implementation's time per seed and update over this one's."""
        others = [c for c in group if c.implementation == implementation]
        if not others or candidate.implementation == implementation:
            return None
        return statistics.median(a / b for a, b in zip(others[0].per_seed, candidate.per_seed, strict=True))

    low, median, high = quartiles(candidate.seconds)
    alike = [c for c in group if (c.implementation, c.timing, c.bonus) == ("qcse", candidate.timing, "none")]
    cost = None
    if candidate.bonus != "none" and alike:
        cost = statistics.median(a / b for a, b in zip(candidate.seconds, alike[0].seconds, strict=True)) - 1.0
    return {
        "implementation": candidate.implementation,
        "device": facts["device"],
        "data": "random",
        "algo": ALGO,
        "bonus": candidate.bonus,
        "seeds": candidate.seeds,
        "dtype": "float32",
        "precision": candidate.precision,
        "batch": facts["shapes"]["batch_size"],
        "timing": candidate.timing,
        "cache": "warm",
        "median_ms": 1e3 * median,
        "quartiles_ms": [1e3 * low, 1e3 * high],
        "seed_updates_per_second": candidate.seeds / median,
        "runs": len(candidate.seconds),
        "x_corl": ratio("corl"),
        "x_jax": ratio("jax"),
        "bonus_cost": cost,
        "shapes": facts["shapes"],
        "versions": facts["versions"],
    }


def say(line: str) -> None:
    print(line, flush=True)


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


Makers = list[tuple[str, Callable[[], Candidate]]]  # implementation, and what makes a candidate of it


class Measurement:
    """Groups of candidates, one for each number of seeds, each timed in interleaved rounds while there is time."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.end = given, BEGIN + given.budget_s
        self.device = resolve_device(given.device)
        use_precision(given.precision, self.device)
        sizes = {name: getattr(given, name) for name in SHAPES} | {name: tuple(getattr(given, name)) for name in WIDTHS}
        self.shapes = BenchArgs(device=given.device, corl=given.corl, **sizes)
        keep_freed_memory()
        self.jax_version = self._jax()
        self.facts = {
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "shapes": sizes,
            "versions": {"torch": torch.__version__, "jax": self.jax_version},
        }
        self.slowest: dict[str, float] = {}  # seconds that building and warming up took, by implementation
        self.longest = 0.0  # of all rounds
        self.complete = True  # all of ours that was asked for has been measured
        self.stays: Candidate | None = None  # CORL's, which has one number of seeds, stands beside every group
        self.failed: set[str] = set()

    def _jax(self) -> str | None:
        if self.given.no_jax:
            return None
        if self.given.precision == "bf16":
            say("jax: left out: its update has no bf16")
            return None
        try:
            return import_jax(self.device)
        except Exception as error:  # a broken installation fails with anything
            say(f"jax: left out: {reason(error)}")
            return None

    def run(self) -> int:
        """0 if all of ours that was asked for has been measured, else 1."""
        for seeds in sorted(set(self.given.seeds), key=lambda s: (s != 1, -s)):
            group = ([] if self.stays is None else [self.stays]) + self._built(seeds)
            fresh = [candidate for candidate in group if candidate is not self.stays]
            if not fresh:
                continue
            self._time(group, seeds)
            for candidate in fresh:
                say(json.dumps(record(candidate, group, self.facts)))
            self.stays = next((candidate for candidate in group if candidate.implementation == "corl"), None)
        return 0 if self.complete else 1

    def _makers(self, seeds: int) -> Makers:
        given, shapes, device = self.given, self.shapes, self.device
        captures = [True, False] if given.eager and device.type == "cuda" else [True]
        makers: Makers = [
            ("qcse", partial(ours, seeds, bonus, given.precision, captured, shapes, device))
            for captured in captures
            for bonus in dict.fromkeys(given.bonuses)
        ]
        if given.corl is not None and self.stays is None and "corl" not in self.failed:
            makers.append(("corl", partial(corl, given.corl, given.precision, shapes, device)))
        if self.jax_version is not None and "jax" not in self.failed:
            makers.append(("jax", partial(in_jax, seeds, given.precision, shapes)))
        return makers

    def _built(self, seeds: int) -> list[Candidate]:
        """The candidates that could be built, each warm."""
        built = []
        for name, make in self._makers(seeds):
            begin = time.monotonic()
            if begin + self.slowest.get(name, 0.0) + self.longest > self.end:
                say(f"{name}, seeds {seeds}: left out: the time is up")
                self.complete = self.complete and name != "qcse"
                continue
            try:
                candidate = make()
                candidate.timed(WARM)
            except Exception as error:  # the others shall not pay for it
                say(f"{name}, seeds {seeds}: left out: {reason(error)}")
                self.complete = self.complete and name != "qcse"
                self.failed.add(name)
                continue
            self.slowest[name] = max(self.slowest.get(name, 0.0), time.monotonic() - begin)
            say(f"{name}, seeds {seeds}: built in {time.monotonic() - begin:.1f} s")
            built.append(candidate)
        return built

    def _time(self, group: list[Candidate], seeds: int) -> None:
        for candidate in group:
            candidate.seconds = []
        for number in range(self.given.rounds):
            begin = time.monotonic()
            if number > 0 and begin + self.longest > self.end:
                say(f"seeds {seeds}: the time is up after {number} of {self.given.rounds} rounds")
                break
            for candidate in group:
                candidate.seconds.append(candidate.timed(self.given.updates))
            self.longest = max(self.longest, time.monotonic() - begin)


def main(argv: Sequence[str] | None = None) -> int:
    given = options(argv)
    try:
        return Measurement(given).run()
    except QcseError as error:
        print(f"training: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

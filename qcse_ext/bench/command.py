"""The command line."""

import argparse
import csv
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch

from qcse_ext.bench import data
from qcse_ext.bench.gpu import Cuda
from qcse_ext.bench.implementations import IMPLEMENTATIONS, OURS
from qcse_ext.bench.machine import commit, hot_loop_shares, machine_facts
from qcse_ext.bench.measuring import measure
from qcse_ext.bench.output import plot, say, show, table, write
from qcse_ext.bench.records import Record, plain

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    begun = time.monotonic()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.peak:
        _peak(options)
        return 0
    _checked(parser, options)
    if options.threads:
        torch.set_num_threads(options.threads)

    def in_time() -> bool:
        return options.budget is None or time.monotonic() - begun < options.budget

    records, failures = _measured(options, in_time)
    if not records:
        return 1 if failures else 0
    print("\n" + table(records))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(Record.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(r) for r in records)
    if options.plot:
        plot(records, options.plot)
    return 1 if failures or any(r.implementation in OURS and not r.exact for r in records) else 0


def _peak(options: argparse.Namespace) -> None:
    shares = hot_loop_shares()
    print("| instruction set | dtype | D | hot loop, G multiply-adds/s | peak | share |\n|---|---|---|---|---|---|")
    for row in shares:
        print("| " + " | ".join(str(x) for x in row.values()) + " |")
    if options.json:
        write(options.json, {"machine": machine_facts("cpu"), "hot_loop": shares})


def _measured(options: argparse.Namespace, in_time: Callable[[], bool]) -> tuple[list[Record], list[str]]:
    """The records of all problems, and why "qcse" was left out of some where it should not have been."""
    gpu = Cuda() if options.device == "cuda" else None
    of_commit = commit()
    modes = list(itertools.product(options.timing, options.cache))
    records: list[Record] = []
    failures: list[str] = []

    def is_begun(title: str) -> bool:
        if not in_time():
            say(f"left out, the budget of {options.budget:g} s is spent: {title}")
            return False
        return True

    for kind, n, dim in _sizes(options):
        if not is_begun(f"{kind} {n}{f' x {dim}' if dim else ''}"):
            continue
        points: tuple[np.ndarray, np.ndarray] = data.load(kind, n, dim)
        for dtype, k in itertools.product(options.dtype, options.k):
            title = f"{kind} {n} x {points[0].shape[1]}, k = {k}, {dtype}"
            if not is_begun(title):
                continue
            say(title)
            states, values = (torch.from_numpy(x).to(options.device, getattr(torch, dtype)) for x in points)
            for record in measure(
                kind, states, values, k, options.implementations, options.runs, options.limit, options.clock, say,
                modes, gpu, in_time, of_commit, failures,
            ):  # fmt: skip
                records.append(record)
                if options.lines:
                    say(json.dumps(plain(record)))
                else:
                    show(record)
            if options.json:
                facts = machine_facts(options.device)
                write(options.json, {"machine": facts, "records": [plain(r) for r in records]})
    return records, failures


def _sizes(options: argparse.Namespace) -> list[tuple[str, int, int | None]]:
    """Kind, number of points and, of normal data, dimensions of each problem."""
    sizes: list[tuple[str, int, int | None]] = []
    for kind in options.data:
        if kind == "normal":
            sizes += [(kind, n, dim) for n, dim in options.sizes or itertools.product(options.n, options.dim)]
        else:
            sizes += [(kind, n, None) for n in options.n]
    return sizes


def _size(text: str) -> tuple[int, int]:
    n, _, dim = text.partition("x")
    if not (n.isdecimal() and dim.isdecimal() and int(n) > 0 and int(dim) > 0):
        raise argparse.ArgumentTypeError(f"got '{text}', expected points and dimensions, as in 4096x17")
    return int(n), int(dim)


def _parser() -> argparse.ArgumentParser:
    kinds = "; ".join(f"{name}: {meaning}" for name, meaning in data.KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m qcse_ext.bench",
        description="Time qcse against what else finds k-th neighbours, on the same points in one process. The exit "
        "status is 1 if qcse fails or an answer of ours is not exact.",
    )
    parser.add_argument("--data", nargs="+", default=["normal"], choices=list(data.KINDS), help=kinds)
    parser.add_argument("--n", nargs="+", type=int, default=[1024, 4096, 65536], help="numbers of points")
    parser.add_argument("--dim", nargs="+", type=int, default=[17], help="dimensions of normal data")
    parser.add_argument(
        "--sizes", nargs="+", type=_size, metavar="NxDIM", help="of normal data, as 4096x17, instead of --n and --dim"
    )
    parser.add_argument("--k", nargs="+", type=int, default=[12], help="which neighbour")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "float64"])
    parser.add_argument(
        "--implementations", nargs="+", choices=list(IMPLEMENTATIONS), help="default: all of the device"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--timing",
        nargs="+",
        choices=["eager", "graph"],
        help="of single calls, and in a replayed CUDA graph; default: both on a GPU, eager on a CPU",
    )
    parser.add_argument(
        "--cache",
        nargs="+",
        choices=["warm", "cold"],
        help="where the inputs lie at the start: in the caches or not; default: both on a GPU, warm on a CPU",
    )
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each implementation")
    parser.add_argument(
        "--limit", type=float, default=60, help="leave out what would take more seconds for one run; 1/10 of it for all"
    )
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="begin no problem and no implementation after so many seconds"
    )
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time, see --threads 1")
    parser.add_argument("--quick", action="store_true", help="1024 and 4096 points, 3 runs: some seconds")
    parser.add_argument("--lines", action="store_true", help="print each record as one line of JSON when it is known")
    parser.add_argument("--csv", type=pathlib.Path, help="write the records as CSV")
    parser.add_argument(
        "--json", type=pathlib.Path, help="write the records and the machine's facts as JSON, after every problem"
    )
    parser.add_argument("--plot", type=pathlib.Path, help="write bar charts as PNG")
    parser.add_argument("--peak", action="store_true", help="only the hot loop's share of the multiply-add peak")
    return parser


def _checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fills in what depends on the device, and refuses what it does not have."""
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if not on_gpu and "graph" in (options.timing or []):
        parser.error("--timing graph: CUDA graphs need --device cuda")
    if not on_gpu and "cold" in (options.cache or []):
        parser.error("--cache cold: needs --device cuda, as nothing here empties a CPU's caches")
    if on_gpu and options.clock != "wall":
        parser.error(f"--clock {options.clock}: with --device cuda the GPU's events are the clock; leave it out")
    if options.sizes and "normal" not in options.data:
        parser.error("--sizes: is of normal data, which --data does not name; use --n")
    options.timing = list(dict.fromkeys(options.timing or (["eager", "graph"] if on_gpu else ["eager"])))
    options.cache = list(dict.fromkeys(options.cache or (["warm", "cold"] if on_gpu else ["warm"])))
    if options.implementations is None:
        options.implementations = [name for name, i in IMPLEMENTATIONS.items() if options.device in i.devices]
    options.implementations = list(dict.fromkeys(options.implementations))
    if options.quick:
        options.n, options.runs = [1024, 4096], 3

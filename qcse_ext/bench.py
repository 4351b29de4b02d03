"""python -m qcse_ext.bench: the operator against what a user would run instead, timed side by side in one process.

Every implementation gets the same points and finds the distance to the k-th neighbour of every row. torch and KeOps
solve the joint problem, max of state distance and value gap, and the count; faiss, scikit-learn and SciPy can't, and
solve the easier one in the states alone. Runs are interleaved, medians are reported, and each answer is compared with
the exact one in the same table. Anchors that are not installed are left out, saying so.
"""

import argparse
import csv
import datetime
import importlib
import importlib.util
import json
import math
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import qcse_ext
from qcse_ext import _C, bench_data

__all__ = ["IMPLEMENTATIONS", "Record", "main", "measure"]

Solver = Callable[[], Any]
#: Bytes that an implementation may allocate for a matrix of pairs.
MEMORY = 4 << 30


class Unavailable(Exception):
    """Why an implementation takes no part."""


@dataclass
class Record:
    """One line of results. `max_rel_error` is of the radius against the exact one of the same problem (joint or states
    alone); `exact` says that it is 0 everywhere. `peak_mb` is the resident memory that the first run added at most, in
    MB of 10^6 bytes; None where the system does not tell."""

    implementation: str
    device: str
    threads: int
    data: str
    n: int
    dim: int
    k: int
    dtype: str
    median_ms: float
    spread_ms: float
    runs: int
    exact: bool
    max_rel_error: float
    metric: str
    clock: str
    peak_mb: float | None = None


@dataclass(frozen=True)
class Implementation:
    """`build` prepares nothing but the call: index construction is part of the time. It returns the radii."""

    build: Callable[[Tensor, Tensor, int], Solver]
    metric: str  # "joint" or "states"
    devices: tuple[str, ...]
    growth: int  # exponent of N in the time, to foresee runs that take too long


# --- The implementations ----------------------------------------------------------------------------------------------


def _ours(path: str) -> Callable[[Tensor, Tensor, int], Solver]:
    def build(states: Tensor, values: Tensor, k: int) -> Solver:
        def run() -> Tensor:
            _C.set_search_path(path)
            try:
                return qcse_ext.knn(states, values, k)[0]
            finally:
                _C.set_search_path("auto")

        return run

    return build


def _torch_naive(states: Tensor, values: Tensor, k: int) -> Solver:
    n, dim = states.shape
    if states.device.type == "cpu" and n * n * dim * states.element_size() > MEMORY:
        raise Unavailable(f"needs {n * n * dim * states.element_size() / 2**30:.0f} GiB")

    def run() -> Tensor:
        distance = torch.linalg.vector_norm(states[:, None] - states[None], dim=-1)
        gap = (values[:, None] - values[None]).abs()
        radius = torch.maximum(distance, gap).topk(k + 1, largest=False).values[:, -1]
        ((gap < radius[:, None]).sum(-1) - 1).digamma()
        return radius

    return run


def _torch_cdist(states: Tensor, values: Tensor, k: int) -> Solver:
    n = states.shape[0]
    rows = max(1, min(n, (256 << 20) // (n * states.element_size())))

    def run() -> Tensor:
        radius = torch.empty_like(values)
        for begin in range(0, n, rows):
            part = slice(begin, begin + rows)
            gap = (values[part, None] - values[None]).abs()
            key = torch.maximum(torch.cdist(states[part], states), gap)
            radius[part] = key.topk(k + 1, largest=False).values[:, -1]
            (gap < radius[part, None]).sum(-1)
        return radius

    return run


def _faiss(states: Tensor, values: Tensor, k: int) -> Solver:
    faiss = _module("faiss", "faiss-cpu")
    if states.dtype != torch.float32:
        raise Unavailable("float32 only")
    points = states.numpy()
    faiss.omp_set_num_threads(torch.get_num_threads())

    def run() -> np.ndarray:
        squared, _ = faiss.knn(points, points, k + 1)
        return np.asarray(np.sqrt(np.maximum(squared[:, -1], 0)))

    return run


def _sklearn(states: Tensor, values: Tensor, k: int) -> Solver:
    neighbours = _module("sklearn.neighbors", "scikit-learn")
    points = states.numpy()

    def run() -> np.ndarray:
        model = neighbours.NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=torch.get_num_threads())
        return np.asarray(model.fit(points).kneighbors()[0][:, -1])

    return run


def _ckdtree(states: Tensor, values: Tensor, k: int) -> Solver:
    spatial = _module("scipy.spatial", "scipy")
    points = states.numpy()

    def run() -> np.ndarray:
        tree = spatial.cKDTree(points)
        return np.asarray(tree.query(points, [k + 1], workers=torch.get_num_threads())[0][:, 0])

    return run


def _keops(states: Tensor, values: Tensor, k: int) -> Solver:
    keops = _module("pykeops.torch", "pykeops")
    x, y = keops.LazyTensor(states[:, None].contiguous()), keops.LazyTensor(states[None].contiguous())
    p, q = keops.LazyTensor(values[:, None, None].contiguous()), keops.LazyTensor(values[None, :, None].contiguous())

    def run() -> Tensor:
        gap = (p - q).abs()
        distance = ((x - y) ** 2).sum(-1).sqrt()
        key = (distance - gap).relu() + gap  # the maximum of the two
        radius: Tensor = key.Kmin(k + 1, dim=1)[:, -1]
        return radius

    return run


def _module(name: str, package: str) -> Any:
    if importlib.util.find_spec(name.split(".")[0]) is None:
        raise Unavailable(f"not installed (pip install {package})")
    try:
        return importlib.import_module(name)
    except Exception as error:  # a foreign package may fail in any way, for example for lack of a compiler
        raise Unavailable(f"does not load: {error}") from error


IMPLEMENTATIONS = {
    "qcse": Implementation(_ours("auto"), "joint", ("cpu", "cuda"), 2),
    "qcse-all": Implementation(_ours("all"), "joint", ("cpu",), 2),
    "qcse-boxes": Implementation(_ours("boxes"), "joint", ("cpu",), 2),
    "qcse-screen": Implementation(_ours("screen"), "joint", ("cpu",), 2),
    "torch-naive": Implementation(_torch_naive, "joint", ("cpu", "cuda"), 2),
    "torch-cdist": Implementation(_torch_cdist, "joint", ("cpu", "cuda"), 2),
    "keops": Implementation(_keops, "joint", ("cpu", "cuda"), 2),
    "faiss": Implementation(_faiss, "states", ("cpu",), 2),
    "sklearn": Implementation(_sklearn, "states", ("cpu",), 2),
    "ckdtree": Implementation(_ckdtree, "states", ("cpu",), 2),
}
OURS = ("qcse", "qcse-all", "qcse-boxes", "qcse-screen")


# --- Measuring --------------------------------------------------------------------------------------------------------


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _timed(run: Solver, device: str, clock: str) -> tuple[float, Any]:
    now = time.process_time if clock == "cpu" else time.perf_counter
    _finish(device)
    time.sleep(0.01)  # the idle threads of the run before spin for some milliseconds
    start = now()
    result = run()
    _finish(device)
    return 1e3 * (now() - start), result


class _Memory:
    """How much resident memory a piece of work adds at most, as Linux tells it: `rise()` after the work."""

    def __init__(self) -> None:
        self._before: float | None = None
        try:
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark so far
            self._before = self._read("VmRSS")
        except OSError:
            return

    def rise(self) -> float | None:
        return None if self._before is None else round(self._read("VmHWM") - self._before, 1)

    @staticmethod
    def _read(name: str) -> float:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name + ":"))


def _rel_error(got: Any, exact: Tensor) -> float:
    radius = torch.as_tensor(got).to("cpu", torch.float64)
    exact = exact.to("cpu", torch.float64)
    error = (radius - exact).abs() / exact.clamp(min=torch.finfo(torch.float32).tiny)
    return float(torch.where(radius == exact, 0.0, error).max())


def measure(
    data: str,
    states: Tensor,
    values: Tensor,
    k: int,
    names: list[str],
    runs: int = 9,
    limit_s: float = 60.0,
    clock: str = "wall",
    tell: Callable[[str], None] = print,
) -> Iterator[Record]:
    """Times the named implementations on one problem, interleaved, and compares their radii with the exact ones.

    Args:
        data: what the points are, for the records.
        states: ``[N, D]``.
        values: ``[N]``.
        k: which neighbour.
        names: keys of IMPLEMENTATIONS.
        runs: how often each is timed (slow ones less, at least once).
        limit_s: an implementation that is foreseen to take longer than this for one run is left out.
        clock: "wall", or "cpu" for the processor time of the whole process, which leaves out waiting for a core; for
            comparisons on a busy machine, with one thread.
        tell: is told what is left out, and why.
    """
    device = states.device.type
    n, dim = states.shape
    solvers: dict[str, Solver] = {}
    times: dict[str, list[float]] = {}
    peaks: dict[str, float | None] = {}
    answers: dict[str, Any] = {}
    for name in names:
        implementation = IMPLEMENTATIONS[name]
        try:
            if device not in implementation.devices:
                raise Unavailable(f"not for {device}")
            small = max(2 * k, n // 16)
            if n > 8192 and name not in OURS:
                probe = implementation.build(states[:small].contiguous(), values[:small].contiguous(), k)
                probe()
                foreseen = _timed(probe, device, clock)[0] / 1e3 * (n / small) ** implementation.growth
                if foreseen > limit_s:
                    raise Unavailable(f"would take some {foreseen:.0f} s")
            solvers[name] = implementation.build(states, values, k)
            memory = _Memory()
            warm, answers[name] = _timed(solvers[name], device, clock)
            peaks[name] = memory.rise()
            times[name] = [] if warm < 1e3 * limit_s / 10 else [warm]
        except (Unavailable, torch.OutOfMemoryError) as reason:
            tell(f"  {name}: {reason}")
            solvers.pop(name, None)
    for _ in range(runs):
        for name, run in solvers.items():
            # A slow one does not need as many runs; one that took more than a tenth of the limit has had its run.
            if not times[name] or sum(times[name]) < 100 * limit_s:
                times[name].append(_timed(run, device, clock)[0])
    exact = {"joint": qcse_ext.knn(states, values, k)[0]}
    if any(IMPLEMENTATIONS[name].metric == "states" for name in solvers):
        exact["states"] = qcse_ext.knn(states, torch.zeros_like(values), k)[0]
    for name in solvers:
        error = _rel_error(answers[name], exact[IMPLEMENTATIONS[name].metric])
        spread = statistics.quantiles(times[name], n=4) if len(times[name]) > 1 else [0.0, 0.0, 0.0]
        yield Record(
            implementation=name,
            device=device,
            threads=torch.get_num_threads(),
            data=data,
            n=n,
            dim=dim,
            k=k,
            dtype=str(states.dtype).removeprefix("torch."),
            median_ms=round(statistics.median(times[name]), 4),
            spread_ms=round(spread[2] - spread[0], 4),
            runs=len(times[name]),
            exact=error == 0,
            max_rel_error=error,
            metric=IMPLEMENTATIONS[name].metric,
            clock=clock,
            peak_mb=peaks[name],
        )


def machine_facts(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    facts: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "build": qcse_ext.build_info(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    for package in ("faiss", "sklearn", "scipy", "pykeops"):
        if package in sys.modules:
            facts[package] = getattr(sys.modules[package], "__version__", "unknown")
    return facts


# --- Output -----------------------------------------------------------------------------------------------------------


def table(records: list[Record]) -> str:
    """Milliseconds per problem and implementation, and how many times faster we are than the best other one."""
    names = [name for name in IMPLEMENTATIONS if any(r.implementation == name for r in records)]
    lines = ["| data | k | dtype | " + " | ".join(names) + " | best other / qcse |"]
    lines.append("|---" * (len(names) + 4) + "|")
    problems = list(dict.fromkeys((r.data, r.n, r.dim, r.k, r.dtype, r.threads, r.device) for r in records))
    for problem in problems:
        found = {
            r.implementation: r for r in records if (r.data, r.n, r.dim, r.k, r.dtype, r.threads, r.device) == problem
        }
        cells = []
        for name in names:
            record = found.get(name)
            mark = "" if record is None or record.exact else "*"
            cells.append("" if record is None else f"{record.median_ms:.4g}{mark}")
        others = [r.median_ms for name, r in found.items() if name not in OURS]
        ratio = f"{min(others) / found['qcse'].median_ms:.2f}" if others and "qcse" in found else ""
        data, n, dim, k, dtype, _, _ = problem
        lines.append(f"| {data} {n} x {dim} | {k} | {dtype} | " + " | ".join(cells) + f" | {ratio} |")
    lines.append("\nMilliseconds, medians of interleaved runs. * not exact (see max_rel_error).")
    return "\n".join(lines)


def plot(records: list[Record], path: pathlib.Path) -> None:
    """One bar chart per problem, logarithmic, ours first."""
    matplotlib = _module("matplotlib", "matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    problems = list(dict.fromkeys((r.data, r.n, r.dim, r.k, r.dtype) for r in records))
    columns = min(3, len(problems))
    rows = math.ceil(len(problems) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(problems) :]:
        axis.axis("off")
    for axis, problem in zip(axes.flat, problems):
        chosen = [r for r in records if (r.data, r.n, r.dim, r.k, r.dtype) == problem]
        chosen.sort(key=lambda r: -r.median_ms)
        colours = ["#1b6ca8" if r.implementation in OURS else "#b8b8b8" for r in chosen]
        bars = axis.barh([r.implementation for r in chosen], [r.median_ms for r in chosen], color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=7)
        axis.set_xscale("log")
        axis.margins(x=0.2)
        axis.set_title(f"{problem[0]} {problem[1]} x {problem[2]}, k = {problem[3]}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("ms", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def hot_loop_shares() -> list[dict[str, Any]]:
    """What part of the processor's multiply-adds the hot loop of all pairs reaches, by instruction set and dtype.

    The loop does one subtraction and one multiply-add for each dimension of a pair; the peak is a loop of independent
    multiply-adds on registers, timed in turn with it. Both on one core, in processor time."""
    shares: list[dict[str, Any]] = []
    best = qcse_ext.build_info()["cpu_instruction_set"]
    try:
        for name in qcse_ext.build_info()["cpu_instruction_sets"]:
            _C.set_instruction_set(name)
            for twofold in (False, True):
                for dim in (17, 105):
                    tile, peak = _C.hot_loop_speed(dim, twofold)
                    shares.append(
                        {
                            "instruction_set": name,
                            "dtype": "float64" if twofold else "float32",
                            "dim": dim,
                            "tile_giga_per_s": round(tile / 1e9, 2),
                            "peak_giga_per_s": round(peak / 1e9, 2),
                            "share": round(tile / peak, 3),
                        }
                    )
    finally:
        _C.set_instruction_set(best)
    return shares


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    kinds = "; ".join(f"{name}: {meaning}" for name, meaning in bench_data.KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m qcse_ext.bench",
        description="Time qcse against what else finds k-th neighbours, on the same points in one process.",
    )
    parser.add_argument("--data", nargs="+", default=["normal"], choices=list(bench_data.KINDS), help=kinds)
    parser.add_argument("--n", nargs="+", type=int, default=[1024, 4096, 65536], help="numbers of points")
    parser.add_argument("--dim", nargs="+", type=int, default=[17], help="dimensions of normal data")
    parser.add_argument("--k", nargs="+", type=int, default=[12], help="which neighbour")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "float64"])
    parser.add_argument("--implementations", nargs="+", default=list(IMPLEMENTATIONS), choices=list(IMPLEMENTATIONS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each implementation")
    parser.add_argument("--limit", type=float, default=60, help="leave out what would take more seconds for one run")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time, see --threads 1")
    parser.add_argument("--quick", action="store_true", help="1024 and 4096 points, 3 runs: some seconds")
    parser.add_argument("--csv", type=pathlib.Path, help="write the records as CSV")
    parser.add_argument("--json", type=pathlib.Path, help="write the records and the machine's facts as JSON")
    parser.add_argument("--plot", type=pathlib.Path, help="write bar charts as PNG")
    parser.add_argument("--peak", action="store_true", help="only the hot loop's share of the multiply-add peak")
    options = parser.parse_args(arguments)
    if options.peak:
        shares = hot_loop_shares()
        print("| instruction set | dtype | D | hot loop, G multiply-adds/s | peak | share |\n|---|---|---|---|---|---|")
        for row in shares:
            print("| " + " | ".join(str(x) for x in row.values()) + " |")
        if options.json:
            content: dict[str, Any] = {"machine": machine_facts("cpu"), "hot_loop": shares}
            options.json.write_text(json.dumps(content, indent=1) + "\n")
        return 0
    if options.quick:
        options.n, options.runs = [1024, 4096], 3
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if options.threads:
        torch.set_num_threads(options.threads)

    records: list[Record] = []
    for data in options.data:
        for n in options.n:
            for dim in options.dim if data == "normal" else [None]:
                points = bench_data.load(data, n, dim)
                for dtype in options.dtype:
                    states, values = (torch.from_numpy(x).to(options.device, getattr(torch, dtype)) for x in points)
                    for k in options.k:
                        print(f"{data} {n} x {states.shape[1]}, k = {k}, {dtype}", flush=True)
                        for record in measure(
                            data, states, values, k, options.implementations, options.runs, options.limit, options.clock
                        ):
                            records.append(record)
                            verdict = "exact" if record.exact else f"relative error {record.max_rel_error:.1e}"
                            memory = "" if record.peak_mb is None else f"  {record.peak_mb:8.1f} MB more"
                            time_taken = f"{record.median_ms:10.3f} ms"
                            print(f"  {record.implementation:12} {time_taken}{memory}  {verdict}", flush=True)
    print("\n" + table(records))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(Record.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(r) for r in records)
    if options.json:
        content = {"machine": machine_facts(options.device), "records": [asdict(r) for r in records]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        plot(records, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())

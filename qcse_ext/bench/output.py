"""Records as a table, bar charts and files."""

import json
import math
import os
import pathlib
from typing import Any

from qcse_ext.bench.implementations import IMPLEMENTATIONS, OURS, module
from qcse_ext.bench.records import Record

__all__ = ["plot", "say", "show", "table", "write"]


def table(records: list[Record]) -> str:
    """Milliseconds per problem and implementation, and how many times faster we are than the best other one."""
    names = [name for name in IMPLEMENTATIONS if any(r.implementation == name for r in records)]
    lines = ["| data | k | dtype | timing | " + " | ".join(names) + " | best other / qcse |"]
    lines.append("|---" * (len(names) + 5) + "|")

    def row(r: Record) -> tuple[str, int, int, int, str, int, str, str, str]:
        return r.data, r.n, r.dim, r.k, r.dtype, r.threads, r.device, r.timing, r.cache

    for problem in dict.fromkeys(row(r) for r in records):
        found = {r.implementation: r for r in records if row(r) == problem}
        cells = []
        for name in names:
            record = found.get(name)
            mark = "" if record is None or record.exact else "*"
            cells.append("" if record is None else f"{record.median_ms:.4g}{mark}")
        others = [r.median_ms for name, r in found.items() if name not in OURS]
        ratio = f"{min(others) / found['qcse'].median_ms:.2f}" if others and "qcse" in found else ""
        data, n, dim, k, dtype, _, _, timing, cache = problem
        lines.append(
            f"| {data} {n} x {dim} | {k} | {dtype} | {timing}, {cache} | " + " | ".join(cells) + f" | {ratio} |"
        )
    lines.append("\nMilliseconds, medians of interleaved runs. * not exact on the judged rows (see max_rel_error).")
    return "\n".join(lines)


def plot(records: list[Record], path: pathlib.Path) -> None:
    """One bar chart per problem, logarithmic, ours first."""
    matplotlib = module("matplotlib", "matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def problem_of(r: Record) -> tuple[str, int, int, int, str, str, str]:
        return r.data, r.n, r.dim, r.k, r.dtype, r.timing, r.cache

    problems = list(dict.fromkeys(problem_of(r) for r in records))
    several = len({problem[-2:] for problem in problems}) > 1
    columns = min(3, len(problems))
    rows = math.ceil(len(problems) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(problems) :]:
        axis.axis("off")
    for axis, problem in zip(axes.flat, problems):
        chosen = [r for r in records if problem_of(r) == problem]
        chosen.sort(key=lambda r: -r.median_ms)
        colours = ["#1b6ca8" if r.implementation in OURS else "#b8b8b8" for r in chosen]
        bars = axis.barh([r.implementation for r in chosen], [r.median_ms for r in chosen], color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=7)
        axis.set_xscale("log")
        axis.margins(x=0.2)
        mode = f"\n{problem[-2]}, {problem[-1]}" if several else ""
        axis.set_title(f"{problem[0]} {problem[1]} x {problem[2]}, k = {problem[3]}{mode}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("ms", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """At no moment is there half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def say(text: str) -> None:
    print(text, flush=True)


def show(record: Record) -> None:
    verdict = "exact" if record.exact else f"relative error {record.max_rel_error:.1e}"
    if not record.exact and record.max_rel_error == 0:
        verdict = "wrong count"
    if record.recall is not None:
        verdict += f", recall {record.recall:.4f}"
    memory = "" if record.peak_mb is None else f"  {record.peak_mb:8.1f} MB more"
    mode = "" if record.device == "cpu" else f"{record.timing:5} {record.cache:4} "
    time_taken = f"{record.median_ms:10.3f} ms" if record.device == "cpu" else f"{record.median_ms:10.5f} ms"
    say(f"  {record.implementation:13} {mode}{time_taken}{memory}  {verdict}")

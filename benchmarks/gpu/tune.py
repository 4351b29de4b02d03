"""Writes csrc/knn/cuda/tuned.h from what the laboratory measured: the fastest kernel and tile at each shape.

python benchmarks/gpu/tune.py benchmarks/results/tuning_*.json [--header csrc/knn/cuda/tuned.h]

Each file is a tuning.json of `make gpu-run`. Only exact answers count, and a variant of the rules is kept where the
fastest other is less than 2 % faster. Of several files for one generation of GPUs the last one decides. Without
records the header says so and holds nothing, and all choices go by the rules.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATHS = {"small": "kSmall", "large": "kLarge", "screened": "kScreened"}
RULED = {"small": {"8/2/4/4", "16/1/4/4", "16/1/4/1", "16/1/1/1"}, "screened": {"8/0/128/64"}}
RULED["large"] = RULED["small"]
MARGIN = 1.02
TEMPLATE = """\
// Written by benchmarks/gpu/tune.py from what the laboratory measured; do not edit. {source}#pragma once
// clang-format off

// Variants beyond those of the rules that are fastest somewhere; see variants.h: X(warps, blocks, outer, inner)
{exact}{screened}
// The fastest kernel and variant at each measured shape (float32, k = 12): X(compute capability, queries of all batch
// entries, references, dimensions, path, warps, blocks, outer, inner)
{choices}"""
UNMEASURED = """\
No GPU has been measured yet: every
// choice goes by the rules in launch.cu, small.cu, large.cu and screened.cu.
"""

Record = Mapping[str, Any]
Shape = tuple[int, int, int, int]  # compute capability, queries of all batch entries, references, dimensions


def shape_of(record: Record) -> Shape:
    return record["capability"], record["batch"] * record["queries"], record["n"], record["dim"]


def fastest(records: Sequence[Record]) -> dict[Shape, Record]:
    """The record that decides at each shape, in order of the shapes."""
    chosen: dict[Shape, Record] = {}
    for shape in sorted({shape_of(r) for r in records}):
        here = sorted((r for r in records if shape_of(r) == shape), key=lambda r: r["median_ms"])
        close = [r for r in here if r["median_ms"] <= MARGIN * here[0]["median_ms"]]
        chosen[shape] = next((r for r in close if r["variant"] in RULED[r["kernel"]]), here[0])
    return chosen


def usable(document: Mapping[str, Any]) -> list[Record]:
    """Exact, timed in earnest, of an ordinary search in float32; each with the commit that was measured."""
    return [
        {**r, "commit": document["machine"]["commit"]}
        for r in document["records"]
        if r.get("kernel") in PATHS and r.get("variant") != "rule" and r["exact"] and r["timing"] == "graph"
    ]


def macro(name: str, rows: Sequence[str]) -> str:
    return f"#define {name}(X)" + "".join(f" \\\n  X({row})" for row in rows) + "\n"


def header(records: Sequence[Record]) -> str:
    """The text of tuned.h."""
    chosen = fastest(records)
    extra: dict[str, list[str]] = {"exact": [], "screened": []}
    for record in chosen.values():
        kind = "screened" if record["kernel"] == "screened" else "exact"
        if record["variant"] not in RULED[record["kernel"]] and record["variant"] not in extra[kind]:
            extra[kind].append(record["variant"])
    rows = []
    for (capability, queries, refs, dim), record in chosen.items():
        variant = record["variant"].replace("/", ", ")
        rows.append(f"{capability}, {queries}, {refs}, {dim}, {PATHS[record['kernel']]}, {variant}")
    found = dict.fromkeys(f"//   {r['device']}, commit {r['commit']}\n" for r in records)
    return TEMPLATE.format(
        source=f"Measured on:\n{''.join(found)}" if records else UNMEASURED,
        exact=macro("QCSE_TUNED_EXACT", [v.replace("/", ", ") for v in sorted(extra["exact"])]),
        screened=macro("QCSE_TUNED_SCREENED", [v.replace("/", ", ") for v in sorted(extra["screened"])]),
        choices=macro("QCSE_TUNED_CHOICES", rows),
    )


def report(records: Sequence[Record]) -> str:
    """What the tuned choice gains over the best of the rules' variants of the same measurement."""
    lines = ["capability  queries  references  dim  kernel    variant       ms        best of the rules' variants, ms"]
    for shape, record in fastest(records).items():
        ruled = [r["median_ms"] for r in records if shape_of(r) == shape and r["variant"] in RULED[r["kernel"]]]
        before = f"{min(ruled):.4f}" if ruled else "-"
        capability, queries, refs, dim = shape
        lines.append(
            f"{capability:>10}{queries:>9}{refs:>12}{dim:>5}  {record['kernel']:<10}{record['variant']:<14}"
            f"{record['median_ms']:<10.4f}{before}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="tuning.json files of make gpu-run")
    parser.add_argument("--header", type=Path, default=ROOT / "csrc" / "knn" / "cuda" / "tuned.h")
    options = parser.parse_args(arguments)
    by_generation: dict[int, list[Record]] = {}
    for path in options.results:
        records = usable(json.loads(path.read_text()))
        if not records:
            parser.error(f"{path} holds no exact record of a tile variant; expected a tuning.json of `make gpu-run`")
        for capability in {r["capability"] for r in records}:
            by_generation[capability] = [r for r in records if r["capability"] == capability]
    records = [r for capability in sorted(by_generation) for r in by_generation[capability]]
    options.header.write_text(header(records))
    print(report(records))
    print(f"wrote {options.header}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

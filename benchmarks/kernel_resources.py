"""Compiles every CUDA kernel for every supported architecture and reports registers, spills and static shared memory.

python benchmarks/kernel_resources.py          compares with results/kernel_resources.json; exit status 1 on a new spill
python benchmarks/kernel_resources.py --write  replaces that file

Needs nvcc (on PATH, or named by CUDACXX) and no GPU. Shared memory that a launch asks for is not part of the report: it
depends on the shape of the problem.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "benchmarks" / "results" / "kernel_resources.json"
ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]
FLAGS = ["-std=c++20", "-O3", "--fmad=false", "-Xcompiler=-ffp-contract=off", "-Werror=cross-execution-space-call"]

ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)a?'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")

Record = dict[str, str | int]


def find_nvcc() -> str:
    for name in (os.environ.get("CUDACXX"), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if name and shutil.which(name):
            return name
    sys.exit("kernel_resources: nvcc was not found; install the CUDA toolkit and put it on PATH, or set CUDACXX to it")


def readable(names: list[str]) -> dict[str, str]:
    """Demangled names without namespaces and parameters."""
    if not names:
        return {}
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    short = {}
    for mangled, name in zip(names, done.stdout.splitlines(), strict=True):
        name = name.replace("(anonymous namespace)::", "").replace("qcse::cuda::", "")
        short[mangled] = re.sub(r"\(.*", "", re.sub(r"\((int|bool)\)", "", name)).removeprefix("void ")
    return short


def compile_one(nvcc: str, source: Path, architecture: str) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        target = f"arch=compute_{architecture},code=sm_{architecture}"
        command = [nvcc, *FLAGS, f"-I{ROOT / 'csrc'}", "-gencode", target, "-Xptxas=-v", "-c", str(source)]
        done = subprocess.run([*command, "-o", f"{folder}/kernel.o"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"kernel_resources: {source.name} does not compile for sm_{architecture}\n{done.stderr}{done.stdout}")
    records: list[Record] = []
    for line in (done.stdout + done.stderr).splitlines():
        if found := ENTRY.search(line):
            records.append({"source": source.name, "kernel": found[1], "architecture": architecture})
        elif (found := STACK.search(line)) and records:
            records[-1].update(
                stack_bytes=int(found[1]), spill_store_bytes=int(found[2]), spill_load_bytes=int(found[3])
            )
        elif (found := USED.search(line)) and records:
            records[-1].update(registers=int(found[1]), static_shared_bytes=int(found[2] or 0))
    names = readable([str(r["kernel"]) for r in records])
    for record in records:
        record["kernel"] = names[str(record["kernel"])]
        if "registers" not in record or "stack_bytes" not in record:
            sys.exit(f"kernel_resources: the compiler's report was not understood for {record['kernel']}")
    return records


def collect(nvcc: str, jobs: int) -> list[Record]:
    # sort.cu instantiates CUB's kernels, which are not ours to watch.
    sources = [p for p in sorted((ROOT / "csrc").glob("*/cuda/*.cu")) if p.name != "sort.cu"]
    work = [(nvcc, source, architecture) for source in sources for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(jobs) as pool:
        nested = list(pool.map(lambda item: compile_one(*item), work))
    return sorted(
        (r for some in nested for r in some), key=lambda r: (str(r["source"]), str(r["kernel"]), int(r["architecture"]))
    )


def spills(record: Record) -> int:
    return int(record["spill_store_bytes"]) + int(record["spill_load_bytes"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the report that is kept in the repository")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default: 2)")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    records = collect(nvcc, arguments.jobs)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\S+),", version)
    width = max(len(str(r["kernel"])) for r in records)
    for r in records:
        note = f"  SPILLS {spills(r)} bytes" if spills(r) else ""
        print(f"{r['kernel']:{width}}  sm_{r['architecture']:<4} {r['registers']:>4} registers{note}")
    if arguments.write:
        lines = ",\n".join(f"    {json.dumps(r)}" for r in records)
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(f'{{\n  "nvcc": "{release[1] if release else "?"}",\n  "kernels": [\n{lines}\n  ]\n}}\n')
        print(f"wrote {REPORT.relative_to(ROOT)}: {len(records)} records")
        return 0
    kept = {(r["source"], r["kernel"], r["architecture"]): r for r in json.loads(REPORT.read_text())["kernels"]}
    worse = [
        r
        for r in records
        if spills(r)
        > spills(
            kept.get((r["source"], r["kernel"], r["architecture"]), {"spill_store_bytes": 0, "spill_load_bytes": 0})
        )
    ]
    for r in worse:
        print(f"new spill: {r['kernel']} on sm_{r['architecture']}: {spills(r)} bytes", file=sys.stderr)
    print(f"{len(records)} kernels compiled, {len(worse)} with a new spill, {len(kept)} in the report")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

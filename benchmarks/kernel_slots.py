"""Counts the issue slots of the search kernels' inner loops from their machine code: how many of them do the work?

python benchmarks/kernel_slots.py                      counts this checkout's kernels
python benchmarks/kernel_slots.py --csrc OTHER/csrc    another checkout's, beside which to lay the figures
python benchmarks/kernel_slots.py --write before=OTHER/csrc after=csrc    both, into results/kernel_slots.json

Needs nvcc and nvdisasm or cuobjdump (on PATH, beside nvcc, or in the folder that CUDA_TOOLS names; the packages
nvidia-cuda-nvdisasm and nvidia-cuda-cuobjdump hold them), and no GPU. A slot is one instruction of the disassembly.

screened: of each stretch of code without a branch that holds HMMA (the tensor core's product), what it holds, by kind:
HMMA; load (from shared memory); move; minimum (FMNMX and FSETP, the look at the finished sums); other. `per 16 HMMA`
leaves the minima out. Where a kernel has one such stretch for the first step and a loop for others, each has a line.
exact: of the innermost loop with most FFMA, the FADD and FFMA against all.
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
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from kernel_resources import find_nvcc, readable

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "benchmarks" / "results" / "kernel_slots.json"
FLAGS = ["-std=c++20", "-O3", "--fmad=false", "-Xcompiler=-ffp-contract=off"]
# The kernels for float32 and lists of up to 32: the rule's variant of the screen, and the exact ones' of many queries.
WATCHED = {
    "screened": re.compile(r"knn_screened_kernel<ScreenShape<0(, \d+)?>, float, 1>"),
    "large": re.compile(r"knn_large_kernel<TileShape<float, 16, 1, 4, 4[^>]*>, 1>"),
    "small": re.compile(r"knn_small_kernel<TileShape<float, 16, 1, 4, 4[^>]*>, 1>"),
}
SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)|^\s*Function : (\S+)")
LABEL = re.compile(r"^(\.L_\w+):")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")

Figures = dict[str, str | int | float]


@dataclass
class Function:
    """Instructions in order as (address, opcode, operands), and the addresses of its labels."""

    code: list[tuple[int, str, str]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def target(self, opcode: str, operands: str) -> int | None:
        """Where a branch goes: nvdisasm names a label, cuobjdump an address."""
        if opcode.split(".")[0] != "BRA":
            return None
        if found := re.search(r"\.L_\w+", operands):
            return self.labels.get(found[0])
        found = re.search(r"0x([0-9a-f]+)\s*$", operands)
        return int(found[1], 16) if found else None

    def loops(self) -> list[tuple[int, int]]:
        """First and last address of each stretch that a branch at its end repeats."""
        ends = [(self.target(op, operands), at) for at, op, operands in self.code]
        return [(first, last) for first, last in ends if first is not None and first < last]

    def stretches(self) -> list[list[str]]:
        """Opcodes between branches and what branches go to."""
        leaders = {self.target(op, operands) for _, op, operands in self.code} | set(self.labels.values())
        found: list[list[str]] = [[]]
        for at, op, _ in self.code:
            if at in leaders:
                found.append([])
            found[-1].append(op)
            if op.split(".")[0] in ("BRA", "BRX", "EXIT", "RET", "CALL", "BSYNC", "WARPSYNC"):
                found.append([])
        return found


def find_disassembler(nvcc: str) -> list[str]:
    folders = [os.environ.get("CUDA_TOOLS"), None, str(Path(shutil.which(nvcc) or nvcc).resolve().parent)]
    for name, options in (("nvdisasm", ["-c"]), ("cuobjdump", ["-sass"])):
        for folder in folders:
            found = shutil.which(name, path=folder) if folder else shutil.which(name)
            if found:
                return [found, *options]
    sys.exit("kernel_slots: neither nvdisasm nor cuobjdump was found; install one and name its folder by CUDA_TOOLS")


def functions_in(text: str) -> dict[str, Function]:
    """A disassembly's kernels by their readable names."""
    functions: dict[str, Function] = {}
    present = Function()
    for line in text.splitlines():
        if found := SECTION.match(line):
            present = functions.setdefault(found[1] or found[2], Function())
        elif found := LABEL.match(line):
            present.labels[found[1]] = present.code[-1][0] + 16 if present.code else 0
        elif found := INSTRUCTION.match(line):
            present.code.append((int(found[1], 16), found[2], found[3]))
    names = readable(list(functions))
    return {names[mangled]: function for mangled, function in functions.items()}


def disassemble(nvcc: str, csrc: Path, source: str, architecture: str) -> dict[str, Function]:
    """The source's kernels by their readable names."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = f"{folder}/{source}.cubin"
        target = f"arch=compute_{architecture},code=sm_{architecture}"
        command = [nvcc, *FLAGS, f"-I{csrc}", "-gencode", target, "-cubin", "-o", cubin]
        done = subprocess.run([*command, str(csrc / "knn" / "cuda" / f"{source}.cu")], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"kernel_slots: {source}.cu does not compile\n{done.stderr}")
        text = subprocess.run([*find_disassembler(nvcc), cubin], capture_output=True, text=True, check=True).stdout
    return functions_in(text)


def kind_of(opcode: str) -> str:
    name = opcode.split(".")[0]
    if name in ("HMMA", "FADD", "FFMA"):
        return name
    if name in ("LDS", "LDSM"):
        return "load"
    if name in ("MOV", "UMOV", "CS2R") or opcode.startswith("IMAD.MOV"):
        return "move"
    return "minimum" if name in ("FMNMX", "FMNMX3", "FSETP") else "other"


def screened_figures(function: Function) -> list[Figures]:
    found: list[Figures] = []
    for stretch in function.stretches():
        kinds = Counter(map(kind_of, stretch))
        if kinds["HMMA"] == 0:
            continue
        product = len(stretch) - kinds["minimum"]
        figures: Figures = {"slots": len(stretch)}
        figures |= {kind: kinds[kind] for kind in ("HMMA", "load", "move", "minimum")}
        rest = len(stretch) - sum(int(figures[kind]) for kind in ("HMMA", "load", "move", "minimum"))
        found.append(figures | {"other": rest, "per 16 HMMA": round(product * 16 / kinds["HMMA"], 1)})
    return found


def exact_figures(function: Function) -> list[Figures]:
    best: Counter[str] = Counter()
    loops = function.loops()
    for first, last in loops:
        if any(first <= begin and end <= last and (begin, end) != (first, last) for begin, end in loops):
            continue  # not the innermost
        kinds = Counter(kind_of(op) for at, op, _ in function.code if first <= at <= last)
        if kinds["FFMA"] > best["FFMA"]:
            best = kinds
    slots, work = best.total(), best["FADD"] + best["FFMA"]
    figures: Figures = {"slots": slots, "FADD": best["FADD"], "FFMA": best["FFMA"], "load": best["load"]}
    return [figures | {"move": best["move"], "share of FADD and FFMA": round(work / max(slots, 1), 3)}]


def count(nvcc: str, csrc: Path, architecture: str) -> list[Figures]:
    records: list[Figures] = []
    for source, watched in WATCHED.items():
        for name, function in sorted(disassemble(nvcc, csrc, source, architecture).items()):
            if watched.fullmatch(name):
                told = screened_figures(function) if source == "screened" else exact_figures(function)
                records += [{"kernel": name} | figures for figures in told]
    if len({r["kernel"] for r in records}) < len(WATCHED):
        sys.exit("kernel_slots: a kernel that is watched was not found; see WATCHED")
    return records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csrc", type=Path, default=ROOT / "csrc", help="the sources (default: this checkout's)")
    parser.add_argument("--architecture", default="90", help="compute capability without its point (default: 90)")
    parser.add_argument("--write", nargs="+", metavar="NAME=CSRC", help="replace the report by these checkouts'")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    checkouts = {"": arguments.csrc}
    if arguments.write:
        checkouts = {name: Path(path) for name, _, path in (word.partition("=") for word in arguments.write)}
    report = {name: count(nvcc, csrc, arguments.architecture) for name, csrc in checkouts.items()}
    for name, records in report.items():
        if name:
            print(name)
        for r in records:
            print(f"{r['kernel']}: " + ", ".join(f"{value} {key}" for key, value in r.items() if key != "kernel"))
    if arguments.write:
        parts = [
            f"  {json.dumps(name)}: [\n" + ",\n".join(f"    {json.dumps(r)}" for r in records) + "\n  ]"
            for name, records in report.items()
        ]
        REPORT.write_text(f'{{\n  "architecture": "sm_{arguments.architecture}",\n' + ",\n".join(parts) + "\n}\n")
        print(f"wrote {REPORT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

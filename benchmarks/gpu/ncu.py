"""Lets Nsight Compute look at one launch of each kernel that the laboratory's `profile` command makes.

python benchmarks/gpu/ncu.py LAB OUT

Writes OUT/profile.ncu-rep.gz (for ncu-ui, unpacked, beside the sources), OUT/profile.csv (all metrics) and
OUT/profile_source.csv.gz (counters for each instruction), and prints the first figures of each launch. The clocks are
left as they are.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SECTIONS = ["SpeedOfLight", "LaunchStats", "Occupancy", "SchedulerStats", "WarpStateStats", "ComputeWorkloadAnalysis"]
SECTIONS += ["MemoryWorkloadAnalysis", "SourceCounters"]
KERNELS = "regex:^knn_(small|large|screened)_kernel"
SHOWN = {
    "Duration": "duration",
    "Compute (SM) Throughput": "compute_throughput",
    "Memory Throughput": "memory_throughput",
    "Registers Per Thread": "registers",
    "Achieved Occupancy": "achieved_occupancy",
    "Issue Slots Busy": "issue_slots_busy",
    "No Eligible": "no_eligible",
}


def find_ncu() -> str | None:
    beside = Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc").resolve().parent / "ncu"
    return shutil.which("ncu") or (str(beside) if beside.exists() else None)


def main(lab: str, out: str) -> int:
    ncu = find_ncu()
    if ncu is None:
        print("ncu was not found beside nvcc nor on PATH: nothing is profiled")
        return 1
    report = Path(tempfile.mkdtemp()) / "profile.ncu-rep"
    command = [ncu, "--clock-control", "none", "--kernel-name", KERNELS, "--force-overwrite", "--export", str(report)]
    for section in SECTIONS:
        command += ["--section", section]
    status = subprocess.run([*command, lab, "profile", "--device", "cuda"]).returncode
    if not report.exists():
        print(f"ncu ended with status {status} and left no report")
        return 1
    read = [ncu, "--import", str(report), "--csv", "--page"]
    details = subprocess.run([*read, "details"], capture_output=True, text=True).stdout
    (Path(out) / "profile.csv").write_text(details)
    launches: dict[str, dict[str, str]] = {}
    table = details[details.find('"ID"') :]
    for row in csv.DictReader(io.StringIO(table)):
        launch = launches.setdefault(row["ID"], {"profiled_kernel": row["Kernel Name"], "grid": row["Grid Size"]})
        name = SHOWN.get(row.get("Metric Name", ""))
        if name is not None and name not in launch:  # some names come again in another section, in other units
            launch[name] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    for launch in launches.values():
        print(json.dumps(launch))
    source = subprocess.run([*read, "source"], capture_output=True, text=True).stdout
    with gzip.open(Path(out) / "profile_source.csv.gz", "wt") as file:
        file.write(source)
    with report.open("rb") as whole, gzip.open(Path(out) / "profile.ncu-rep.gz", "wb") as packed:
        shutil.copyfileobj(whole, packed)
    return status or (0 if launches else 1)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {os.path.basename(sys.argv[0])} LAB OUT")
    sys.exit(main(*sys.argv[1:]))

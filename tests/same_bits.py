"""Does this checkout train to the same bits as another revision? For changes that are to move none.

python -P tests/same_bits.py REVISION [--all] [--seeds 2]

The revision is built into build/same-bits, the installed package stands for this checkout. Both train the same short
runs on the embedded data, offline and online, two algorithms with the bonus or (--all) every algorithm with one of the
bonuses in turn, several seeds in a process. Compared are all columns of eval.csv and train.csv but times, and what the
checkpoint holds of networks, optimiser, bonus, generators, environments and buffer.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from qcse.config.algorithms import NAMES as ALGORITHMS
from qcse.config.bonuses import NAMES as BONUSES
from qcse.data.tasks import embedded

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("wall_seconds", "steps_per_second")
PARTS = ("agent", "reward", "streams", "environments", "episodes", "metrics", "buffer", "observation_scale", "step")
COMMON = """
    --env Hopper-v5 --offline-steps 300 --online-steps 600 --learning-starts 100 --random-steps 100 --batch-size 64
    --net.policy-hidden 64 64 --net.critic-hidden 64 64 --normalize-observations --eval-every 300 --eval-episodes 3
    --log-every 50 --threads 1 --updates-per-step 2
"""


def built(revision: str) -> Path:
    """The folder that the packages of a revision are installed in."""
    commit = subprocess.check_output(["git", "-C", ROOT, "rev-parse", f"{revision}^{{commit}}"], text=True).strip()
    folder = ROOT / "build" / "same-bits" / commit
    if not (folder / "site" / "qcse").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "source").mkdir(parents=True)
        archive = subprocess.Popen(["git", "-C", ROOT, "archive", commit], stdout=subprocess.PIPE)
        subprocess.run(["tar", "x", "-C", folder / "source"], stdin=archive.stdout, check=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        build = ["--no-build-isolation", "-C", f"build-dir={folder / 'build'}", "-C", "cmake.define.QCSE_CUDA=OFF"]
        subprocess.run([*pip, *build, "--target", folder / "site", folder / "source"], check=True)
    return folder / "site"


def train(words: list[str], site: Path | None) -> None:
    environment = os.environ | ({} if site is None else {"PYTHONPATH": str(site)})
    command = [sys.executable, "-P", "-m", "qcse", "train", *COMMON.split(), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def leaves(value: object, where: str) -> dict[str, object]:
    """Name -> tensor, number or text in nested dicts and lists."""
    if isinstance(value, dict):
        parts = [leaves(item, f"{where}.{name}") for name, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [leaves(item, f"{where}[{i}]") for i, item in enumerate(value)]
    else:
        return {where: value}
    return {name: leaf for part in parts for name, leaf in part.items()}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
    return a == b or (a != a and b != b)


def differences(before: Path, now: Path) -> tuple[list[str], str]:
    """What differs between two run folders, and what was compared."""
    tables = [path.relative_to(before) for path in sorted(before.rglob("*.csv"))]
    found = [str(path) for path in tables if table(before / path) != table(now / path)]
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (before, now)]
    a, b = (leaves({part: state[part] for part in PARTS}, "") for state in states)
    found += sorted(a.keys() ^ b.keys()) + [name for name in a.keys() & b.keys() if not same(a[name], b[name])]
    rows, tensors = sum(len(table(before / path)) for path in tables), sum(map(torch.is_tensor, a.values()))
    return found, f"{rows} rows of {len(tables)} tables, {tensors} tensors and {len(a) - tensors} numbers"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--all", action="store_true", help="every algorithm")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    site, moved = built(given.revision), 0
    pairs = zip(ALGORITHMS, itertools.cycle(name for name in BONUSES if name != "none"), strict=False)
    for algo, bonus in pairs if given.all else [("cal_ql", "qcse"), ("rlpd", "qcse")]:
        words = ["--algo", algo, "--bonus", bonus, "--dataset", str(embedded("hopper-replay.hdf5"))]
        words += ["--seeds", str(given.seeds)]
        with tempfile.TemporaryDirectory() as scratch:
            folders = [Path(scratch) / name for name in ("before", "now")]
            for folder, where in zip(folders, (site, None), strict=True):
                train([*words, "--out", str(folder)], where)
            found, compared = differences(*folders)
        moved += bool(found)
        verdict = f"differ in {', '.join(found[:5])}" if found else "equal"
        print(f"{algo} {bonus} {given.seeds} seeds: {verdict} ({compared})", flush=True)
    print(f"{moved} pairs differ" if moved else f"the same bits as {given.revision}")
    sys.exit(1 if moved else 0)

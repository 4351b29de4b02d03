"""Does this checkout train to the same bits as another revision? For changes that are to move none.

python -P tests/same_bits.py REVISION [--all] [--seeds 2]

The revision is built into build/same-bits, the installed package stands for this checkout. Both train the same short
runs on the embedded data, offline and online, two algorithms with the bonus or (--all) every algorithm with one of the
bonuses in turn, several seeds in a process. Compared is what tests/crash/run.py compares: all columns of eval.csv and
train.csv but times, and what the checkpoint holds of networks, optimiser, bonus, generators, environments and buffer.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from qcse.config.algorithms import NAMES as ALGORITHMS
from qcse.config.bonuses import NAMES as BONUSES
from qcse.data.tasks import embedded

sys.path.insert(0, str(Path(__file__).resolve().parent / "crash"))
from run import results

ROOT = Path(__file__).resolve().parents[1]
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


def compared(before: Path, now: Path) -> tuple[list[str], str]:
    """What differs between two run folders, and what was looked at."""
    a, b = results(before), results(now)
    names = {name for name in a.keys() | b.keys() if not name.startswith("kept ")}  # which earlier versions do not keep
    found = sorted(name for name in names if a.get(name) != b.get(name))
    tables = [rows for name, rows in a.items() if name.endswith(".csv")]
    return (
        found,
        f"{sum(map(len, tables))} rows of {len(tables)} tables, {len(a) - len(tables)} parts of the checkpoint",
    )


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
            found, looked_at = compared(*folders)
        moved += bool(found)
        verdict = f"differ in {', '.join(found[:5])}" if found else "equal"
        print(f"{algo} {bonus} {given.seeds} seeds: {verdict} ({looked_at})", flush=True)
    print(f"{moved} pairs differ" if moved else f"the same bits as {given.revision}")
    sys.exit(1 if moved else 0)

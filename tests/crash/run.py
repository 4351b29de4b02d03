"""Runs that are killed again and again, a third of the time amid a write, end with the bits of runs that never were.

Each configuration is trained once without interruption. A second run of it is killed at random moments and resumed
until its share of the kills is used up, then left to finish; its logs and its checkpoint must be equal. Beside that: a
disk that becomes full, and a folder that may not be written.

    python tests/crash/run.py --kills 100
"""

from __future__ import annotations

import argparse
import collections
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from qcse.data.tasks import embedded
from qcse.runs import checkpoint

HERE = Path(__file__).parent
QUICK = """
    --env Hopper-v5 --net.policy-hidden 16 16 --net.critic-hidden 16 16 --batch-size 32 --cql.actions 2 --bonus.k 5
    --eval-episodes 1 --log-every 20 --eval-every 200 --checkpoint-seconds 0.03 --threads 1 --device cpu
"""
# A ring of four segments at least has segments; the one with references 'buffer' has.
RUNS = {
    "cal_ql qcse batch": "--algo cal_ql --bonus qcse --bonus.references batch --offline-steps 300 --online-steps 500",
    "cal_ql rnd 3 seeds": "--algo cal_ql --bonus rnd --seeds 3 --offline-steps 150 --online-steps 300 "
    "--keep-checkpoints evaluations",
    "cql qcse buffer": "--algo cql --bonus qcse --bonus.references buffer --offline-steps 100 --online-steps 4200 "
    "--learning-starts 3500 --log-every 100 --eval-every 1000",
    "cql qcse 3 seeds": "--algo cql --bonus qcse --seeds 3 --offline-steps 150 --online-steps 300",
    "rlpd qcse batch 3 seeds": "--algo rlpd --bonus qcse --bonus.references batch --seeds 3 --net.critics 3 "
    "--learning-starts 50 --random-steps 50 --updates-per-step 2 --online-steps 400",
    "rlpd rnd": "--algo rlpd --bonus rnd --net.critics 3 --learning-starts 50 --random-steps 50 --updates-per-step 2 "
    "--online-steps 600",
    "cal_ql qcse pretrained": "--algo cal_ql --bonus qcse --init-from SOURCE --online-steps 500",
}
SOURCE = "--algo cal_ql --offline-steps 150 --online-steps 0"  # what the one named SOURCE is started with
TIMED = ("wall_seconds", "steps_per_second")  # what the clock decides


def command(words: str, out: Path, resume: bool) -> list[str]:
    source = str(out.parents[1] / "source")
    told = [source if word == "SOURCE" else word for word in words.split()]
    options = ["--resume", str(out)] if resume else [*QUICK.split(), *told, "--out", str(out)]
    data = [] if resume else ["--dataset", str(embedded("hopper-replay.hdf5"))]
    return [sys.executable, "-P", "-m", "qcse", "train", *options, *data]


def started(words: str, out: Path, shim: Path | None = None, **trouble: int) -> subprocess.Popen[str]:
    """The run in `out`, begun or resumed, with the trouble that shim.c makes."""
    env = dict(os.environ)
    if shim is not None:
        env |= {"LD_PRELOAD": str(shim), "CRASH_ROOT": str(out)}
        env |= {f"CRASH_{name.upper()}": str(value) for name, value in trouble.items()}
    resume = (out / "config.json").exists()
    return subprocess.Popen(
        command(words, out, resume), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def results(out: Path) -> dict[str, Any]:
    """All that must be equal to the bit."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*.csv")):
        with open(path, newline="") as file:
            rows = [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]
        found[str(path.relative_to(out))] = rows
    state = checkpoint.load_run(out)
    assert state is not None
    for number in range(*state["buffer"]["segments"]):
        found[f"segment {number}"] = flat(checkpoint.load(out / "buffer" / f"{number:06d}.pt")["columns"])
    parts = ("agent", "reward", "buffer", "streams", "environments", "episodes", "metrics", "observation_scale", "step")
    for name in parts:
        found[name] = flat(state[name])
    found["buffer"].pop("segment_size", None)  # how it lies on the disk, which earlier versions do not say
    for path in sorted(out.glob(f"{checkpoint.KEPT}/*.pt")):
        kept = checkpoint.load(path)
        found[f"kept {path.name}"] = {name: flat(kept[name]) for name in parts if name in kept}
    return found


def flat(value: Any) -> Any:
    """Tensors as their bytes, so that == compares bits."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {name: flat(item) for name, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, list | tuple) else repr(value)


def torment(name: str, kills: int, folder: Path, shim: Path, seed: int) -> collections.Counter[str]:
    """Kill one configuration's run so many times and compare; AssertionError where something is lost."""
    rng, count = random.Random(f"{name} {seed}"), collections.Counter[str]()
    words, whole = RUNS[name], folder / "whole"
    begun = time.monotonic()
    process = started(words, whole)
    assert process.wait() == 0, f"{name}: {process.stderr.read()}"  # type: ignore[union-attr]
    takes, expected, round_ = time.monotonic() - begun, results(whole), 0
    while count["kills"] < kills:
        out, round_ = folder / f"broken{round_}", round_ + 1
        finished = False
        while not finished:
            left = kills - count["kills"]
            amid = left > 0 and count["amid writes"] * 3 <= count["kills"]
            process = started(words, out, shim if amid else None, kill=rng.randrange(1, 150))
            try:
                _, errors = process.communicate(timeout=None if amid or left <= 0 else rng.uniform(0.0, takes))
            except subprocess.TimeoutExpired:
                process.kill()
                _, errors = process.communicate()
            if process.returncode == -signal.SIGKILL:
                count.update(["kills", "amid writes"] if amid else ["kills"])
                continue
            assert process.returncode == 0, f"{name}: {errors}"
            finished, takes = True, max(3.0, 0.8 * takes)  # it may take less than it did: be quicker
        found = results(out)
        different = [part for part in expected if expected[part] != found.get(part)]
        assert not different and expected.keys() == found.keys(), f"{name}: {out} differs in {different}"
        left_over = [path for path in out.rglob("*") if path.suffix in (".partial", ".lock")]
        assert not left_over, f"{name}: {left_over}"
        count["runs compared"] += 1
    return count


def full_disk(folder: Path, shim: Path) -> int:
    """A disk that becomes full at different writes: one line that names a file, and nothing lost. Returns how many."""
    words = RUNS["cal_ql qcse batch"]
    process = started(words, folder / "whole")
    assert process.wait() == 0
    expected, tried = results(folder / "whole"), (1, 3, 9, 30, 100)
    for at in tried:
        out = folder / f"full{at}"
        process = started(words, out, shim, full=at)
        errors = process.communicate()[1]
        last = errors.strip().splitlines()[-1] if errors else ""
        assert process.returncode == 1 and "Traceback" not in errors, f"full at write {at}: {errors}"
        assert "No space left" in last and str(out) in last, f"full at write {at}: {last}"
        process = started(words, out)
        assert process.wait() == 0, f"full at write {at}: {process.stderr.read()}"  # type: ignore[union-attr]
        assert results(out) == expected, f"full at write {at}: other results"
    return len(tried)


def read_only(folder: Path, shim: Path) -> int:
    """A folder that may not be written: neither begun nor resumed, in one line each, and nothing changed."""
    words, out = RUNS["cal_ql qcse batch"], folder / "run"
    process = started(words, out, shim, kill=120)
    process.communicate()
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"}
    for place in (out, folder / "another"):
        process = started(words, place, shim, readonly=1)
        errors = process.communicate()[1]
        assert process.returncode == 1 and "Traceback" not in errors and "Read-only" in errors, errors
        assert len(errors.strip().splitlines()) == 1 and str(place) in errors, errors
    assert not (folder / "another").exists()
    assert all(path.read_bytes() == content for path, content in files.items())
    return 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qcse-crash-") as scratch, ThreadPoolExecutor(args.jobs) as pool:
        root = Path(scratch)
        shim = root / "shim.so"
        subprocess.run(["cc", "-O1", "-fPIC", "-shared", "-o", str(shim), str(HERE / "shim.c"), "-ldl"], check=True)
        shares = [args.kills * (i + 1) // len(RUNS) - args.kills * i // len(RUNS) for i in range(len(RUNS))]
        folders = [root / str(i) for i in range(len(RUNS) + 2)]
        for folder in folders:
            folder.mkdir()
        process = started(SOURCE, root / "source")
        assert process.wait() == 0, process.stderr.read()  # type: ignore[union-attr]
        jobs = [
            pool.submit(torment, name, share, folder, shim, args.seed)
            for name, share, folder in zip(RUNS, shares, folders, strict=False)
        ]
        disks, readers = pool.submit(full_disk, folders[-2], shim), pool.submit(read_only, folders[-1], shim)
        total = collections.Counter[str]()
        for name, job in zip(RUNS, jobs, strict=True):
            total += job.result()
            print(f"{name:<26} {', '.join(f'{what} {n}' for what, n in job.result().items())}", flush=True)
        print(f"full disk                  {disks.result()} times, one line each, then resumed to equal bits")
        print(f"read-only                  {readers.result()} times, one line each, nothing changed")
        print(f"{total['kills']} kills, {total['amid writes']} of them amid writes: nothing lost, all bits equal")


if __name__ == "__main__":
    main()

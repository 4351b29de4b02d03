"""`qcse demo`: offline-to-online on the embedded Hopper dataset, with and without the bonus, side by side."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from .errors import ConfigError, QcseError
from .report import report

if TYPE_CHECKING:
    from .cli import DemoArgs

DATASET = "hopper-replay.hdf5"
# Small enough for a few minutes on two cores: small networks, few sampled actions. A weak conservative term, because
# the data hold exploration of their own, and half of each online batch from the dataset.
OPTIONS = {
    "--env": "Hopper-v5",
    "--batch-size": "128",
    "--net.policy-hidden": "128 128",
    "--net.critic-hidden": "128 128",
    "--policy-lr": "3e-4",
    "--cql.actions": "4",
    "--cql.alpha": "0.1",
    "--offline-fraction": "0.5",
    "--normalize-observations": "",
    "--eval-episodes": "10",
    "--eval-every": "1000",
    "--log-every": "250",
    "--threads": "1",
}


def embedded_dataset() -> Path:
    """The Hopper dataset that is installed with the package."""
    return Path(str(files("qcse") / "data" / DATASET))


def demo(args: DemoArgs) -> int:
    """Run both arms for each seed, two processes at a time, then print the comparison and write the report."""
    if args.offline_steps < 1 or args.online_steps < 1:
        raise ConfigError(
            f"offline_steps, online_steps: got {args.offline_steps}, {args.online_steps}, expected 1 or more"
        )
    started = time.monotonic()
    print(
        f"Hopper-v5, {args.algo}: {args.offline_steps} updates on the embedded dataset, then {args.online_steps} "
        f"environment steps, without and with the bonus; seeds {', '.join(map(str, args.seeds))}.\n"
        "A small demonstration: small networks, few steps, few seeds. Its scores say that the pipeline learns, not "
        "which arm is better."
    )
    arms = {
        args.out / f"{args.algo}-{bonus}-seed{seed}": (bonus, seed) for seed in args.seeds for bonus in ("none", "qcse")
    }
    args.out.mkdir(parents=True, exist_ok=True)
    waiting = [(out, _command(args, out, bonus, seed)) for out, (bonus, seed) in arms.items()]
    steps = args.offline_steps + args.online_steps
    running: dict[Path, subprocess.Popen] = {}
    try:
        with tqdm(total=steps * len(arms), unit="step", desc="training") as bar:
            while waiting or running:
                while waiting and len(running) < min(2, os.cpu_count() or 1):
                    out, command = waiting.pop(0)
                    running[out] = _start(out, command)
                time.sleep(0.5)
                for out, process in list(running.items()):
                    if process.poll() is not None:
                        del running[out]
                        _check(out, process.returncode)
                bar.n = sum(_progress(out) for out in arms)
                bar.refresh()
    finally:
        for process in running.values():
            process.terminate()  # it saves its checkpoint; the next `qcse demo` continues there
            process.wait()
    _table(arms)
    print(report(list(arms), args.out))
    print(
        f"\ndone in {time.monotonic() - started:.0f} s. The full protocol on your own data:\n"
        "  qcse train --algo cal_ql --env Hopper-v5 --dataset hopper-medium-replay.hdf5 --bonus qcse\n"
        "(250,000 updates offline and 250,000 steps online; several seeds; compare with --bonus none)"
    )
    return 0


def _command(args: DemoArgs, out: Path, bonus: str, seed: int) -> list[str]:
    command = [sys.executable, "-P", "-m", "qcse", "train"]  # -P: the installed package, not the folder we stand in
    if (out / "config.json").exists():
        return [*command, "--resume", str(out)]
    options = OPTIONS | {
        "--algo": args.algo,
        "--dataset": str(embedded_dataset()),
        "--bonus": bonus,
        "--seed": str(seed),
        "--offline-steps": str(args.offline_steps),
        "--online-steps": str(args.online_steps),
        "--out": str(out),
    }
    return command + [word for name, value in options.items() for word in (name, *value.split())]


def _start(out: Path, command: list[str]) -> subprocess.Popen:
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def _check(out: Path, code: int) -> None:
    if code != 0:
        log = out.with_suffix(".log")
        last = "\n".join(log.read_text(errors="replace").strip().splitlines()[-5:])
        raise QcseError(f"the run {out} ended with exit code {code}; the end of {log}:\n{last}")


def _rows(out: Path, name: str) -> list[dict[str, str]]:
    path = out / name
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _progress(out: Path) -> int:
    rows = _rows(out, "train.csv")
    return int(rows[-1]["step"]) if rows else 0


def _table(arms: dict[Path, tuple[str, int]]) -> None:
    """Scores of the untrained, the offline and the fine-tuned policy of each run."""
    print("\nnormalised score (0: random policy, 100: expert; D4RL's constants)")
    print(f"{'bonus':<8}{'seed':>5}{'untrained':>12}{'offline':>10}{'fine-tuned':>12}{'best online':>13}")
    for out, (bonus, seed) in arms.items():
        rows = [(r["phase"], float(r["normalized_score"])) for r in _rows(out, "eval.csv")]
        offline = [score for phase, score in rows if phase == "offline"]
        online = [score for phase, score in rows if phase == "online"]
        print(f"{bonus:<8}{seed:>5}{offline[0]:>12.1f}{offline[-1]:>10.1f}{online[-1]:>12.1f}{max(online):>13.1f}")
    print()

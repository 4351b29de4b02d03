"""Training runs in processes of their own, several at a time."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import QcseError
from .folder import run_folders
from .layout import log_of
from .signals import WITH_PARENT, stop_signals


def train_command(out: Path, options: Sequence[str]) -> list[str]:
    """The command that starts the run in `out` with these options, or continues it where it has begun."""
    command = [sys.executable, "-P", "-m", "qcse", "train"]  # -P: the installed package, not the folder we stand in
    # The options go along with --resume, which refuses those that contradict what the run was started with.
    return [*command, *options, *(["--resume"] if (out / "config.json").exists() else ["--out"]), str(out)]


def run_all(runs: Mapping[Path, Sequence[str]], steps: int, workers: int) -> None:
    """Train every run folder with its options, `workers` processes at a time, with a live line for each.

    A process's output goes to <folder>.log. On an error, Ctrl-C or a hang-up the others are stopped; they save their
    checkpoints, so that the same call goes on where this one stopped. They stop, too, where this process is killed.

    Raises:
        QcseError: a run failed; the message holds the end of its log.
    """
    waiting = list(runs)
    running: dict[Path, subprocess.Popen[bytes]] = {}
    bars: dict[Path, tqdm[Any]] = {}
    quiet = not sys.stderr.isatty()
    try:
        _stop_on_signals()
        while waiting or running:
            while waiting and len(running) < workers:
                out = waiting.pop(0)
                out.parent.mkdir(parents=True, exist_ok=True)
                command = train_command(out, runs[out])
                with open(log_of(out), "ab") as log:
                    # In a session of its own: Ctrl-C reaches this process only, which then ends the others in order.
                    # Nothing is written to the pipe; its end tells that this process is gone.
                    running[out] = subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=log,
                        stdin=subprocess.PIPE,
                        start_new_session=True,
                        env=os.environ | {WITH_PARENT: "1"},
                    )
                bars[out] = tqdm(total=steps, desc=out.name, unit="step", position=len(bars), disable=quiet)
            time.sleep(0.5)
            for out, process in list(running.items()):
                ended = process.poll() is not None
                _show(bars[out], out)
                if ended:
                    _closed(running.pop(out))
                    if process.returncode != 0:
                        raise QcseError(_failure(out, process.returncode))
                    if quiet:
                        print(f"{out.name}: complete, score {_score(out)}", flush=True)
    finally:
        for process in running.values():
            process.terminate()  # it saves its checkpoint
        for process in running.values():
            process.wait()
            _closed(process)
        for bar in bars.values():
            bar.close()


def _closed(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _stop_on_signals() -> None:
    """Ctrl-C, SIGTERM and a hang-up that is not ignored end this process by KeyboardInterrupt, the first two even where
    a shell had told it to ignore them."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in stop_signals():
            signal.signal(number, stop)


def rows(path: Path) -> list[dict[str, str]]:
    """Whole rows of a log that may be being written."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def _failure(out: Path, code: int) -> str:
    last = "\n".join(log_of(out).read_text(errors="replace").strip().splitlines()[-5:])
    return f"the run {out} ended with exit code {code}; the end of {log_of(out)}:\n{last}"


def _score(out: Path) -> str:
    """Mean over the folder's seeds of their last scores (returns, where there is no reference)."""
    last = [found[-1] for folder in run_folders(out) if (found := rows(folder / "eval.csv"))]
    scores = [float(row["normalized_score"]) for row in last]
    if not scores or any(score != score for score in scores):
        scores = [float(row["return_mean"]) for row in last]
    return f"{sum(scores) / len(scores):.1f}" if scores else "-"


def _show(bar: tqdm[Any], out: Path) -> None:
    trained = [int(found[-1]["step"]) for folder in run_folders(out) if (found := rows(folder / "train.csv"))]
    bar.n = min(trained, default=0)
    bar.set_postfix_str(f"score {_score(out)}", refresh=False)
    bar.refresh()

"""Training runs in processes of their own, several at a time."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import QcseError
from .folder import run_folders
from .layout import log_of
from .resources import Job, Queue, Resources
from .signals import WITH_PARENT, stop_signals


def train_command(job: Job) -> list[str]:
    """The command that starts a job's run, or continues it where it has begun."""
    command = [sys.executable, "-P", "-m", "qcse", "train"]  # -P: the installed package, not the folder we stand in
    command += job.words
    if (job.out / "config.json").exists():
        # The options go along with --resume, which refuses those that contradict what the run was started with.
        return [*command, "--resume", str(job.out)]
    source = [] if job.source is None else ["--init-from", str(job.source)]
    return [*command, *source, "--out", str(job.out)]


def run_all(jobs: Sequence[Job], available: Resources) -> None:
    """Train the run of every job, as many at a time as there is room for, with a live line for each.

    A process's output goes to <folder>.log. Where a run fails, those that do not start from it go on. On Ctrl-C or a
    hang-up all are stopped; they save their checkpoints, so that the same call goes on where this one stopped. They
    stop, too, where this process is killed.

    Args:
        jobs: in the order in which they are wished for; one whose source is among them waits for it.
        available: what they share.

    Raises:
        QcseError: runs failed; the message holds the ends of their logs.
    """
    queue = Queue(jobs, available)
    running: dict[Path, tuple[Job, subprocess.Popen[bytes]]] = {}
    bars: dict[Path, tqdm[Any]] = {}
    quiet = not sys.stderr.isatty()
    failures: list[str] = []

    try:
        _stop_on_signals()
        while queue.waiting or running:
            while (job := queue.start()) is not None:
                bars[job.out] = tqdm(
                    total=job.last - job.first, desc=job.out.name, unit="step", position=len(bars), disable=quiet
                )
                running[job.out] = job, _start(job, queue.places.environment(job))
            time.sleep(0.5)
            for job, process in list(running.values()):
                ended = process.poll() is not None
                _show(bars[job.out], job)
                if ended:
                    _closed(running.pop(job.out)[1])
                    if process.returncode != 0:
                        failures.append(_failure(job.out, process.returncode))
                        if lost := queue.fail(job):
                            failures.append(
                                f"not started, as they start from it: {', '.join(o.out.name for o in lost)}"
                            )
                        print(f"{job.out.name}: failed, exit code {process.returncode}", flush=True)
                        continue
                    queue.finish(job)
                    if quiet:
                        print(f"{job.out.name}: complete, {_result(job.out)}", flush=True)
    finally:
        for _, process in running.values():
            process.terminate()  # it saves its checkpoint
        for _, process in running.values():
            process.wait()
            _closed(process)
        for bar in bars.values():
            bar.close()
    if failures:
        raise QcseError("\n".join(failures))


def _start(job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with open(log_of(job.out), "ab") as log:
        # In a session of its own: Ctrl-C reaches this process only, which then ends the others in order.
        # Nothing is written to the pipe; its end tells that this process is gone.
        return subprocess.Popen(
            train_command(job),
            stdout=log,
            stderr=log,
            stdin=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | environment | {WITH_PARENT: "1"},
        )


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


def _result(out: Path) -> str:
    """Mean over the folder's seeds of their last scores, or returns where there is no reference."""
    last = [found[-1] for folder in run_folders(out) if (found := rows(folder / "eval.csv"))]
    for column, name in (("normalized_score", "score"), ("return_mean", "return")):
        values = [float(row[column]) for row in last]
        if values and all(value == value for value in values):
            return f"{name} {sum(values) / len(values):.1f}"
    return "no evaluation yet"


def _show(bar: tqdm[Any], job: Job) -> None:
    trained = [int(found[-1]["step"]) for folder in run_folders(job.out) if (found := rows(folder / "train.csv"))]
    bar.n = max(0, min(trained, default=job.first) - job.first)
    bar.set_postfix_str(_result(job.out), refresh=False)
    bar.refresh()

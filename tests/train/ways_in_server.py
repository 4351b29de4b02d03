"""Runs commands of qcse for test_ways_in.py, each in a fork of a process that has torch loaded, under limits.

Reads a JSON object a line: folder, words of the command, seconds, gigabytes. Answers with one: exit code (negative: a
signal), what was printed, bytes of memory at the peak beyond the beginning, seconds, audited names of opened files.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import qcse.cli.train
import qcse.collect.maze
import qcse.collect.sac
import qcse.data.facts
import qcse.data.physics
import qcse.report
import qcse.runs.sweep
import qcse.runs.trainer  # noqa: F401
from qcse.cli.main import main


def peak(pid: int) -> int:
    """Bytes of memory that the process had at most, since its fork."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def run(folder: str, words: list[str], seconds: int, gigabytes: float) -> None:
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak(os.getpid())
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        Path("peak").write_text(str(peak(os.getpid()) - before))
    os._exit(code)


for line in sys.stdin:
    asked = json.loads(line)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            run(**asked)
        finally:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(99)
    _, status = os.waitpid(child, 0)
    folder = Path(asked["folder"])
    answer = {
        "code": os.waitstatus_to_exitcode(status),
        "said": (folder / "said").read_text(errors="replace"),
        "peak": int((folder / "peak").read_text()) if (folder / "peak").exists() else None,
        "seconds": time.monotonic() - started,
    }
    print(json.dumps(answer), flush=True)

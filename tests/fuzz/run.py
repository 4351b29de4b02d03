"""Fuzz every target, tests/fuzz/test_TARGET.py, for so many seconds: examples that nobody tried before.

python tests/fuzz/run.py [--seconds 600] [--target config ...] [--memory 8] [--seed 0]

Each round is a process of its own with other random examples. An exception, a crash, a hang of 20 seconds or an
allocation beyond the memory that is granted is a failure; the example is printed, and kept in tests/fuzz/seeds.
"""

from __future__ import annotations

import argparse
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROUND = 30.0  # seconds that a round is meant to take
PATIENCE = 300.0  # and those after which it is taken for hung


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.py"))
    parser.add_argument("--seconds", type=float, default=600.0, help="for each target")
    parser.add_argument("--target", nargs="*", choices=known, help="default: all")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB of addresses for a target's process")
    parser.add_argument("--seed", type=int, help="of the first round, the next having one more; default: new")
    arguments = parser.parse_args()
    failed = []
    for target in arguments.target or known:
        if not fuzz(target, arguments.seconds, int(arguments.memory * 2**30), arguments.seed):
            failed.append(target)
    print(f"failed: {', '.join(failed)}" if failed else "no failure")
    return 1 if failed else 0


def fuzz(target: str, seconds: float, memory: int, seed: int | None = None) -> bool:
    """Rounds of one target until the time is over, or one fails."""
    started = time.monotonic()
    tried, rounds, examples, left = 0, 0, 50, seconds
    while left > 0:
        count, busy, failure = play(target, examples, memory, None if seed is None else seed + rounds)
        tried, rounds = tried + count, rounds + 1
        if failure:
            print(failure)
            print(f"{target}: FAILED in round {rounds}, {tried:,} examples", flush=True)
            return False
        left = seconds - (time.monotonic() - started)
        examples = max(10, int(examples * min(20.0, min(ROUND, left) / max(busy, 0.1))))
    took = time.monotonic() - started
    print(f"{target}: {tried:,} examples in {rounds} rounds, {took:.0f} s, no failure", flush=True)
    return True


def play(target: str, examples: int, memory: int, seed: int | None) -> tuple[int, float, str]:
    """One round: examples tried, seconds that they took, and what failed, or ""."""
    with tempfile.TemporaryDirectory() as state:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=short",
             str(HERE / f"test_{target}.py"), *([] if seed is None else [f"--hypothesis-seed={seed}"])],
            env=os.environ | {"QCSE_FUZZ_STATE": state, "QCSE_FUZZ_EXAMPLES": str(examples)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="backslashreplace",
            start_new_session=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory)),
        )  # fmt: skip
        hung = False
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            hung = True
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
        files = {path.name: path.read_text("utf-8", "replace") for path in Path(state).iterdir() if path.is_file()}
        count, busy = files.get("tried", "0 0").split()
        if process.returncode == 0:
            return int(count), float(busy), ""
        last = ""
        if "tried" not in files:  # the process died: hypothesis could keep nothing
            last = f"\nthe example at hand:\n{files.get('example', '')[:20_000]}"
            kept = HERE / "seeds" / f"{target}-{secrets.token_hex(4)}.txt"
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(files.get("example", ""), encoding="utf-8")
        ended = "it hung" if hung else f"exit code {process.returncode}"
        return int(count), float(busy), f"{said[-8000:]}\n{target}: {ended}{last}"


if __name__ == "__main__":
    sys.exit(main())

"""Runs a plan of stages, each in its own process with its own time limit, so that none can end another.

    stages = [
        Stage("build", 120, ["make", "kernels"], needs_gpu=False),
        Stage("smoke", 15, ["build/smoke"], results="kernels", rehearsal=["build/smoke", "--cpu"]),
        Stage("tests", 90, [sys.executable, "-m", "pytest", "tests/cuda"]),
    ]
    status = Runner(Path("out"), total_s=570, dry=False, facts={"commit": "..."}).run(stages)

A stage prints what it measured, one JSON object a line. An object with the key "implementation" is a record, any other
a fact; both go to OUT/<results>.json, also when the stage fails, hangs or crashes. A program that isn't Python has to
flush its output after each line, or what it has buffered is lost when it is killed. OUT/gpu_run.json says how each
stage ended and is up to date at any moment, OUT/gpu_run.log holds all output. An earlier run's files of these names are
replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]

MIB = 1 << 20
FILES = 8  # at most so many files come back from a rented machine,
FILE_BYTES = 16 * MIB  # each at most so large
LOG_BYTES = 15 * MIB
LOG_KEPT = MIB // 2  # of the beginning and of the end of an output that the log has no room for
LOG_RESERVE = 64 << 10  # what one stage must leave in the log for each that is to come
RESULTS_BYTES = 15 * MIB
OUTPUT_BYTES = 256 * MIB  # a stage that prints more is stopped, before it fills the disk
ECHOED_LINES = 40
TAIL_CHARACTERS = 2000
REHEARSAL_FACTOR = 4  # a rehearsal may run on a slow machine
SHORTEST_S = 1.0  # with less time left than this no stage is started
POLL_S = 0.02
SAVE_EVERY_S = 5.0
KILL_WAIT_S = 5.0  # a process that hangs inside a driver may take a while to die, or never do

NO_GPU = "left out: no GPU"
NO_TIME = "left out: no time was left"

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 1, 36, 37
LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


@dataclass(frozen=True)
class Stage:
    """A command, run in the repository's root, and what it may take.

    `rehearsal`: the command that stands for it in a dry run; a stage that needs a GPU and has none is then left out.
    `results`: OUT/<results>.json takes in what the stage prints as JSON; several stages may share one file.
    `spare`: for time that others leave. Its limit is not in the plan's sum, and it starts only if all of it is left.
    """

    name: str
    limit_s: float
    command: Sequence[str | Path]
    needs_gpu: bool = True
    rehearsal: Sequence[str | Path] | None = None
    results: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    spare: bool = False


def unfinished(previous: Path, stages: Sequence[Stage], dry: bool, commit: object) -> list[Stage]:
    """The stages that have not passed yet according to an earlier gpu_run.json; without a readable one, all.

    Only passes of the same commit count, and those of a rehearsal only for another rehearsal (`dry`).
    """
    passed = _passed(previous, dry, commit)
    return [stage for stage in stages if stage.name not in passed]


def _passed(previous: Path, dry: bool, commit: object) -> set[str]:
    try:
        document = json.loads(previous.read_text(encoding="utf-8"))
        if document["dry_run"] is not dry or document["machine"]["commit"] != commit:
            return set()
        passed = {str(entry["stage"]) for entry in document["stages"] if entry["status"] == "passed"}
        return passed | {str(name) for name in document["passed_before"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()  # missing or damaged: nothing is known to have passed


def _sum_of_limits(stages: Sequence[Stage]) -> float:
    return sum(stage.limit_s for stage in stages if not stage.spare)


def _check(stages: Sequence[Stage], total_s: float) -> None:
    earlier: set[str] = set()
    for stage in stages:
        if not stage.name:
            raise ValueError(f"a stage has an empty name; its command is {list(stage.command)}")
        if stage.name in earlier:
            raise ValueError(f"two stages are named {stage.name!r}; the record needs a name for each")
        if not stage.limit_s > 0:
            raise ValueError(f"stage {stage.name!r}: limit_s is {stage.limit_s}, and has to be more than 0")
        if not stage.command or (stage.rehearsal is not None and not stage.rehearsal):
            raise ValueError(f"stage {stage.name!r}: an empty command")
        if stage.results in ("", "gpu_run") or Path(stage.results or "").name != (stage.results or ""):
            raise ValueError(f"stage {stage.name!r}: {stage.results!r} cannot be the name of a results file")
        earlier.add(stage.name)
    limits = _sum_of_limits(stages)
    if limits > total_s + 1e-9:
        raise ValueError(f"the limits sum to {limits:g} s, but the run may take {total_s:g} s: shorten the plan")


class _Job:
    """A stage's process and what it has printed."""

    def __init__(self, stage: Stage, command: Sequence[str | Path], output: IO[bytes]) -> None:
        self.stage, self.command, self._output = stage, [str(part) for part in command], output.fileno()
        self.records = self.facts = self.refused = 0
        self.lines: deque[bytes] = deque(maxlen=ECHOED_LINES)  # the last that are neither records nor facts
        self._read = 0
        self._process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            # Unbuffered, or a Python process that is killed would take its last records with it.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def ended(self) -> bool:
        # It is not reaped here: until then its number, which is also its group's, cannot pass to another process.
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self._process.poll() is not None

    def kill(self, spared: set[int]) -> bool:
        """Ends the stage's process group and, where children can be found, what has left it; False if not all died."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # elsewhere than on Linux, if all have ended
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_WAIT_S)
        end = time.monotonic() + KILL_WAIT_S
        while left := _children() - spared:  # a killed child's own children are this process's next
            if time.monotonic() > end:
                return False
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)
        return self._process.returncode is not None

    def ending(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f"failed with status {code}" if code else "passed"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"

    def size(self) -> int:
        return os.fstat(self._output).st_size

    def part(self, start: int, length: int) -> bytes:
        return os.pread(self._output, length, start)  # the position is the stage's, too, and stays as it is

    def read(self, final: bool) -> Iterator[dict[str, object]]:
        """The JSON objects printed since the last call; a line that isn't complete waits for its end."""
        for line in io.BytesIO(self.part(self._read, self.size() - self._read)):
            if not (final or line.endswith(b"\n")):
                break
            self._read += len(line)
            value = None
            if self.stage.results is not None and line.startswith(b"{"):
                with contextlib.suppress(ValueError, RecursionError):  # ordinary output, or the half line of one killed
                    value = json.loads(line.decode(errors="replace"))
            if value is None:
                self.lines.append(line[:TAIL_CHARACTERS])
            else:
                yield value

    def tail(self) -> str:
        length = 4 * TAIL_CHARACTERS  # a character takes at most four bytes
        return self.part(max(0, self.size() - length), length).decode(errors="replace")[-TAIL_CHARACTERS:]


class _Results:
    """What goes into one results file; the records are kept as text, since the file is rewritten often."""

    def __init__(self, machine: Mapping[str, object]) -> None:
        self._machine = json.dumps(machine, default=str)
        self._facts: dict[str, list[str]] = {}
        self._records: list[str] = []
        self._size = len(self._machine)

    def add(self, stage: str, value: dict[str, object], record: bool) -> bool:
        """False if the file would become too large."""
        text = json.dumps(value)
        size = len(text) + len(stage) + 16  # commas, brackets, quotation marks
        if self._size + size > RESULTS_BYTES:
            return False
        self._size += size
        (self._records if record else self._facts.setdefault(stage, [])).append(text)
        return True

    def text(self) -> str:
        facts = ",\n".join(f"{json.dumps(stage)}: [{', '.join(values)}]" for stage, values in self._facts.items())
        records = ",\n".join(self._records)
        return f'{{\n"machine": {self._machine},\n"facts": {{\n{facts}\n}},\n"records": [\n{records}\n]\n}}\n'


class Runner:
    """Runs a plan's stages one after the other; whatever ends one of them, or the runner, OUT holds all there is.

    The time allowed, `total_s`, begins when the runner is made; `end` is the moment, on the monotonic clock, when it is
    over. `state`: a second place for gpu_run.json, for the next run's `unfinished`; it also hands on which stages of
    other plans passed before. A rehearsal needs a state of its own, or it replaces the real run's.
    """

    def __init__(
        self, out: Path, total_s: float, dry: bool, facts: Mapping[str, object], state: Path | None = None
    ) -> None:
        self._factor = REHEARSAL_FACTOR if dry else 1
        self.end = time.monotonic() + total_s * self._factor
        self._out, self._total_s, self._dry, self._machine, self._state = out, total_s, dry, dict(facts), state
        self._entries: dict[str, dict[str, object]] = {}
        self._document: dict[str, object] = {}
        self._warnings: list[str] = []
        self._unwritten: set[Path] = set()
        self._results: dict[str | None, _Results] = defaultdict(lambda: _Results(self._machine))
        self._foreign: set[int] = set()  # children of the host program
        self._signal: signal.Signals | None = None
        self._log_size = 0

    def run(self, stages: Sequence[Stage]) -> int:
        """0 if every stage passed, or was left out of a dry run for lack of a GPU; 1 if not; 128 + n after signal n."""
        _check(stages, self._total_s)
        begin = time.monotonic()
        with self._in_charge():
            self._prepare(stages)
            for stage in stages:
                if self._signal:
                    break
                try:
                    self._run_stage(stage)
                except Exception as error:  # whatever went wrong here with one stage, the others shall not pay for it
                    self._say(traceback.format_exc().rstrip())
                    self._settle(stage, f"failed in the runner: {error!r}")
            failed = not all(self._is_good(stage) for stage in stages)
            if self._signal:
                result = f"interrupted by {self._signal.name}"
            else:
                result = "failed" if failed else "rehearsed" if self._dry else "passed"
            self._document["result"] = result
            self._look_at_files()
            self._save()
            self._say(f"gpu_run: {result} in {time.monotonic() - begin:.1f} s; see {self._out / 'gpu_run.json'}")
        return 128 + self._signal if self._signal else int(failed)

    def _is_good(self, stage: Stage) -> bool:
        status = self._entries[stage.name]["status"]
        return status == "passed" or (self._dry and status == NO_GPU) or (stage.spare and status == NO_TIME)

    def _prepare(self, stages: Sequence[Stage]) -> None:
        before = set() if self._state is None else _passed(self._state, self._dry, self._machine.get("commit"))
        blank = {"seconds": 0.0, "status": "not reached", "records": 0, "tail": ""}
        self._entries = {s.name: {"stage": s.name, "limit_s": s.limit_s, **blank} for s in stages}
        self._document = {
            "dry_run": self._dry,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": self._machine,
            "total_s": self._total_s,
            "stages": list(self._entries.values()),
            "passed_before": sorted(before - set(self._entries)),
            "result": "running",
            "warnings": self._warnings,
        }
        self._foreign = _children()
        for name in ("gpu_run.log", *(f"{s.results}.json" for s in stages if s.results is not None)):
            with self._writing(self._out / name):
                (self._out / name).unlink(missing_ok=True)
        for stage in stages:
            self._say(f"{stage.limit_s:5g} s  {stage.name}{', if so much is left' if stage.spare else ''}")
        self._say(f"{_sum_of_limits(stages):5g} s  in all")
        self._save()

    def _run_stage(self, stage: Stage) -> None:
        command = stage.command
        if self._dry and stage.rehearsal is not None:
            command = stage.rehearsal
        elif self._dry and stage.needs_gpu:
            return self._settle(stage, NO_GPU)
        left_s = self.end - time.monotonic()
        if left_s < (stage.limit_s * self._factor if stage.spare else SHORTEST_S):
            return self._settle(stage, NO_TIME)
        # Not through a pipe, which a process that outlives the stage could hold open; and a file with a name would stay
        # behind if this process were killed.
        with tempfile.TemporaryFile() as output:
            try:
                job = _Job(stage, command, output)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                return self._settle(stage, f"failed to start: {error}")
            begin = time.monotonic()
            try:
                status = self._watch(job, min(stage.limit_s * self._factor, left_s))
                seconds = time.monotonic() - begin
            finally:
                if not job.kill(self._foreign):
                    self._warn(f"{stage.name}: some of its processes could not be killed within {KILL_WAIT_S:g} s")
            self._conclude(job, status or job.ending(), seconds)

    def _watch(self, job: _Job, limit_s: float) -> str | None:
        """Waits until the stage has ended, None, or has to be: why."""
        self._entries[job.stage.name]["status"] = "running"
        self._save()
        begin = saved = time.monotonic()
        while True:
            now = time.monotonic()
            if self._signal:
                return f"interrupted by {self._signal.name}"
            if job.ended():
                return None
            if now - begin >= limit_s:
                return f"stopped after {round(limit_s, 1):g} s"
            if job.size() > OUTPUT_BYTES:
                return f"stopped after {OUTPUT_BYTES // MIB} MiB of output"
            if now - saved >= SAVE_EVERY_S:  # lest a runner that is killed take the present stage's records with it
                saved = now
                self._take_in(job, now - begin, final=False)
                self._save()
            time.sleep(POLL_S)

    def _conclude(self, job: _Job, status: str, seconds: float) -> None:
        """Stores what the stage printed and says how it ended."""
        self._take_in(job, seconds, final=True)
        self._log_output(job)
        for line in job.lines:
            self._print(f"  {line.decode(errors='replace').rstrip()[:500]}")
        counts = f"{job.records} record{'' if job.records == 1 else 's'}"
        if job.facts:
            counts += f", {job.facts} fact{'' if job.facts == 1 else 's'}"
        if job.refused:
            note = f"{job.refused} records refused: {job.stage.results}.json is full"
            self._entries[job.stage.name]["note"] = note
            self._warn(f"{job.stage.name}: {note}")
        self._settle(job.stage, status, f" in {seconds:.1f} s, {counts}")

    def _settle(self, stage: Stage, status: str, details: str = "") -> None:
        self._entries[stage.name]["status"] = status
        self._say(f"{stage.name}: {status}{details}")
        self._save()

    def _take_in(self, job: _Job, seconds: float, final: bool) -> None:
        stage = job.stage
        for value in job.read(final):
            record = "implementation" in value
            if record:
                value = {"stage": stage.name, "commit": self._machine.get("commit"), **value}
            if not self._results[stage.results].add(stage.name, value, record):
                job.refused += 1
            elif record:
                job.records += 1
            else:
                job.facts += 1
        self._entries[stage.name] |= {"seconds": round(seconds, 2), "records": job.records, "tail": job.tail()}
        if stage.results in self._results:
            self._write(self._out / f"{stage.results}.json", self._results[stage.results].text())

    def _log_output(self, job: _Job) -> None:
        header = f"\n== {job.stage.name}: {shlex.join(job.command)}\n".encode(errors="replace")
        size = job.size()
        to_come = sum(entry["status"] in ("running", "not reached") for entry in self._entries.values())
        room = max(0, LOG_BYTES - self._log_size - len(header) - LOG_RESERVE * to_come)
        if size <= room:
            output = job.part(0, size)
        else:
            kept = min(LOG_KEPT, room // 2)
            cut = f"\n[... {size - 2 * kept} of {size} bytes are cut here ...]\n".encode()
            output = job.part(0, kept) + cut + job.part(size - kept, kept)
        self._log(header + output + (b"" if output.endswith(b"\n") or not output else b"\n"))

    def _look_at_files(self) -> None:
        """Warns of what will not come back from the rented machine."""
        try:
            sizes = {str(p.relative_to(self._out)): p.stat().st_size for p in self._out.rglob("*") if p.is_file()}
        except OSError as error:
            return self._warn(f"cannot look through {self._out}: {error}")
        for path, size in sizes.items():
            if size > FILE_BYTES:
                self._warn(f"{path} has {size / MIB:.1f} MiB, and at most {FILE_BYTES // MIB} come back")
        if len(sizes) > FILES:
            names = ", ".join(sorted(sizes))
            self._warn(f"{len(sizes)} files were written, and at most {FILES} come back: {names}")

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self._say(f"warning: {text}")

    def _say(self, text: str) -> None:
        self._print(text)
        self._log(f"{text}\n".encode(errors="replace"))

    def _print(self, text: str) -> None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            print(text.encode(encoding, "replace").decode(encoding), flush=True)
        except (OSError, ValueError) as error:  # whoever read this has gone; the run goes on
            self._document["stdout"] = f"cannot be written: {error}"

    def _log(self, data: bytes) -> None:
        path = self._out / "gpu_run.log"
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as log:
                log.write(data)
            self._log_size += len(data)

    def _save(self) -> None:
        text = json.dumps(self._document, indent=2, default=str) + "\n"
        self._write(self._out / "gpu_run.json", text)
        if self._state is not None:
            self._write(self._state, text)

    def _write(self, path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.part")
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(text, encoding="utf-8")
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """The run goes on without what cannot be written."""
        try:
            yield
        except OSError as error:
            if path not in self._unwritten:  # the files are written often, and once is enough to know
                self._unwritten.add(path)
                self._warnings.append(f"cannot write {path}: {error}")
                self._print(f"warning: cannot write {path}: {error}; the run goes on")

    @contextlib.contextmanager
    def _in_charge(self) -> Iterator[None]:
        """Signals come here, and so do processes whose parent ends, which would be hard to find as init's children."""

        def note(number: int, _: object) -> None:
            self._signal = signal.Signals(number)

        handlers = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        # With SIGCHLD ignored, as a parent may have left it, no exit status would ever be known.
        handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        adopted_before = ctypes.c_int(0)
        _prctl(PR_GET_CHILD_SUBREAPER, ctypes.addressof(adopted_before))
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            yield
        finally:
            _prctl(PR_SET_CHILD_SUBREAPER, adopted_before.value)
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _children() -> set[int]:
    """This process's children, on Linux; none elsewhere, where only a stage's process group is killed."""
    children = set()
    for name in os.listdir("/proc") if LIBC is not None else ():
        if name.isdigit():
            with contextlib.suppress(OSError):  # it has ended in the meantime
                data = Path("/proc", name, "stat").read_bytes()
                if int(data.rpartition(b")")[2].split()[1]) == os.getpid():  # the command's name may hold anything
                    children.add(int(name))
    return children


def _die_with_parent() -> None:
    """In the stage's process: if the runner is killed, the stage shall not keep the GPU from the next run."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, argument: int) -> None:
    if LIBC is not None:
        LIBC.prctl(option, ctypes.c_ulong(argument), 0, 0, 0)

"""A failure is planted between two stages that pass, whose records and statuses must be as they always are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import stages
from stages import Runner, Stage, unfinished

FACTS = {"device": "none", "commit": "abc"}
FOLDER = str(Path(stages.__file__).parent)
linux = pytest.mark.skipif(stages.LIBC is None, reason="processes that leave their group are found in /proc")


def python(script: str) -> list[str]:
    return [sys.executable, "-S", "-c", script]


def record(number: int) -> str:
    """Python that prints a record."""
    return f'print(\'{{"implementation": "a", "ms": {number}}}\');'


FOREVER = "import time; time.sleep(60)"
BEFORE = Stage("before", 20, python(record(1)), results="kernels")
AFTER = Stage("after", 20, python(record(9)), results="kernels")


@dataclass
class Outcome:
    status: int
    document: dict
    printed: str
    log: bytes
    out: Path
    seconds: float

    @property
    def statuses(self) -> dict[str, str]:
        return {entry["stage"]: entry["status"] for entry in self.document["stages"]}

    def entry(self, name: str) -> dict:
        return next(entry for entry in self.document["stages"] if entry["stage"] == name)

    def results(self, name: str = "kernels") -> dict:
        return json.loads((self.out / f"{name}.json").read_text())

    def measured(self) -> list[tuple[str, int]]:
        return [(record["stage"], record["ms"]) for record in self.results()["records"]]

    def lines(self) -> list[str]:
        return self.printed.splitlines()


Go = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "POLL_S", 0.004)  # the stages here take as long as Python takes to start
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # the runner has to see to it


@pytest.fixture
def go(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Go:
    def run(
        plan: Sequence[Stage],
        total_s: float = 570,
        dry: bool = False,
        left_s: float | None = None,
        commit: str = "abc",
    ) -> Outcome:
        out = tmp_path / "out"
        runner = Runner(out, total_s, dry, FACTS | {"commit": commit}, state=tmp_path / "state" / "state.json")
        if left_s is not None:
            runner.end = time.monotonic() + left_s
        begin = time.monotonic()
        status = runner.run(plan)
        seconds = time.monotonic() - begin
        document = json.loads((out / "gpu_run.json").read_text())
        assert json.loads((tmp_path / "state" / "state.json").read_text()) == document
        assert not [path for path in out.rglob("*") if path.name.startswith(".")], "a temporary file was left behind"
        return Outcome(status, document, capfd.readouterr().out, (out / "gpu_run.log").read_bytes(), out, seconds)

    return run


def planted(outcome: Outcome, status: str, ms: Sequence[int] = (), name: str = "planted") -> None:
    """The planted stage ended thus and its records are there, those of its neighbours too, and a line says so."""
    assert outcome.statuses == {"before": "passed", name: status, "after": "passed"}
    assert outcome.measured() == [("before", 1), *((name, number) for number in ms), ("after", 9)]
    assert [outcome.entry(stage)["records"] for stage in ("before", name, "after")] == [1, len(ms), 1]
    assert any(line.startswith(f"{name}: {status}") for line in outcome.lines())
    assert outcome.document["warnings"] == []
    assert outcome.status == (0 if status == "passed" else 1)
    assert outcome.document["result"] == ("passed" if status == "passed" else "failed")


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not yet waited for doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    """Whether the process ends within a moment."""
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


def test_records_and_facts(go: Go) -> None:
    script = (
        record(2) + 'print(\'one line\'); print(\'{"clock": 7}\'); print(\'{"implementation": "b", "stage": "x"}\')'
    )
    outcome = go([BEFORE, Stage("planted", 20, python(script), results="kernels"), AFTER])
    assert outcome.status == 0 and outcome.document["result"] == "passed"
    results = outcome.results()
    assert results["machine"] == FACTS
    assert results["facts"] == {"planted": [{"clock": 7}]}
    assert results["records"] == [
        {"stage": "before", "commit": "abc", "implementation": "a", "ms": 1},
        {"stage": "planted", "commit": "abc", "implementation": "a", "ms": 2},
        {"stage": "x", "commit": "abc", "implementation": "b"},
        {"stage": "after", "commit": "abc", "implementation": "a", "ms": 9},
    ]
    assert outcome.lines()[:4] == ["   20 s  before", "   20 s  planted", "   20 s  after", "   60 s  in all"]
    assert any(
        line.startswith("planted: passed in ") and line.endswith(" s, 2 records, 1 fact") for line in outcome.lines()
    )
    assert "  one line" in outcome.lines() and "clock" not in outcome.printed
    assert b"== planted: " in outcome.log and b'{"clock": 7}' in outcome.log and b"planted: passed" in outcome.log
    entry = outcome.entry("planted")
    assert entry["limit_s"] == 20 and 0 <= entry["seconds"] < 20 and "one line" in entry["tail"]
    assert outcome.document["machine"] == FACTS and outcome.document["total_s"] == 570
    assert sorted(path.name for path in outcome.out.iterdir()) == ["gpu_run.json", "gpu_run.log", "kernels.json"]


def test_without_a_results_file_json_is_ordinary_output(go: Go) -> None:
    outcome = go([Stage("planted", 20, python(record(2)))])
    assert outcome.statuses == {"planted": "passed"} and outcome.entry("planted")["records"] == 0
    assert '  {"implementation": "a", "ms": 2}' in outcome.lines()


def test_the_last_lines_are_echoed(go: Go) -> None:
    outcome = go([Stage("planted", 20, python("[print('line', i) for i in range(100)]"))])
    assert [line for line in outcome.lines() if line.startswith("  line")] == [f"  line {i}" for i in range(60, 100)]
    assert b"line 0\n" in outcome.log


FAILURES = {
    "exits": (record(2) + "raise SystemExit(3)", "failed with status 3", [2]),
    "raises": (record(2) + "1 / 0", "failed with status 1", [2]),
    "kills itself": (record(2) + "import os; os.kill(os.getpid(), 9)", "killed by SIGKILL", [2]),
    "crashes": (record(2) + "import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV", [2]),
    "writes no UTF-8": ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n{\\xff\\n');" + record(2), "passed", [2]),
    "ends within a line": ('import sys; sys.stdout.write(\'{"implementation": "a", "ms": 2}\')', "passed", [2]),
    "nests deeply": ("print('{\"a\":' * 100000);" + record(2), "passed", [2]),
    "closes its output": (record(2) + "import os; os.close(1); os.close(2); os._exit(5)", "failed with status 5", [2]),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failure(go: Go, kind: str) -> None:
    script, status, ms = FAILURES[kind]
    planted(go([BEFORE, Stage("planted", 20, python(script), results="kernels"), AFTER]), status, ms)


def test_the_reason_of_a_failure_is_told(go: Go) -> None:
    outcome = go([BEFORE, Stage("planted", 20, python("raise RuntimeError('no such kernel')")), AFTER])
    planted(outcome, "failed with status 1")
    assert "  RuntimeError: no such kernel" in outcome.lines()
    assert "no such kernel" in outcome.entry("planted")["tail"] and b"no such kernel" in outcome.log


def test_non_utf8_bytes_stay_in_the_log(go: Go) -> None:
    assert b"\xff\xfe\n" in go([Stage("planted", 20, python(FAILURES["writes no UTF-8"][0]))]).log


def test_hanging_stage_is_stopped(go: Go) -> None:
    script = record(2) + record(3) + 'import sys; sys.stdout.write(\'{"implementation": "a", "m\');' + FOREVER
    outcome = go([BEFORE, Stage("planted", 0.7, python(script), results="kernels"), AFTER])
    planted(outcome, "stopped after 0.7 s", [2, 3])
    assert 0.7 <= outcome.entry("planted")["seconds"] < 5
    assert b'"implementation": "a", "m\n' in outcome.log, "the half line is kept in the log"


def test_hanging_stage_that_ignores_signals_is_stopped(go: Go) -> None:
    deaf = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)];"
    outcome = go([BEFORE, Stage("planted", 0.7, python(deaf + record(2) + FOREVER), results="kernels"), AFTER])
    planted(outcome, "stopped after 0.7 s", [2])


def grandchild(tmp_path: Path, session: bool, then: str) -> str:
    """Python that starts a process which holds the output open, notes its number in a file, and does `then`."""
    child = f"subprocess.Popen([sys.executable, '-S', '-c', {FOREVER!r}], start_new_session={session})"
    return f"import subprocess, sys; print({child}.pid, file=open({str(tmp_path / 'pid')!r}, 'w'), flush=True); {then}"


@linux
@pytest.mark.parametrize("session", [False, True])
def test_what_a_stage_leaves_behind_is_killed(go: Go, tmp_path: Path, session: bool) -> None:
    script = grandchild(tmp_path, session, record(2))
    outcome = go([BEFORE, Stage("planted", 20, python(script), results="kernels"), AFTER])
    planted(outcome, "passed", [2])
    assert outcome.seconds < 10, "the runner waited for the grandchild"
    assert not alive(int((tmp_path / "pid").read_text()))


@linux
def test_elsewhere_the_group_is_killed(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LIBC", None)
    script = grandchild(tmp_path, False, record(2))
    planted(go([BEFORE, Stage("planted", 20, python(script), results="kernels"), AFTER]), "passed", [2])
    assert gone(int((tmp_path / "pid").read_text()))


@linux
def test_what_a_stopped_stage_started_is_killed(go: Go, tmp_path: Path) -> None:
    script = grandchild(tmp_path, True, FOREVER)
    planted(go([BEFORE, Stage("planted", 0.7, python(script)), AFTER]), "stopped after 0.7 s")
    assert not alive(int((tmp_path / "pid").read_text()))


@linux
def test_processes_that_were_there_before_are_left_alone(go: Go) -> None:
    with subprocess.Popen(python(FOREVER)) as other:
        try:
            assert go([BEFORE, AFTER]).status == 0
            assert alive(other.pid)
        finally:
            other.kill()


def test_missing_program(go: Go) -> None:
    outcome = go([BEFORE, Stage("planted", 20, ["no-such-program"], results="kernels"), AFTER])
    planted(outcome, "failed to start: [Errno 2] No such file or directory: 'no-such-program'")


def test_much_output_is_cut_in_the_log(go: Go) -> None:
    script = (
        record(2) + "print('the beginning'); [print('x' * 99999) for _ in range(400)]; print('the end');" + record(3)
    )
    outcome = go([BEFORE, Stage("planted", 20, python(script), results="kernels"), AFTER])
    planted(outcome, "passed", [2, 3])
    assert len(outcome.log) < 1.1 * stages.MIB
    assert b"the beginning" in outcome.log and b"the end" in outcome.log and b"after: passed" in outcome.log
    size = 400 * 100000 + len("the beginning\nthe end\n") + 2 * len('{"implementation": "a", "ms": 2}\n')
    assert f"[... {size - stages.MIB} of {size} bytes are cut here ...]".encode() in outcome.log


def test_many_large_outputs_stay_within_the_log(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LOG_BYTES", 100_000)
    monkeypatch.setattr(stages, "LOG_RESERVE", 4_000)
    plan = [Stage(f"s{i}", 20, python("print('x' * 70_000)")) for i in range(6)]
    outcome = go([*plan, Stage("last", 20, python("print('y' * 3000)"))])
    assert set(outcome.statuses.values()) == {"passed"}
    assert b"x" * 70_000 in outcome.log and b"y" * 3000 in outcome.log
    assert len(outcome.log) < 100_000 + 1_000


def test_endless_output_is_stopped(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "OUTPUT_BYTES", 2 * stages.MIB)
    outcome = go([BEFORE, Stage("planted", 20, python("while True: print('x' * 9999)")), AFTER])
    planted(outcome, "stopped after 2 MiB of output")


def test_a_full_results_file_refuses_records(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "RESULTS_BYTES", 2000)
    outcome = go([Stage("planted", 20, python(f"for i in range(99): {record(2)}"), results="kernels"), AFTER])
    count = len(outcome.results()["records"])
    assert outcome.statuses == {"planted": "passed", "after": "passed"} and 10 < count < 40
    assert (outcome.out / "kernels.json").stat().st_size < 2100
    assert outcome.entry("planted")["note"] == f"{99 - count} records refused: kernels.json is full"
    assert outcome.document["warnings"][0] == f"planted: {99 - count} records refused: kernels.json is full"


def test_the_rest_is_left_out_when_no_time_is_left(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SHORTEST_S", 0.2)
    outcome = go([BEFORE, Stage("planted", 20, python(record(2) + FOREVER), results="kernels"), AFTER], left_s=0.9)
    none = "left out: no time was left"
    assert list(outcome.statuses) == ["before", "planted", "after"]
    assert outcome.statuses["before"] == "passed" and outcome.statuses["after"] == none
    assert outcome.statuses["planted"].startswith("stopped after ")
    assert outcome.measured() == [("before", 1), ("planted", 2)]
    assert f"after: {none}" in outcome.lines() and outcome.status == 1 and outcome.seconds < 5


def test_the_time_begins_with_the_runner(tmp_path: Path) -> None:
    left = {dry: Runner(tmp_path, 100, dry, FACTS).end - time.monotonic() for dry in (False, True)}
    assert 99 < left[False] <= 100 and 399 < left[True] <= 400


def test_plan_over_the_total_is_refused(go: Go, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sum to 40 s, but the run may take 39\.5 s"):
        go([BEFORE, AFTER], total_s=39.5)
    assert not (tmp_path / "out").exists()
    assert go([BEFORE, AFTER], total_s=40).status == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(BEFORE, name=""), "empty name"),
        (replace(BEFORE, name="after"), "'after'"),
        (replace(BEFORE, limit_s=0), "'before': limit_s is 0"),
        (replace(BEFORE, limit_s=float("nan")), "'before': limit_s is nan"),
        (replace(BEFORE, command=[]), "'before': an empty command"),
        (replace(BEFORE, results="gpu_run"), "'before': 'gpu_run' cannot"),
        (replace(BEFORE, results="a/b"), "'before': 'a/b' cannot"),
    ],
)
def test_wrong_plan_is_refused(go: Go, tmp_path: Path, wrong: Stage, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        go([AFTER, wrong])
    assert not (tmp_path / "out").exists()


def test_dry_run(go: Go) -> None:
    plan = [
        Stage("gpu", 20, python("1 / 0")),
        Stage("stood for", 20, python("1 / 0"), rehearsal=python(record(5)), results="kernels"),
        Stage("cpu", 0.5, python(record(6) + "import time; time.sleep(0.6)"), needs_gpu=False, results="kernels"),
    ]
    outcome = go(plan, total_s=40.5, dry=True)
    left_out = "left out: no GPU"
    assert outcome.statuses == {"gpu": left_out, "stood for": "passed", "cpu": "passed"}
    assert outcome.measured() == [("stood for", 5), ("cpu", 6)]
    assert outcome.document["result"] == "rehearsed" and outcome.document["dry_run"] and outcome.status == 0
    assert outcome.lines()[2] == "  0.5 s  cpu" and outcome.lines()[3] == " 40.5 s  in all"
    assert f"gpu: {left_out}" in outcome.lines()


def test_failing_rehearsal(go: Go) -> None:
    outcome = go([BEFORE, replace(AFTER, needs_gpu=False, rehearsal=python("1 / 0"))], dry=True)
    assert outcome.statuses == {"before": "left out: no GPU", "after": "failed with status 1"}
    assert outcome.document["result"] == "failed" and outcome.status == 1


def test_environment(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "k")
    script = "import os; print(os.environ['KEPT'], os.environ['GIVEN'], os.getcwd())"
    outcome = go([Stage("planted", 20, python(script), environment={"GIVEN": "g"})])
    assert f"  k g {Path(__file__).resolve().parents[2]}" in outcome.lines()


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (out / "gpu_run.json" / "in the way").mkdir(parents=True)
    assert Runner(out, 570, False, FACTS).run([BEFORE, AFTER]) == 0
    assert [r["ms"] for r in json.loads((out / "kernels.json").read_text())["records"]] == [1, 9]
    printed = capfd.readouterr().out
    assert f"warning: cannot write {out / 'gpu_run.json'}: " in printed and "after: passed" in printed
    assert sorted(path.name for path in out.iterdir()) == ["gpu_run.json", "gpu_run.log", "kernels.json"]


def test_a_full_disk_stops_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("no folder")
    marks = [tmp_path / "1", tmp_path / "2"]
    plan = [Stage(f"mark {m.name}", 20, python(f"open({str(m)!r}, 'w');" + record(1)), results="r") for m in marks]
    state = tmp_path / "state.json"
    assert Runner(tmp_path / "out", 570, False, FACTS, state=state).run(plan) == 0
    assert all(mark.exists() for mark in marks)
    assert capfd.readouterr().out.count("r.json: ") == 1, "once is enough to know"
    document = json.loads(state.read_text())
    assert [entry["status"] for entry in document["stages"]] == ["passed", "passed"]
    assert any("r.json" in warning for warning in document["warnings"])


def test_an_error_in_the_runner_costs_one_stage(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    add = stages._Results.add

    def broken(self: stages._Results, stage: str, value: dict, record: bool) -> bool:
        if stage == "planted":
            raise RuntimeError("a planted fault")
        return add(self, stage, value, record)

    monkeypatch.setattr(stages._Results, "add", broken)
    wrong = Stage("planted", 20, python(record(2)), results="kernels")
    planted(go([BEFORE, wrong, AFTER]), "failed in the runner: RuntimeError('a planted fault')")


def test_the_present_stage_is_told_while_it_runs(go: Go, tmp_path: Path) -> None:
    script = f"""if True:
        import json, time
        while True:
            with open({str(tmp_path / "out" / "gpu_run.json")!r}) as file: document = json.load(file)
            if document["stages"][1]["status"] == "running": break
            time.sleep(0.01)
        print(document["result"], [entry["status"] for entry in document["stages"]])"""
    outcome = go([BEFORE, Stage("planted", 5, python(script)), AFTER])
    planted(outcome, "passed")
    assert "  running ['passed', 'running', 'not reached']" in outcome.lines()


def test_files_that_would_not_come_back_are_named(go: Go, tmp_path: Path) -> None:
    script = f"""if True:
        for i in range(6): open({str(tmp_path / "out")!r} + f"/own{{i}}", "w")
        open({str(tmp_path / "out" / "large")!r}, "w").truncate(17 << 20)"""
    outcome = go([BEFORE, Stage("planted", 20, python(script)), AFTER])
    large, many = outcome.document["warnings"]
    assert large == "large has 17.0 MiB, and at most 16 come back"
    assert many.startswith("10 files were written, and at most 8 come back: gpu_run.json, gpu_run.log, kernels.json, ")
    assert f"warning: {large}" in outcome.lines() and f"warning: {many}" in outcome.lines()
    assert outcome.status == 0 and go([BEFORE, AFTER]).document["warnings"]


@pytest.fixture
def separate(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen]]:
    """Starts a runner as a process of its own, and returns when its stage `planted` has written its number."""
    started: list[subprocess.Popen] = []

    def start(hang: str = FOREVER) -> subprocess.Popen:
        note = f"import os; {record(2)} print(os.getpid(), file=open({str(tmp_path / 'pid')!r}, 'w'), flush=True);"
        script = f"""if True:
            import sys; sys.path.insert(0, {FOLDER!r})
            from pathlib import Path
            import stages; from stages import Runner, Stage
            stages.SAVE_EVERY_S = 0.05
            planted = Stage("planted", 20, {python(note + hang)!r}, results="kernels")
            before, after = ({BEFORE!r}, {AFTER!r})
            runner = Runner(Path({str(tmp_path / "out")!r}), 570, False, {FACTS!r})
            sys.exit(runner.run([before, planted, after]))"""
        runner = subprocess.Popen([sys.executable, "-S", "-c", script], stdout=subprocess.PIPE, text=True)
        started.append(runner)
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
        return runner

    yield start
    for runner in started:
        runner.kill()
        runner.communicate()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.01)


PLAN = [replace(BEFORE, name=name) for name in ("before", "planted", "after")]


def names(plan: Sequence[Stage]) -> list[str]:
    return [stage.name for stage in plan]


def test_a_killed_runner_leaves_what_there_is(separate: Callable[[], subprocess.Popen], tmp_path: Path) -> None:
    runner = separate()
    out = tmp_path / "out"

    def stored() -> bool:
        records = json.loads((out / "kernels.json").read_text())["records"]
        return [(r["stage"], r["ms"]) for r in records] == [("before", 1), ("planted", 2)]

    wait_until(stored)  # the records of a stage are stored while it runs
    runner.send_signal(signal.SIGKILL)
    assert runner.wait() == -signal.SIGKILL
    document = json.loads((out / "gpu_run.json").read_text())
    statuses = [(entry["stage"], entry["status"]) for entry in document["stages"]]
    assert statuses == [("before", "passed"), ("planted", "running"), ("after", "not reached")]
    assert document["result"] == "running" and stored()
    assert names(unfinished(out / "gpu_run.json", PLAN, False, "abc")) == ["planted", "after"]
    if stages.LIBC is not None:
        assert gone(int((tmp_path / "pid").read_text())), "the stage outlived its runner"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_runner(separate: Callable[[], subprocess.Popen], tmp_path: Path, number: signal.Signals) -> None:
    runner = separate()
    runner.send_signal(number)
    printed, _ = runner.communicate(timeout=10)
    assert runner.returncode == 128 + number
    document = json.loads((tmp_path / "out" / "gpu_run.json").read_text())
    status = f"interrupted by {number.name}"
    statuses = [(entry["stage"], entry["status"]) for entry in document["stages"]]
    assert statuses == [("before", "passed"), ("planted", status), ("after", "not reached")]
    assert document["result"] == status
    records = json.loads((tmp_path / "out" / "kernels.json").read_text())["records"]
    assert [(r["stage"], r["ms"]) for r in records] == [("before", 1), ("planted", 2)]
    assert f"planted: {status} in " in printed and f"gpu_run: {status} in " in printed
    assert gone(int((tmp_path / "pid").read_text()))
    assert names(unfinished(tmp_path / "out" / "gpu_run.json", PLAN, False, "abc")) == ["planted", "after"]


def test_the_hosts_signal_handlers_come_back(go: Go) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    go([BEFORE])
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)] == before


def test_exit_status_is_known_where_child_signals_were_ignored(go: Go) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        planted(go([BEFORE, Stage("planted", 20, python("raise SystemExit(3)")), AFTER]), "failed with status 3")
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_unfinished_stages_are_run_next(go: Go, tmp_path: Path) -> None:
    state = tmp_path / "state" / "state.json"
    plan = [BEFORE, Stage("planted", 20, python("1 / 0")), AFTER]
    assert go(plan).status == 1
    left = unfinished(state, plan, False, "abc")
    assert left == [plan[1]] and go(left).status == 1
    assert unfinished(state, plan, False, "abc") == left, "what passed in the first run counts after the second"
    assert go([replace(left[0], command=python(""))]).status == 0
    assert unfinished(state, plan, False, "abc") == []


def test_what_passed_on_another_commit_does_not_count(go: Go, tmp_path: Path) -> None:
    state = tmp_path / "state" / "state.json"
    plan = [BEFORE, AFTER]
    go(plan)
    assert unfinished(state, plan, False, "abc") == []
    assert unfinished(state, plan, False, "def") == unfinished(state, plan, False, None) == plan
    assert go([AFTER], commit="def").document["passed_before"] == []
    assert unfinished(state, plan, False, "def") == [BEFORE] and unfinished(state, plan, False, "abc") == plan
    assert go([BEFORE], commit="def").document["passed_before"] == ["after"]
    assert unfinished(state, plan, False, "def") == []


def test_unfinished_without_a_usable_record(tmp_path: Path) -> None:
    path = tmp_path / "gpu_run.json"
    assert unfinished(path, PLAN, False, "abc") == PLAN
    beginning = b'{"dry_run": false, "machine": {"commit": "abc"}, "sta'
    passed = b'ges": [{"stage": "before", "status": "passed"}], "passed_before": []}'
    path.write_bytes(beginning + passed)
    assert unfinished(path, PLAN, False, "abc") == PLAN[1:]
    for text in (
        b"",
        b"[1]",
        beginning,
        b"\xff",
        beginning + b'ges": [1]}',
        b'"x"',
        b'{"dry_run": false, "sta' + passed,
    ):
        path.write_bytes(text)
        assert unfinished(path, PLAN, False, "abc") == unfinished(path, PLAN, False, None) == PLAN


def test_a_rehearsals_passes_do_not_count(go: Go) -> None:
    plan = [replace(BEFORE, needs_gpu=False), AFTER]
    outcome = go(plan, dry=True)
    assert outcome.status == 0
    assert unfinished(outcome.out / "gpu_run.json", plan, False, "abc") == plan
    assert unfinished(outcome.out / "gpu_run.json", plan, True, "abc") == [AFTER]


def test_a_reader_that_has_gone_stops_nothing(tmp_path: Path) -> None:
    script = f"""if True:
        import os, sys; sys.path.insert(0, {FOLDER!r})
        from pathlib import Path
        from stages import Runner, Stage
        os._exit(Runner(Path({str(tmp_path / "out")!r}), 570, False, {{}}).run([{BEFORE!r}, {AFTER!r}]))"""
    read, write = os.pipe()
    os.close(read)
    try:
        assert subprocess.run([sys.executable, "-S", "-c", script], stdout=write, timeout=20).returncode == 0
    finally:
        os.close(write)
    document = json.loads((tmp_path / "out" / "gpu_run.json").read_text())
    assert document["result"] == "passed" and "Broken pipe" in document["stdout"]


def test_spare_stages_run_only_in_time_that_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [
        Stage("main", 9, [sys.executable, "-c", "pass"]),
        Stage("fits", 5, [sys.executable, "-c", "pass"], spare=True),
        Stage("too long", 60, [sys.executable, "-c", "pass"], spare=True),
    ]
    assert Runner(tmp_path, 10, False, {"commit": "0"}).run(stages) == 0
    statuses = {e["stage"]: e["status"] for e in json.loads((tmp_path / "gpu_run.json").read_text())["stages"]}
    assert statuses == {"main": "passed", "fits": "passed", "too long": "left out: no time was left"}
    printed = capsys.readouterr().out
    assert "9 s  in all" in printed and "60 s  too long, if so much is left" in printed

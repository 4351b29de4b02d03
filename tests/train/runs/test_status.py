"""`qcse status` tells the state of every run, and changes nothing in the folders that it looks at."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import holder, quick

from qcse.cli.status import table
from qcse.config.plain import write_json
from qcse.runs.log import EVAL_COLUMNS
from qcse.runs.status import Overview, Row, overview
from qcse.runs.trainer import Trainer

OFFLINE, ONLINE = 20, 40


def made(
    folder: Path, *steps: int, score: float = 50.0, mean: float = 7.0, speed: float = 2.0, config: Any = None
) -> Path:
    """A run folder whose logs have rows at these steps."""
    write_json(folder / "config.json", {"offline_steps": OFFLINE, "online_steps": ONLINE} | (config or {}))
    logs(folder, *steps, score=score, mean=mean, speed=speed)
    return folder


def logs(folder: Path, *steps: int, score: float = 50.0, mean: float = 7.0, speed: float = 2.0) -> None:
    folder.mkdir(exist_ok=True)
    rows = [f"{step},online,{mean},0.5,{score},9.0,3.25\n" for step in steps]
    (folder / "eval.csv").write_text(",".join(EVAL_COLUMNS) + "\n" + "".join(rows))
    rows = [f"{step},online,{speed}\n" for step in steps if step > 0]
    (folder / "train.csv").write_text("step,phase,steps_per_second\n" + "".join(rows))


def planned(sweep: Path, **runs: Any) -> None:
    write_json(sweep / "plan.json", {"runs": runs})
    write_json(sweep / "sweep.json", {})


def after(name: str | None, first: int = 0) -> dict[str, Any]:
    return {"first": first, "last": OFFLINE + ONLINE, "after": name}


def contents(folder: Path) -> dict[str, Any]:
    """All that is below a folder: names, times of the last change, bytes."""
    found = {path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}
    return {str(path.relative_to(folder)): facts for path, facts in found.items()} | {".": folder.stat().st_mtime_ns}


def look(*folders: Path) -> dict[str, Row]:
    """Rows by run; nothing was changed."""
    before = [contents(folder) for folder in folders]
    found = overview(folders)
    assert [contents(folder) for folder in folders] == before
    return {row.run: row for row in found.rows}


@pytest.fixture
def held() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Have a folder owned by another process."""
    processes: list[subprocess.Popen[str]] = []

    def hold(path: Path) -> subprocess.Popen[str]:
        processes.append(holder(path))
        return processes[-1]

    yield hold
    for process in processes:
        process.kill()
        process.wait()


def test_every_state_in_one_table(tmp_path: Path, held: Callable[..., Any], qcse_here: Callable[..., Any]) -> None:
    sweep = tmp_path / "runs" / "s"
    held(made(sweep / "a-runs", 0, 10, 20))
    made(sweep / "b-complete", 0, 30, 60, score=math.nan)
    made(sweep / "c-stopped", 40, 50)  # it began at step 20
    made(sweep / "d-failed", 0, 10)
    (sweep / "d-failed.log").write_text("step       10 offline\nqcse train: step 11: a loss is not finite\n")
    made(sweep / "e-damaged", 0)
    (sweep / "e-damaged" / "config.json").write_text("{")
    planned(sweep, **{"f-waits": after("b-complete", 20), "g-waits": after("a-runs"), "b-complete": after(None)})
    before = contents(tmp_path)
    code, said = qcse_here("status")
    assert code == 0 and contents(tmp_path) == before
    assert [line.split() for line in said.splitlines()[:6]] == [
        "run state phase step of steps per second score return mean time left".split(),
        "s/a-runs running offline 20 60 2.0 50.0 0:00:20".split(),
        "s/b-complete complete online 60 60 2.0 7.0".split(),
        "s/c-stopped stopped online 50 60 2.0 50.0".split(),
        "s/d-failed failed offline 10 60 2.0 50.0".split(),
        said.splitlines()[5].split(),
    ]
    lines = said.splitlines()
    assert lines[5].startswith("s/e-damaged   unreadable: config.json is not valid JSON")
    assert lines[6].split() == ["s/f-waits", "waiting", "20", "60"]
    assert lines[7].split() == ["s/g-waits", *"waiting for a-runs".split(), "0", "60"]
    assert lines[8] == "s/d-failed: qcse train: step 11: a loss is not finite"
    assert lines[9:] == ["1 running, 1 complete, 1 stopped, 1 failed, 2 waiting, 1 unreadable"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_before_during_and_after(seeds: int, tmp_path: Path) -> None:
    config, seen = quick("sac", seeds=seeds, log_every=10, eval_every=30), list[Row]()
    out = tmp_path / "runs" / "run"
    Trainer(config, out, quiet=True, before_save=lambda: seen.extend(overview([tmp_path]).rows)).run()
    assert {row.run for row in seen} == {"runs/run"}
    assert {row.state for row in seen} == {"running"} and seen[0].step is None
    assert [row.step for row in seen[1:]] == [0, 30, 60] and f"process {os.getpid()} on" in str(seen[-1].owner)
    (row,) = look(tmp_path).values()
    assert (row.state, row.phase, row.step, row.of, row.time_left) == ("complete", "online", 60, 60, None)
    assert row.score is None and row.return_mean is not None and -10 <= row.return_mean <= -1
    assert row.steps_per_second is not None and row.steps_per_second > 0


def test_a_killed_run_is_stopped_and_its_mark_stays(tmp_path: Path, held: Callable[..., Any]) -> None:
    run = made(tmp_path / "run", 0, 60)
    process = held(run)
    assert look(tmp_path)["run"].state == "running"  # it still saves
    assert look(run)[str(run)].owner == look(tmp_path)["run"].owner
    process.kill()
    process.wait()
    assert look(tmp_path)["run"].state == "complete"
    logs(run, 0, 59)
    with open(run / "train.csv", "a") as file:
        file.write("60,online,2.0\n61,onl")  # killed in the last evaluation
    row = look(tmp_path)["run"]
    assert (row.state, row.step, row.owner, row.time_left) == ("stopped", 60, None, None)
    assert len(list(run.glob(".*.lock"))) == 1


def test_seeds_that_are_trained_together_have_one_row(tmp_path: Path) -> None:
    made(tmp_path / "g", config={"seed": 3, "seeds": 2})
    made(tmp_path / "g" / "seed3", 0, 30, score=10.0)
    row = look(tmp_path)["g"]
    assert (row.state, row.step, row.score) == ("stopped", None, 10.0)
    made(tmp_path / "g" / "seed4", 0, 20, score=20.0)
    made(tmp_path / "g" / "seed5" / "other", 0)
    rows = look(tmp_path)
    assert list(rows) == ["g", "g/seed5/other"]
    assert (rows["g"].step, rows["g"].phase, rows["g"].score) == (20, "offline", 15.0)
    logs(tmp_path / "g" / "seed4", 20, score=math.nan, mean=9.0)
    assert (look(tmp_path)["g"].score, look(tmp_path)["g"].return_mean) == (None, 8.0)
    for seed in (3, 4):
        logs(tmp_path / "g" / f"seed{seed}", 60)
    assert look(tmp_path)["g"].state == "complete"
    assert next(iter(look(tmp_path / "g" / "seed3").values())).state == "complete"
    (tmp_path / "g" / "config.json").write_text("[]")
    assert look(tmp_path)["g"].kind == "unreadable" and "g/seed3" not in look(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", b"\xff", "config.json is not UTF-8 text (byte 0)"),
        ("config.json", b"[1]", "config.json holds [1], expected an object"),
        ("config.json", b'{"offline_steps": 3}', "config.json has no online_steps"),
        ("config.json", b'{"offline_steps": "3", "online_steps": 1}', "config.json: offline_steps: got the text '3'"),
        ("config.json", b'{"offline_steps": -3, "online_steps": 1}', "config.json: offline_steps: got -3, expected 0"),
        ("config.json", b'{"offline_steps": 3, "online_steps": 1, "seeds": 9000000}', "config.json: seeds: got 9"),
        ("config.json", None, "config.json is not a file"),
        ("eval.csv", b"step", "the last row of eval.csv does not fit its header"),
        ("eval.csv", b"step\n10\n", "eval.csv has no column normalized_score; was it edited?"),
        ("eval.csv", b"step,normalized_score,return_mean\nx,1,1\n", "eval.csv: step: got 'x', expected a number"),
        ("eval.csv", b"step,normalized_score,return_mean\n1.5,1,1\n", "eval.csv: step: got '1.5', expected a whole"),
        ("eval.csv", b"step,normalized_score,return_mean\nnan,1,1\n", "eval.csv: step: got 'nan', expected a whole"),
        ("eval.csv", b"step,normalized_score,return_mean\n-1,1,1\n", "eval.csv: step: got '-1', expected a whole"),
        ("eval.csv", b"step,normalized_score,return_mean\n1,\x1b[2J,1\n", "eval.csv: normalized_score: got '\\x1b[2J'"),
        ("eval.csv", None, "eval.csv is not a file"),
        ("train.csv", b"step,phase\n10,online\n", "train.csv has no column steps_per_second"),
        ("train.csv", b"step,steps_per_second\n10,\n20\n", "the last row of train.csv does not fit its header"),
        ("../plan.json", b'{"runs": []}', "plan.json: runs: got [], expected an object"),
        ("../plan.json", b"{", "plan.json is not valid JSON"),
        ("../plan.json", b'{"runs": {"../x": {}}}', "plan.json: got the run '../x', expected a folder's name"),
        ("../plan.json", b'{"runs": {".": {}}}', "plan.json: got the run '.', expected a folder's name"),
        ("../plan.json", b'{"runs": {"x": {"first": 1}}}', "plan.json: 'x': missing options: last, after"),
        ("../plan.json", b'{"runs": {"x": {"first": -1, "last": 3, "after": null}}}', "plan.json: first: got -1"),
        ("../plan.json", None, "plan.json is not a file"),
    ],
)
def test_what_is_damaged_is_told_in_its_row(file: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    made(tmp_path / "a", 0, 60)
    made(tmp_path / "b", 0, 60)
    (tmp_path / "b" / file).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(tmp_path / "b" / file)
    else:
        (tmp_path / "b" / file).write_bytes(content)
    rows = {row.run: row for row in overview([tmp_path]).rows}
    told = rows["plan.json" if "plan" in file else "b"]
    assert told.state.startswith(f"unreadable: {reason}") and told.kind == "unreadable" and told.step is None
    assert rows["a"].state == "complete"


def test_numbers_that_mean_nothing_are_left_out(tmp_path: Path) -> None:
    for name, speed in {"a": math.nan, "b": 0.0, "c": -1.0, "d": math.inf, "e": 1e-300, "f": 1e300}.items():
        made(tmp_path / name, 0, 30, speed=speed, score=math.inf, mean=math.nan)
    rows = look(tmp_path)
    assert all(row.score is None and row.return_mean is None and row.time_left is None for row in rows.values())
    assert [name for name, row in rows.items() if row.steps_per_second is not None] == ["e"]
    assert "1e-300" not in table(Overview(list(rows.values())))[5]


def test_a_log_of_any_length_is_read_from_its_end(tmp_path: Path) -> None:
    run = made(tmp_path / "run", 0, 10)
    with open(run / "train.csv", "r+b") as file:
        file.seek(1 << 36)  # a hole, which takes no room on the disk but for ever to read
        file.write(b"\n20,online,4.0\n30,onl")
    row = {row.run: row for row in overview([tmp_path]).rows}["run"]
    assert (row.step, row.steps_per_second, row.state) == (20, 4.0, "stopped")


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("qcse train: no file at x\n", "failed"),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'a'\nsecond line\n\n", "failed"),
        ("step 10 offline\n" * 5000 + "qcse train: a\x1b[2Jb", "failed"),
        ("qcse train: interrupted\n", "stopped"),
        ("qcse train: full\nstep       20 offline  return\n", "stopped"),
        ("qcse train: full\nstopped at step 20; continue with: qcse train --resume a\n", "stopped"),
        ("qcse train: full\nstopped at step 20; continue\nqcse train: fuller", "failed"),
        ("", "stopped"),
    ],
)
def test_a_run_has_failed_where_its_log_ends_with_an_error(said: str, state: str, tmp_path: Path) -> None:
    made(tmp_path / "run", 0, 20)
    (tmp_path / "run.log").write_text(said)
    row = look(tmp_path)["run"]
    assert row.state == state and (row.error is not None) == (state == "failed")
    if row.error is not None:
        assert row.error in (said.strip().splitlines()[-1], "qcse train: a\\x1b[2Jb")
        assert table(overview([tmp_path]))[2:] == [f"run: {row.error}", "1 failed"]
    logs(tmp_path / "run", 0, 60)
    assert look(tmp_path)["run"].state == "complete"


def test_a_plan(tmp_path: Path, held: Callable[..., Any]) -> None:
    sweep = tmp_path / "s"
    planned(sweep, a=after(None), b=after("a", OFFLINE), c=after("gone"), d=after(None), e=after(None))
    held(sweep / "d")  # it has begun to begin
    (sweep / "e.log").write_text("qcse train: dataset: no file\n")
    (sweep / "f").mkdir()
    rows = look(tmp_path)
    assert {name: row.state for name, row in rows.items()} == {
        "s/a": "waiting", "s/b": "waiting for a", "s/c": "waiting for gone", "s/d": "running", "s/e": "failed"
    }  # fmt: skip
    assert [(row.step, row.of, row.phase) for row in rows.values()][:2] == [(0, 60, None), (OFFLINE, 60, None)]
    made(sweep / "a", 0, 20)
    assert look(tmp_path)["s/b"].state == "waiting for a"
    logs(sweep / "a", 0, 20, 60)
    rows = look(tmp_path)
    assert rows["s/a"].state == "complete" and rows["s/b"].state == "waiting"
    assert table(overview([tmp_path]))[-1] == "1 running, 1 complete, 1 failed, 2 waiting"


def test_how_a_sweep_goes_on(tmp_path: Path, held: Callable[..., Any]) -> None:
    made(tmp_path / "s" / "a", 0, 60)
    made(tmp_path / "s" / "b", 0, 50)
    (tmp_path / "s" / "sweep.json").write_text("anything")
    goes_on = f"1 complete, 1 stopped; {tmp_path / 's'}: the same qcse sweep command goes on"
    assert table(overview([tmp_path]))[-1] == goes_on and not overview([tmp_path]).active
    sweep = held(tmp_path / "s")  # between two runs
    assert table(overview([tmp_path]))[-1] == "1 complete, 1 stopped" and overview([tmp_path]).active
    sweep.kill()
    sweep.wait()
    run = held(tmp_path / "s" / "b")  # somebody resumed that run alone
    assert table(overview([tmp_path]))[-1] == "1 running, 1 complete" and overview([tmp_path]).active
    run.kill()
    run.wait()
    assert table(overview([tmp_path]))[-1] == goes_on
    logs(tmp_path / "s" / "b", 0, 60)
    assert table(overview([tmp_path]))[-1] == "2 complete"


def test_json(tmp_path: Path, held: Callable[..., Any], qcse_here: Callable[..., Any]) -> None:
    process = held(made(tmp_path / "a" / "run", 0, 30, speed=4.0))
    made(tmp_path / "b", 0, 60, score=math.nan)
    code, said = qcse_here("status", "--json", "a", "b")
    first, second = map(json.loads, said.splitlines())
    assert code == 0 and f"process {process.pid} on" in first.pop("owner")
    assert first == {
        "run": "a/run", "state": "running", "phase": "online", "step": 30, "of": 60, "steps_per_second": 4.0,
        "score": 50.0, "return_mean": None, "time_left": 7.5, "error": None,
    }  # fmt: skip
    assert (second["run"], second["score"], second["return_mean"]) == ("b", None, 7.0)
    assert qcse_here("status", "--json", "a", "a/run")[1].count("\n") == 1  # one run, named twice


def test_watching_ends_when_nothing_runs_any_more(
    tmp_path: Path, held: Callable[..., Any], qcse_here: Callable[..., Any]
) -> None:
    process = held(made(tmp_path / "runs" / "a", 0, 30))
    threading.Timer(1.0, process.kill).start()
    code, said = qcse_here("status", "--watch", 0.1)
    assert code == 0 and said.count("1 running\n") > 1 and said.endswith("1 stopped\n") and "\x1b" not in said
    assert said.count("1 stopped\n") == 1


def test_watching_ends_with_ctrl_c(
    tmp_path: Path, held: Callable[..., Any], qcse_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    held(made(tmp_path / "runs" / "a", 0, 30))

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qcse.cli.status.time.sleep", interrupt)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, said = qcse_here("status", "--watch", 60)
    assert code == 0 and said.startswith("\x1b[H\x1b[J") and said.endswith("1 running\n")
    code, said = qcse_here("status", "--watch", 60, "--json")
    assert code == 0 and json.loads(said)["state"] == "running"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "runs does not exist; expected a folder that holds runs"),
        (["file"], "file is not a folder"),
        (["empty"], "empty holds no run (no config.json at any depth)"),
        (["full", "empty"], "empty holds no run"),
        (["full", "--watch", "0"], "watch: got 0.0, expected 0.1 or more"),
    ],
)
def test_bad_folders_are_named(words: list[str], message: str, tmp_path: Path, qcse_here: Callable[..., Any]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    made(tmp_path / "full", 0)
    code, said = qcse_here("status", *words)
    assert code == 1 and message in said and len(said.splitlines()) == 1


def test_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    made(tmp_path / "a\x1b[2J", 0)
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    made(tmp_path / "caf\udce9" / "run", 0)
    assert [line.split()[0] for line in table(overview([tmp_path]))[1:3]] == ["a\\x1b[2J", "caf\\udce9/run"]


def test_torch_is_not_imported(tmp_path: Path) -> None:
    made(tmp_path / "runs" / "a", 0)
    code = "import sys; from qcse.cli.main import main; main(['status']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.splitlines()[-2:] == ["1 stopped", "False"], result.stderr

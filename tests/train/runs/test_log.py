"""A run's logs: what is written can be read back, and a resumed run has every row once."""

from __future__ import annotations

import csv
import errno
import json
import math
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qcse.config.plain import json_text, write_json
from qcse.errors import QcseError
from qcse.runs import log as log_module
from qcse.runs import machine
from qcse.runs.log import EVAL_COLUMNS, TAIL, CsvLog, LogError, RunLog, last_row
from qcse.runs.machine import append_machine_facts, describe_changes, machine_facts, moves_bits


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def eval_row(step: int, **change: Any) -> dict[str, Any]:
    row = dict(zip(EVAL_COLUMNS, (step, "online", 1.5 * step, 0.25, math.nan, 20.0, 3.125), strict=True))
    return {**row, **change}


# One CSV file.


def test_numbers_read_back_as_the_same_numbers(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "a.csv", ("step", "x", "text"))
    values = [0.1, 1 / 3, 1e-300, np.float32(0.1), torch.tensor(2.5), -math.inf, np.float64(7)]
    for i, value in enumerate(values):
        log.append({"x": value, "step": np.int64(i), "text": 'with, comma and "quotes"'})
    log.append({"step": 7, "x": None})
    read = rows(tmp_path / "a.csv")  # without closing: rows are flushed
    assert [float(r["x"]) for r in read[:-1]] == [float(v) for v in values]
    assert [r["step"] for r in read] == [str(i) for i in range(8)]
    assert read[0]["text"] == 'with, comma and "quotes"' and read[-1]["x"] == "" and log.rows == 8


@pytest.mark.parametrize(
    ("content", "row"),
    [
        (b"", None),
        (b"step,x\n", None),
        (b"step,x\n1,2", None),
        (b"step,x\n1,2\n", {"step": "1", "x": "2"}),
        (b"step,x\n1,2\n3,4\n5", {"step": "3", "x": "4"}),
        (b'step,x\n1,2\n3,"a, b"\n', {"step": "3", "x": "a, b"}),
        (b"step,x\n" + b"1,2\n" * TAIL + b"3,4\n", {"step": "3", "x": "4"}),
        (b"step", LogError),
        (b"step,x\n1\n", LogError),
        (b'step,x\n1,"2\n', LogError),
        (b"step,x\n1,2\n\n", LogError),
        (b"step,x\n1," + b"2" * TAIL + b"\n", LogError),
        (b"x" * 2 * TAIL, LogError),
    ],
)
def test_the_last_whole_row(content: bytes, row: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert last_row(path) is None
    path.write_bytes(content)
    if row is LogError:
        with pytest.raises(LogError, match=str(path)):
            last_row(path)
    else:
        assert last_row(path) == row


def test_names_and_texts_that_do_not_belong(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "a.csv", ("step", "x"))
    with pytest.raises(ValueError, match=r"no columns \['y'\]"):
        log.append({"step": 1, "y": 2})
    with pytest.raises(ValueError, match="expected one line"):
        log.append({"step": 1, "x": "two\nlines"})
    assert log.rows == 0 and rows(tmp_path / "a.csv") == []


def test_truncate_and_append_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    log = CsvLog(path, ("step", "x"))
    for i in range(5):
        log.append({"step": i, "x": i / 7})
    log.truncate(3)
    log.append({"step": 30, "x": 1})
    assert [r["step"] for r in rows(path)] == ["0", "1", "2", "30"] and log.rows == 4
    log.truncate(4)
    with pytest.raises(LogError, match="has 4 rows, the checkpoint says 5"):
        log.truncate(5)
    log.truncate(0)
    assert path.read_text() == "step,x\n" and list(tmp_path.iterdir()) == [path]


def test_a_line_that_a_kill_left_unfinished_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("step,x\n1,0.5\n2,0.2")
    log = CsvLog(path, ("step", "x"))
    assert log.rows == 1
    log.append({"step": 2, "x": 0.25})
    assert path.read_text() == "step,x\n1,0.5\n2,0.25\n"
    path.write_text("ste")
    assert CsvLog(path, ("step", "x")).rows == 0 and path.read_text() == "step,x\n"


def test_another_files_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,loss\n")
    with pytest.raises(LogError, match=r"has the columns \['time', 'loss'\], expected \['step'\]"):
        CsvLog(path, ("step",))
    assert CsvLog(path).columns == ("time", "loss")
    with pytest.raises(OSError, match=r"a\.csv"):
        CsvLog(path / "under-a-file.csv", ("step",))
    assert issubclass(LogError, QcseError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"step,x\n1,\xff\n", "not UTF-8 text \\(byte 9\\)"),
        (b"step,x\n1,\0\n", "holds a NUL"),
        (b"step,step\n", "names that differ"),
        (b"step,\n", "names that differ"),
        (b"\n", "names that differ|no header"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    with pytest.raises(LogError, match=rf"train\.csv .*({message})") as caught:
        CsvLog(path)
    assert len(str(caught.value).splitlines()) == 1 and path.read_bytes() == content


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "a.csv", ("step",))
    log._file = open("/dev/full", "a", encoding="utf-8")
    for act in (lambda: log.append({"step": 1}), log.sync, log.close):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "a.csv")


def test_extended_columns_are_empty_in_earlier_rows(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "a.csv", ("step",))
    log.append({"step": 1})
    log.extend(("step", "x", "y"))
    log.append({"step": 2, "y": 5})
    assert rows(tmp_path / "a.csv") == [{"step": "1", "x": "", "y": ""}, {"step": "2", "x": "", "y": "5"}]
    assert log.columns == ("step", "x", "y")


# A run folder.


def test_a_run_and_its_resumption(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    assert log.state() == {"train_rows": 0, "eval_rows": 0}
    log.write("eval", eval_row(0))
    log.write("train", {"step": 10, "loss": 0.5})
    log.write("train", {"step": 20, "loss": 0.25, "bonus/mean": 0.125})
    kept = log.state()
    log.write("train", {"step": 30, "loss": 9.0})
    log.write("eval", eval_row(30))
    # Killed here: nothing is closed. The checkpoint is older than the last rows.
    again = RunLog(tmp_path, resume_rows=kept, tensorboard=False)
    assert again.state() == kept == {"train_rows": 2, "eval_rows": 1}
    again.write("train", {"loss": 0.125, "step": 30})
    again.write("eval", eval_row(30, return_mean=-2.0))
    again.close()
    assert rows(tmp_path / "train.csv") == [
        {"step": "10", "loss": "0.5", "bonus/mean": ""},
        {"step": "20", "loss": "0.25", "bonus/mean": "0.125"},
        {"step": "30", "loss": "0.125", "bonus/mean": ""},
    ]
    lines = (tmp_path / "eval.csv").read_text().splitlines()
    assert lines[0] == "step,phase,return_mean,return_std,normalized_score,episode_length,wall_seconds"
    assert lines[1:] == ["0,online,0.0,0.25,nan,20.0,3.125", "30,online,-2.0,0.25,nan,20.0,3.125"]


def test_resumption_at_the_very_start(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    nothing = log.state()
    log.write("train", {"step": 1, "old": 1.0})
    log.write("eval", eval_row(1))
    again = RunLog(tmp_path, resume_rows=nothing, tensorboard=False)
    again.write("train", {"step": 1, "new": 2.0})
    assert rows(tmp_path / "train.csv") == [{"step": "1", "new": "2.0"}] and rows(tmp_path / "eval.csv") == []
    # Killed before any log was made.
    RunLog(tmp_path / "other", resume_rows=nothing, tensorboard=False).close()
    assert (tmp_path / "other" / "eval.csv").exists()


def test_logs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    log.write("train", {"step": 1})
    with pytest.raises(LogError, match="exists, expected a folder without a run"):
        RunLog(tmp_path, tensorboard=False)
    with pytest.raises(LogError, match=r"train\.csv has 1 rows, the checkpoint says 2"):
        RunLog(tmp_path, resume_rows={"train_rows": 2, "eval_rows": 0}, tensorboard=False)
    with pytest.raises(LogError, match=r"train\.csv is missing"):
        RunLog(tmp_path / "a", resume_rows={"train_rows": 2, "eval_rows": 0}, tensorboard=False)
    with pytest.raises(LogError, match=r"eval\.csv is missing"):
        RunLog(tmp_path / "b", resume_rows={"train_rows": 0, "eval_rows": 1}, tensorboard=False)


@pytest.mark.parametrize(
    ("kind", "row"),
    [("train", {"loss": 1.0}), ("test", {"step": 1}), ("eval", {"step": 1}), ("eval", eval_row(1, extra=2))],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, kind: str, row: dict[str, Any]) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    with pytest.raises(ValueError, match=r"RunLog\.write"):
        log.write(kind, row)
    assert rows(tmp_path / "eval.csv") == [] and not (tmp_path / "train.csv").exists()


def test_tensorboard_shows_each_step_once_after_a_resumption(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path)
    log.write("eval", eval_row(0))
    log.write("train", {"step": 10, "phase": "offline", "loss": 0.5, "bonus/mean": math.nan})
    kept = log.state()
    log.write("train", {"step": 20, "phase": "offline", "loss": 9.0})
    log.write("eval", eval_row(20))
    log.close()
    time.sleep(1.1)  # TensorBoard reads its files in the order of their names, which begin with the second
    again = RunLog(tmp_path, resume_rows=kept)
    again.write("train", {"step": 20, "phase": "offline", "loss": 0.25})
    again.write("eval", eval_row(20, return_mean=4.0))
    again.close()
    seen: dict[str, list[tuple[int, float]]] = {}
    for kind in ("train", "eval"):
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / kind)).Reload()
        for tag in events.Tags()["scalars"]:
            seen[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    assert seen["train/loss"] == [(10, 0.5), (20, 0.25)]
    assert seen["eval/return_mean"] == [(0, 0.0), (20, 4.0)]
    assert "bonus/mean" not in seen and "train/phase" not in seen


def test_a_run_goes_on_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = RunLog(tmp_path)
    log.write("eval", eval_row(0))
    assert "pip install tensorboard" in caplog.text and len(rows(tmp_path / "eval.csv")) == 1


class Failing:
    """A logger that fails at its n-th row, as a full disk makes TensorBoard's thread fail."""

    def __init__(self, directory: Path, last_steps: object = None) -> None:
        self.rows, self.closed = 0, False

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        self.rows += 1
        if self.rows == 2:
            raise FileNotFoundError(2, "No such file or directory", "events")

    def close(self) -> None:
        raise OSError(28, "No space left on device")


def test_what_comes_second_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_module, "TensorBoardLog", Failing)
    log = RunLog(tmp_path / "a")
    for step in range(4):
        log.write("train", {"step": step})
    log.close()
    assert len(rows(tmp_path / "a" / "train.csv")) == 4 and caplog.text.count("no more rows for Failing") == 1
    caplog.clear()
    RunLog(tmp_path / "b").close()
    assert caplog.text.count("No space left") == 1

    def broken(*_: object) -> None:
        raise TypeError("Descriptors cannot be created directly.\nIf this call came from a _pb2.py file, ...")

    monkeypatch.setattr(log_module, "TensorBoardLog", broken)
    caplog.clear()
    log = RunLog(tmp_path / "c")
    log.write("train", {"step": 1})
    log.close()
    assert caplog.text.count("Descriptors cannot") == 1 and len(caplog.records[0].getMessage().splitlines()) == 1


def test_the_folder_of_tensorboard_vanishes(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd) -> None:
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path)
    shutil.rmtree(tmp_path / "tensorboard")
    for step in range(3):
        log.write("eval", eval_row(step))
        log.write("train", {"step": step, "loss": 1.0})
    log.close()
    assert len(rows(tmp_path / "eval.csv")) == 3 and len(rows(tmp_path / "train.csv")) == 3
    assert caplog.text.count("no more rows for TensorBoardLog") == 1 and "Traceback" not in capfd.readouterr().err


def test_a_run_resumes_behind_a_last_line_of_anything(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    log.write("eval", eval_row(0))
    log.write("train", {"step": 10, "loss": 0.5})
    kept = log.state()
    for tail in (b"20,0.", b"\0" * 30, b"20,\xff\xfe"):
        for name in ("train.csv", "eval.csv"):
            with open(tmp_path / name, "ab") as file:
                file.write(tail)
        again = RunLog(tmp_path, resume_rows=kept, tensorboard=False)
        assert again.state() == kept
        again.close()
    assert rows(tmp_path / "train.csv") == [{"step": "10", "loss": "0.5"}]


# JSON and facts.


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(
        path, {"path": Path("x/y"), "n": np.int64(3), "list": [np.float32(0.5)], "array": np.arange(2), "no": None}
    )
    assert json.loads(path.read_text()) == {"path": "x/y", "n": 3, "list": [0.5], "array": [0, 1], "no": None}
    with pytest.raises(TypeError, match="got a object"):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text())["n"] == 3 and list(path.parent.iterdir()) == [path]


def test_json_has_no_nan_and_takes_any_path(tmp_path: Path) -> None:
    value = {"a": math.nan, "b": [np.float32("inf"), 1.5], "c": np.array([math.nan, 2.0]), 3: (True, -math.inf)}
    assert json_text(value) == '{"a": null, "b": [null, 1.5], "c": [null, 2.0], "3": [true, null]}'
    assert json_text(torch.tensor(2)) == "2"
    for name in ("größe", "caf\udce9"):
        write_json(tmp_path / "a.json", {"path": Path(name)})
        (tmp_path / "a.json").read_text(encoding="utf-8")
        assert json.loads((tmp_path / "a.json").read_bytes()) == {"path": name}


def test_facts_of_earlier_parts_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "machine.json"
    for torch_version in ("2.11", "2.11", "2.13", "2.12"):
        append_machine_facts(path, {"torch": torch_version, "speed": math.nan})
    stored = json.loads(path.read_text())
    assert stored["torch"] == "2.12" and [part["torch"] for part in stored["earlier"]] == ["2.11", "2.13"]
    path.write_text('{"torch": "2.10", "peak": NaN}')  # as written before
    append_machine_facts(path, {"torch": "2.11"})
    assert json.loads(path.read_text()) == {"torch": "2.11", "earlier": [{"torch": "2.10", "peak": None}]}
    path.write_bytes(b"\xff")
    append_machine_facts(path, {"torch": "2.11"})
    assert json.loads(path.read_text()) == {"torch": "2.11"} and "not UTF-8" in caplog.text


def test_what_moves_bits_is_told() -> None:
    now = moves_bits(machine_facts() | {"device": "cpu"})
    assert {"torch", "mujoco", "instructions", "operator_instructions", "threads", "device"} <= set(now)
    assert "cores" not in now and json.loads(json.dumps(now)) == now
    assert describe_changes(now, now) is None
    before = now | {"torch": "2.1.0", "gpus": ["A", "B"]}
    assert describe_changes(before, now | {"gpus": []}) == f"gpus A, B -> none, torch 2.1.0 -> {now['torch']}"
    assert describe_changes({"threads": 64}, now) == f"threads 64 -> {now['threads']}"


def test_machine_facts(tmp_path: Path) -> None:
    facts = machine_facts()
    assert facts["torch"] == torch.__version__ and facts["numpy"] == np.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cpu"] and facts["cores"] >= facts["usable_cores"] >= 1 and facts["memory_gib"] > 0.1
    assert facts["instructions"] in ("DEFAULT", "AVX2", "AVX512") or platform.machine() != "x86_64"
    assert {"python", "os", "gymnasium", "mujoco", "qcse", "commit", "gpus"} <= set(facts)
    write_json(tmp_path / "machine.json", facts)
    assert json.loads((tmp_path / "machine.json").read_text()) == facts


def test_the_commit_is_this_projects_or_none(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "python" / "qcse"
    package.mkdir(parents=True)
    assert machine.commit_of(package) is None  # no checkout
    git("init", "-q")
    (tmp_path / "other.txt").write_text("a")
    git("add", "other.txt")
    git("commit", "-qm", "one")
    assert machine.commit_of(package) is None  # another project's checkout
    (package / "__init__.py").write_text("")
    git("add", "python")
    git("commit", "-qm", "two")
    assert machine.commit_of(package) == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed")
    assert machine.commit_of(package) == git("rev-parse", "HEAD") + "+changes"


def test_success_has_a_file_of_its_own(tmp_path: Path) -> None:
    row = {name: 0.0 for name in EVAL_COLUMNS} | {"phase": "offline", "success_rate": 0.25}
    log = RunLog(tmp_path, tensorboard=False)
    log.write("eval", row | {"step": 0})
    kept = log.state()
    assert kept["success_rows"] == 1
    log.write("eval", row | {"step": 10, "success_rate": 0.5})
    log.close()
    assert (tmp_path / "success.csv").read_text().splitlines()[1:] == ["0,offline,0.25", "10,offline,0.5"]
    assert "success" not in (tmp_path / "eval.csv").read_text()
    log = RunLog(tmp_path, resume_rows=kept, tensorboard=False)
    log.write("eval", row | {"step": 10, "success_rate": 1.0})
    log.close()
    assert (tmp_path / "success.csv").read_text().splitlines() == [
        "step,phase,success_rate", "0,offline,0.25", "10,offline,1.0",
    ]  # fmt: skip
    log = RunLog(tmp_path, resume_rows={"train_rows": 0, "eval_rows": 0}, tensorboard=False)
    assert not (tmp_path / "success.csv").exists()
    log.close()

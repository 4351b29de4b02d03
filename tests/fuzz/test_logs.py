"""A run folder whose files hold anything is a run or a ReportError of one line, and has a state; logs go on or are a
LogError."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from qcse.cli.status import table
from qcse.config.plain import json_text
from qcse.report import ReportError, Run, group_runs, read_run, table_rows
from qcse.runs.log import EVAL_COLUMNS, CsvLog, LogError, RunLog
from qcse.runs.machine import append_machine_facts
from qcse.runs.status import STATES, overview

CONFIG = {
    "algo": "cal_ql", "env": "Hopper-v5", "bonus": {"kind": "qcse", "k": 10}, "seed": 0, "offline_steps": 100,
    "online_steps": 100, "eval_episodes": 4,
}  # fmt: skip
EVAL = (",".join(EVAL_COLUMNS) + "\n" + "".join(f"{s},{'online' if s > 100 else 'offline'},{s}.5,1.0,2.0,9,3.1\n"
                                                 for s in (0, 50, 100, 150, 200))).encode()  # fmt: skip
TRAIN = b"step,phase,loss/critic,bonus/mean\n10,offline,0.5,\n20,online,0.25,0.1\n"
FILES = {
    "config.json": json.dumps(CONFIG).encode(), "eval.csv": EVAL, "train.csv": TRAIN, "machine.json": b'{"cpu": "A"}'
}  # fmt: skip

cells = st.sampled_from(["", "1", "-1", "1.5", "nan", "inf", "-inf", "1e308", "1e99", "9" * 30, "9" * 5000, "online",
                         "offline", "x", '"', '""', "1_0", " 1", "\r", "\u2028", "\0", "step", "phase"])  # fmt: skip
tables = st.lists(st.lists(cells, max_size=8), max_size=6).map(
    lambda rows: "\n".join(",".join(row) for row in rows).encode()
)
damage = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=4)), min_size=1, max_size=4)


def write(folder: Path, **contents: bytes) -> None:
    for name, content in {**FILES, **contents}.items():
        (folder / name).write_bytes(content)


def damaged(content: bytes, places: list[tuple[int, bytes]]) -> bytes:
    for place, bytes_there in places:
        at = place % (len(content) + 1)
        content = content[:at] + bytes_there + content[at + len(bytes_there) :]
    return content


def check(folder: Path) -> Run | None:
    try:
        run = read_run(folder)
    except ReportError as error:
        assert len(str(error).splitlines()) == 1 and str(folder) in str(error)
        return None
    assert len(run.steps) > 0 and len(run.steps) == len(run.values) == len(run.spread) == len(run.online)
    assert all(math.isfinite(value) for value in run.values) and all(len(c) == len(run.train["step"])
                                                                      for c in run.train.values())  # fmt: skip
    assert len(table_rows(group_runs([run]))) == 1
    return run


@given(name=st.sampled_from(sorted(FILES)), places=damage)
def test_damaged_files(name: str, places: list[tuple[int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), **{name: damaged(FILES[name], places)})
        run = check(Path(folder))
        assert run is not None or name in ("config.json", "eval.csv")


@given(name=st.sampled_from(["eval.csv", "train.csv"]), content=tables | st.binary(max_size=100))
@example(name="eval.csv", content=EVAL + b"210,online,1")
@example(name="eval.csv", content=EVAL + b'210,"online')
@example(name="train.csv", content=b"step,phase\n1\n")
def test_tables(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), **{name: content})
        check(Path(folder))
        write(Path(folder), **{name: FILES[name] + content})
        run = check(Path(folder))
        assert run is not None


PLAN = {"a": {"first": 0, "last": 9, "after": None}, "b": {"first": 9, "last": 20, "after": "a"}}
IN_SWEEP = {
    "run/config.json": FILES["config.json"], "run/eval.csv": EVAL,
    "run/train.csv": TRAIN.replace(b"loss/critic", b"steps_per_second"),
    "run.log": b"step  10 offline\nqcse train: an error\n", "plan.json": json.dumps({"runs": PLAN}).encode(),
}  # fmt: skip


@given(name=st.sampled_from(sorted(IN_SWEEP)), places=damage, content=st.none() | tables | st.binary(max_size=100))
@example(name="run/eval.csv", places=[(0, b"")], content=EVAL + b"9" * 400 + b",online,1.0,1.0,2.0,9,3.1\n")
@example(name="plan.json", places=[(0, b"")], content=b'{"runs": {"": {}}}')
def test_status(name: str, places: list[tuple[int, bytes]], content: bytes | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run").mkdir()
        for path, whole in IN_SWEEP.items():
            changed = damaged(whole, places) if content is None else content
            (Path(folder) / path).write_bytes(changed if path == name else whole)
        found = overview([Path(folder)])
        assert {row.kind for row in found.rows} <= set(STATES)
        assert len(table(found)) >= len(found.rows) + 2 and all(line.isprintable() for line in table(found))
        for row in found.rows:
            json_text(row.__dict__)


@given(content=tables | st.binary(max_size=100), columns=st.none() | st.just(("step", "x")))
@example(content=b"\r,\n", columns=None)
@example(content=b'"a\n', columns=None)
def test_continued_logs(content: bytes, columns: tuple[str, ...] | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        path.write_bytes(content)
        try:
            log = CsvLog(path, columns)
        except LogError as error:
            assert len(str(error).splitlines()) == 1
            return
        kept = log.rows
        log.append({})
        log.extend(("new",))
        log.append({"new": 1})
        log.truncate(kept)
        log.close()
        assert CsvLog(path).rows == kept


@given(content=tables | st.binary(max_size=60), rows=st.integers(0, 3))
def test_resumed_logs(content: bytes, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), **{"train.csv": content})
        try:
            log = RunLog(Path(folder), {"train_rows": rows, "eval_rows": 2}, tensorboard=False)
        except LogError as error:
            assert len(str(error).splitlines()) == 1
            return
        log.write("train", {"step": 30, "loss/critic": 1.0})
        assert log.state() == {"train_rows": rows + 1, "eval_rows": 2}
        log.close()


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(content=st.binary(max_size=60) | values.map(lambda v: json.dumps(v).encode()))
@example(content=b'{"earlier": 3}')
@example(content=b'{"a": ' * 3000)
def test_machine_facts(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), **{"machine.json": content})
        assert check(Path(folder)) is not None
        append_machine_facts(Path(folder) / "machine.json", {"torch": "2.13", "speed": math.nan})
        run = check(Path(folder))
        assert run is not None and run.machine["torch"] == "2.13" and run.notes == []

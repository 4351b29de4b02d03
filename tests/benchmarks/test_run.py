"""The plan of `make gpu-run`: what comes in which order, and that it fits into the time that there is."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import run
from run import REST_S, TOTAL_S, Tools, fitted, named, plan
from stages import ROOT, Stage, unfinished

PREPARATION_S = 20  # laying the kit out and looking whether it loads


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path, tmp_path / "qcse_lab", {"QCSE_COMMIT": "0"}, True, True, None)


def test_the_plan_is_in_order_and_fits(tools: Tools) -> None:
    stages = plan(tools, rest=False)
    order = [
        "smoke",
        "cuda tests",
        "training",
        "laboratory",
        "tuning",
        "ncu",
        "memcheck",
        "racecheck",
        "other libraries",
    ]
    assert [s.name for s in stages if s.name in order] == order
    assert sum(s.limit_s for s in stages) <= TOTAL_S - PREPARATION_S
    assert fitted(stages, [], TOTAL_S - PREPARATION_S) == stages
    assert len({s.results for s in stages if s.results} | {"log", "run", "rep", "csv", "source"}) <= 8


def test_the_second_command_does_what_the_first_left_and_then_the_rest(tools: Tools, tmp_path: Path) -> None:
    more = plan(tools, rest=True)
    assert sum(s.limit_s for s in more) <= REST_S - PREPARATION_S
    stages = plan(tools, rest=False)
    done = [{"stage": s.name, "status": "passed" if s.name != "racecheck" else "stopped after 55 s"} for s in stages]
    record = {"dry_run": False, "machine": {"commit": "0"}, "stages": done, "passed_before": []}
    (tmp_path / "done.json").write_text(json.dumps(record))
    left = unfinished(tmp_path / "done.json", stages, False, "0")
    assert [s.name for s in left] == ["racecheck"]
    chosen = fitted([*left, *more], [], REST_S)
    assert [s.name for s in chosen[:2]] == ["racecheck", "initcheck"]
    assert sum(s.limit_s for s in chosen if not s.spare) <= REST_S and len(chosen) == len(more) + 1


def test_stages_are_chosen_by_name(tools: Tools) -> None:
    stages = [*plan(tools, rest=False), *plan(tools, rest=True)]
    names = "cuda tests, memory,cuda tests, training beside JAX, TF32,training"
    assert [s.name for s in named(stages, names)] == [
        "cuda tests, memory",
        "cuda tests",
        "training beside JAX, TF32",
        "training",
    ]
    with pytest.raises(SystemExit, match=r"STAGES has 'labour'; expected names .* smoke; facts"):
        named(stages, "smoke,labour")


def test_what_does_not_fit_gets_the_time_that_is_left() -> None:
    stages = [Stage("a", 60, ["true"]), Stage("b", 60, ["true"]), Stage("c", 30, ["true"])]
    chosen = fitted(stages, [Stage("d", 5, ["true"])], 100)
    assert [(s.name, s.spare) for s in chosen] == [("a", False), ("c", False), ("b", True), ("d", True)]


def test_a_laboratory_that_answers_wrongly_is_not_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what finds out why."""
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "qcse_lab").write_text('#!/bin/sh\n[ "$1" = dump ]\n')
    (kit / "qcse_lab").chmod(0o755)
    monkeypatch.setattr(run, "WORK", tmp_path / "work")
    monkeypatch.setenv("KIT", str(kit))
    tools = run.prepare(tmp_path, dry=True)
    assert tools.lab_ready and tools.lab == kit / "qcse_lab"


def test_a_kit_of_other_sources_shows_in_every_record(tmp_path: Path) -> None:
    (tmp_path / "sources").write_text("something else\n")
    assert run.tree_commit(tmp_path).endswith("-with-another-kit")
    (tmp_path / "sources").write_text(run.digest_of_sources() + "\n")
    assert "kit" not in run.tree_commit(tmp_path)


def test_every_stage_that_needs_no_gpu_has_a_rehearsal(tools: Tools) -> None:
    without = [s.name for s in plan(tools, rest=False) if s.rehearsal is None]
    assert without == ["ncu", "cuda tests, memory", "memcheck", "racecheck"]


def test_the_kit_is_laid_out_without_replacing_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "kit" / "wheels"
    wheels.mkdir(parents=True)
    for name in ("numpy-0.0.1", "made_up_package-1.0"):
        with zipfile.ZipFile(wheels / f"{name}-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name.split('-')[0]}/__init__.py", "LAID_OUT = True\n")
    (tmp_path / "kit" / "commit").write_text("carried\n")
    monkeypatch.setattr(run, "WORK", tmp_path / "work")
    monkeypatch.setattr(run, "commit", lambda: "unknown")  # a machine without git
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    environment = run.lay_out(tmp_path / "kit")
    assert environment["QCSE_COMMIT"] == "carried"
    assert environment["PYTHONPATH"].split(":")[-1] == "/somewhere"
    assert [p.name for p in (tmp_path / "work" / "site").iterdir()] == ["made_up_package"]
    code = "import made_up_package, numpy; print(made_up_package.LAID_OUT, hasattr(numpy, 'LAID_OUT'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_it_says_what_it_expects() -> None:
    script = ROOT / "benchmarks" / "gpu" / "run.py"
    done = subprocess.run([sys.executable, str(script), "--quick"], capture_output=True, text=True)
    assert done.returncode != 0 and "got ['--quick']; expected no arguments" in done.stderr

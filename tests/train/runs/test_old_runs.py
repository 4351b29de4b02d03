"""A run folder of an earlier version, stopped amid its online phase: old_run, two seeds, at step 45 of 60.

It was made before options, networks and loop moved into packages (commit 7270d7b). Options that have come since have
the meaning that they had then; whoever changes what a folder holds adds a new one here and keeps the old.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from qcse.config import read_config
from qcse.data.tasks import embedded
from qcse.runs import checkpoint
from qcse.runs.policy import StoredPolicy

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "old_run")
    return tmp_path / "old_run"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_its_options_are_read(old: Path) -> None:
    config = read_config(old / "config.json")
    assert (config.algo, config.seed, config.seeds, config.offline_steps, config.online_steps) == (
        "cal_ql",
        3,
        2,
        20,
        40,
    )
    assert (config.bonus.kind, config.bonus.k, config.cql.actions) == ("qcse", 5, 2)  # type: ignore[attr-defined]
    assert config.cql.calibration_online == "task_return"  # type: ignore[attr-defined]


def test_its_checkpoint_is_plain(old: Path) -> None:
    state = torch.load(old / checkpoint.NAME, weights_only=True)
    assert state["step"] == 45 and set(state["agent"]["modules"]) == {"policy", "critics", "targets"}


def test_it_goes_on(old: Path, qcse) -> None:
    before = [rows(old / f"seed{seed}" / "eval.csv") for seed in (3, 4)]
    weights = torch.load(old / checkpoint.NAME, weights_only=True)["agent"]["modules"]["policy"]
    said = qcse("train", "--resume", old, "--dataset", embedded("hopper-replay.hdf5"), check=True).stderr
    assert "warning" not in said or "goes on with others than so far" in said
    for seed, first in zip((3, 4), before, strict=True):
        now = rows(old / f"seed{seed}" / "eval.csv")
        assert now[: len(first)] == first and [int(row["step"]) for row in now] == [0, 20, 40, 60]
        assert [int(row["step"]) for row in rows(old / f"seed{seed}" / "train.csv")] == [10, 20, 30, 40, 50, 60]
    after = torch.load(old / checkpoint.NAME, weights_only=True)["agent"]["modules"]["policy"]
    assert weights.keys() == after.keys() and any(not torch.equal(weights[name], after[name]) for name in weights)


def test_its_policy_acts_and_it_is_reported(old: Path, qcse) -> None:
    policy = StoredPolicy(old / "seed4")
    assert (policy.step, policy.position) == (45, 1) and len(policy.evaluate(2, 0).returns) == 2
    said = qcse("report", old, "--out", old.parent / "page", check=True).stdout
    assert "cal_ql + qcse" in said and (old.parent / "page" / "report.html").is_file()

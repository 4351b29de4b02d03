"""`make learn`'s own arithmetic, on runs that are made up: what it asks of each algorithm, and whom it names."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qcse.cli.main import main
from qcse.learn.agents import AGENTS
from qcse.runs import trainer as train
from qcse.runs.resources import Job, Resources


@pytest.fixture
def learn() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "learn.py"
    spec = importlib.util.spec_from_file_location("learn", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("algo", list(AGENTS))
def test_every_algorithm_has_both_phases(
    algo: str, learn: ModuleType, hopper_data: Path, tmp_path: Path, monkeypatch
) -> None:
    class Stopped(Exception):
        pass

    def stop(self: train.Trainer) -> None:
        raise Stopped(self.config)

    monkeypatch.setattr(train.Trainer, "run", stop)
    words = [*learn.options(algo), "--dataset", str(hopper_data), "--out", str(tmp_path / "run")]
    with pytest.raises(Stopped) as caught:
        main(["train", *words])
    config = caught.value.args[0]
    assert (config.algo, config.seeds, config.bonus.kind) == (algo, 3, "none")
    assert 0 < config.offline_steps <= 20_000 and config.online_steps == 5_000
    assert config.net.policy_hidden == config.net.critic_hidden == (64, 64)
    assert config.net.critics == (10 if algo in ("rlpd", "wsrl") else 2)


def test_who_falls_short_is_named(learn: ModuleType, tmp_path: Path, monkeypatch, capsys) -> None:
    # untrained 1, 2 and 3 in every run; twice their mean is 4
    made_up = {"sac": (0.5, 4.1), "iql": (4.1, 4.1), "cql": (5.0, 4.0)}

    def runs(jobs: list[Job], available: Resources) -> None:
        for job in jobs:
            for seed in range(3):
                folder = job.out / f"seed{seed}"
                folder.mkdir(parents=True)
                offline, online = (value + (seed - 1) for value in made_up[job.out.name])
                lines = ["step,phase,normalized_score", f"0,offline,{seed + 1}", "5000,offline,99"]
                lines += [f"20000,offline,{offline}", "22500,online,99", f"25000,online,{online}"]
                (folder / "eval.csv").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(learn, "run_all", runs)
    words = ["--out", str(tmp_path), "--algos", *made_up, "--json", str(tmp_path / "learn.json")]
    monkeypatch.setattr(sys, "argv", ["learn.py", *words])
    assert learn.main() == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert lines["sac"].endswith("4.1 (3.1 to 5.1)  falls short offline")
    assert lines["iql"].endswith("4.1 (3.1 to 5.1)    4.1 (3.1 to 5.1)  yes")
    assert lines["cql"].endswith("falls short online")
    assert lines["behaviour"].endswith(": 8.2")
    stored = json.loads((tmp_path / "learn.json").read_text())
    assert [row["falls_short"] for row in stored["records"]] == [["offline"], [], ["online"]]
    assert stored["records"][0]["seeds"]["untrained"] == [1, 2, 3]

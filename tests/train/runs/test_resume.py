"""A run that is killed and resumed equals, bit for bit, one that never stopped."""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import QUICK, equal, qcse_command

from qcse.config import preset
from qcse.runs import checkpoint
from qcse.runs.trainer import Trainer


def options(algo: str, env: str, data: Path, offline: int, online: int, out: Path) -> list[object]:
    return [
        "train", "--algo", algo, "--env", env, "--dataset", data, "--bonus", "qcse", "--offline-steps", offline,
        "--online-steps", online, "--eval-every", 100, "--log-every", 10, "--checkpoint-seconds", 0.05, "--out", out,
        *QUICK,
    ]  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def results(out: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in rows(out / "eval.csv")]


def metrics(out: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows(out / "train.csv")]


def kill_after(step: int, out: Path, command: list[object]) -> None:
    """SIGKILL as soon as train.csv has reached the step."""
    process = subprocess.Popen(qcse_command(*command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        logged = rows(out / "train.csv")
        if logged and logged[-1]["step"] and int(logged[-1]["step"]) >= step:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"ended by itself before step {step}: {errors.decode()}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "env", "offline", "online"), [("cal_ql", "Hopper-v5", 300, 400), ("cql", "Ant-v5", 150, 200)]
)
def test_killed_and_resumed_equals_uninterrupted(
    algo: str, env: str, offline: int, online: int, hopper_data: Path, ant_data: Path, tmp_path: Path, qcse
) -> None:
    data = hopper_data if env.startswith("Hopper") else ant_data
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    qcse(*options(algo, env, data, offline, online, whole), check=True)

    rng = random.Random(f"{algo} {env}")
    total = offline + online
    points = [rng.randrange(20, offline - 20)]
    points += sorted(rng.sample(range(offline + 20, total - 40), 2))
    kill_after(points[0], broken, options(algo, env, data, offline, online, broken))
    kill_after(points[1], broken, ["train", "--resume", broken])
    kill_after(points[2], broken, ["train", "--resume", broken])
    qcse("train", "--resume", broken, check=True)

    assert results(broken) == results(whole)
    assert [int(r["step"]) for r in results(whole)] == sorted({*range(0, total + 1, 100), offline, total})
    assert metrics(broken) == metrics(whole)
    a, b = (checkpoint.load(folder / checkpoint.NAME) for folder in (whole, broken))
    for part in ("agent", "reward", "buffer", "streams", "episodes"):
        assert equal(a[part], b[part]), part


def test_seeds_trained_together_resume_as_well(hopper_data: Path, tmp_path: Path, qcse) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = options("cql", "Hopper-v5", hopper_data, 60, 100, whole)
    qcse(*command, "--seeds", 2, check=True)
    process = subprocess.Popen(qcse_command(*options("cql", "Hopper-v5", hopper_data, 60, 100, broken), "--seeds", 2))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(r["step"] >= "90" for r in rows(broken / "seed1" / "train.csv")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    qcse("train", "--resume", broken, check=True)
    for seed in ("seed0", "seed1"):
        assert results(broken / seed) == results(whole / seed) and len(results(whole / seed)) == 4
        assert metrics(broken / seed) == metrics(whole / seed)
    refused = qcse("eval", whole)
    assert refused.returncode == 1 and "seed1" in refused.stderr
    assert '"step": 160' in qcse("eval", whole / "seed1", "--episodes", 1, "--json", check=True).stdout
    assert qcse("report", whole, "--out", tmp_path / "page", check=True).stdout.count("0, 1") >= 1


class Stop(Exception):
    pass


def run_until(trainer: Trainer, where: str, when: Callable[[Trainer], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the method `where` is called while `when` holds, and break off there."""
    original = getattr(Trainer, where)

    def stops(self: Trainer, *args: object) -> None:
        if when(self):
            raise Stop
        original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, where, stops)
        trainer.run()


@pytest.mark.parametrize("where", ["save", "_evaluate"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_run_that_stops_around_its_first_evaluation_loses_nothing(
    where: str, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer(out: Path) -> Trainer:
        config = preset("sac", "Hopper-v5")
        config.net.policy_hidden = config.net.critic_hidden = (8,)
        config.online_steps, config.random_steps, config.learning_starts, config.threads = 30, 0, 0, 1
        config.bonus.kind, config.bonus.k, config.eval_every, config.eval_episodes = "qcse", 3, 15, 1
        path = out / checkpoint.NAME
        return Trainer(config, out, checkpoint.load(path) if path.exists() else None, quiet=True)

    trainer(tmp_path / "whole").run()
    calls = itertools.count(1)
    run_until(trainer(tmp_path / "broken"), where, lambda _: next(calls) == nth, monkeypatch)
    trainer(tmp_path / "broken").run()
    assert results(tmp_path / "broken") == results(tmp_path / "whole") and len(results(tmp_path / "whole")) == 3
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


def test_resume_amid_the_updates_of_an_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(out: Path) -> Trainer:
        config = preset("sac", "Hopper-v5")
        config.net.policy_hidden = config.net.critic_hidden = (8,)
        config.online_steps, config.random_steps, config.learning_starts, config.threads = 80, 0, 0, 1
        config.update_after, config.eval_every, config.eval_episodes = "episode", 40, 1
        config.checkpoint_seconds = 1e-9
        path = out / checkpoint.NAME
        return Trainer(config, out, checkpoint.load(path) if path.exists() else None, quiet=True)

    trainer(tmp_path / "whole").run()
    run_until(trainer(tmp_path / "broken"), "update", lambda self: self.agent.updates == 25, monkeypatch)
    resumed = trainer(tmp_path / "broken")
    assert resumed.agent.updates == 25 and resumed.pending > 0
    resumed.run()
    assert results(tmp_path / "broken") == results(tmp_path / "whole")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


@pytest.mark.parametrize(("bonus", "overlap"), [("vcse", False), ("se", True), ("rnd", False)])
def test_every_bonus_resumes(bonus: str, overlap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(out: Path) -> Trainer:
        config = preset("sac", "Hopper-v5", bonus=bonus)
        config.net.policy_hidden = config.net.critic_hidden = config.bonus.hidden = (8,)
        config.online_steps, config.random_steps, config.learning_starts, config.threads = 50, 0, 0, 1
        config.bonus.k, config.batch_size, config.eval_every, config.log_every = 3, 32, 25, 5
        config.eval_episodes, config.checkpoint_seconds, config.overlap = 1, 1e-9, overlap
        path = out / checkpoint.NAME
        return Trainer(config, out, checkpoint.load(path) if path.exists() else None, quiet=True)

    trainer(tmp_path / "whole").run()
    run_until(trainer(tmp_path / "broken"), "update", lambda self: self.agent.updates == 33, monkeypatch)
    resumed = trainer(tmp_path / "broken")
    assert 0 < resumed.agent.updates <= 33
    resumed.run()
    assert results(tmp_path / "broken") == results(tmp_path / "whole")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    a, b = (checkpoint.load(tmp_path / name / checkpoint.NAME)["reward"] for name in ("broken", "whole"))
    assert equal(a, b)


def test_an_edited_configuration_is_refused(hopper_data: Path, tmp_path: Path, qcse) -> None:
    out = tmp_path / "run"
    qcse(*options("cal_ql", "Hopper-v5", hopper_data, 20, 20, out), check=True)
    text = (out / "config.json").read_text()
    (out / "config.json").write_text(text.replace('"discount": 0.99', '"discount": 0.5'))
    result = qcse("train", "--resume", out)
    assert result.returncode == 1
    for word in ("discount", "0.99", "0.5"):
        assert word in result.stderr
    (out / "config.json").write_text(json.dumps(json.loads(text) | {"bonus": 3}))
    result = qcse("train", "--resume", out)
    assert result.returncode == 1 and "bonus is 3" in result.stderr and "Traceback" not in result.stderr


def test_data_may_move_and_evaluation_needs_none(hopper_data: Path, tmp_path: Path, qcse) -> None:
    data, moved, out = tmp_path / "data.hdf5", tmp_path / "moved.hdf5", tmp_path / "run"
    data.write_bytes(hopper_data.read_bytes())
    kill_after(30, out, [*options("cql", "Hopper-v5", data, 60, 40, out), "--normalize-observations"])
    data.rename(moved)
    assert '"episodes": 1' in qcse("eval", out, "--episodes", 1, "--json", check=True).stdout
    missing = qcse("train", "--resume", out)
    assert missing.returncode == 1 and "data.hdf5" in missing.stderr
    qcse("train", "--resume", out, "--dataset", moved, check=True)
    assert results(out)[-1]["step"] == "100"


def test_resuming_a_finished_run_changes_nothing(hopper_data: Path, tmp_path: Path, qcse) -> None:
    out = tmp_path / "run"
    qcse(*options("cal_ql", "Hopper-v5", hopper_data, 20, 20, out), check=True)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "complete" in qcse("train", "--resume", out, check=True).stdout
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_interrupt_saves_and_says_how_to_resume(hopper_data: Path, tmp_path: Path, qcse) -> None:
    out = tmp_path / "run"
    command = qcse_command(*options("cal_ql", "Hopper-v5", hopper_data, 100_000, 0, out))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not rows(out / "train.csv"):
        assert time.monotonic() < deadline, "no row of train.csv after 200 s"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"qcse train --resume {out}" in errors and "Traceback" not in errors
    assert checkpoint.load(out / checkpoint.NAME)["step"] > 0


def test_changed_data_is_refused(hopper_data: Path, tmp_path: Path, qcse) -> None:
    from conftest import record_random_policy

    data, out = tmp_path / "data.hdf5", tmp_path / "run"
    data.write_bytes(hopper_data.read_bytes())
    config = options("cal_ql", "Hopper-v5", data, 20, 5000, out)
    kill_after(30, out, config)
    record_random_policy("Hopper-v5", 50, data, seed=1)
    result = qcse("train", "--resume", out)
    assert result.returncode == 1 and "has changed" in result.stderr and "Traceback" not in result.stderr


def test_checkpoint_is_whole_or_old(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.NAME
    checkpoint.save(path, {"step": 1})

    class Unsaveable:
        def __reduce__(self):
            raise RuntimeError("stopped half way")

    with pytest.raises(RuntimeError, match="stopped half way"):
        checkpoint.save(path, {"step": 2, "bad": Unsaveable()})
    assert checkpoint.load(path)["step"] == 1

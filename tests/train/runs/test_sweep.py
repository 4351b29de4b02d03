"""A sweep is packed into processes, survives a kill, and reports; a contradicting continuation is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import QUICK, equal, qcse_command
from test_resume import rows

from qcse.config import from_dict
from qcse.runs import checkpoint


@pytest.mark.slow
def test_sweep_is_killed_and_continued(hopper_data: Path, tmp_path: Path, qcse) -> None:
    lines = ['envs = ["Hopper-v5"]', f'datasets = ["{hopper_data}"]', 'algos = ["cql"]', "seeds = 3"]
    (tmp_path / "sweep.toml").write_text("\n".join([*lines, 'extra = ["--eval-every", "20"]']))
    command = ["sweep", "--file", "sweep.toml", "--batch-seeds", 2, "--offline-steps", 30, "--online-steps", 30]
    command += [
        "--workers",
        2,
        "--no-estimate",
        "--out",
        "s",
        "--",
        "--log-every",
        10,
        "--checkpoint-seconds",
        0.1,
        *QUICK,
    ]
    process = subprocess.Popen(
        qcse_command(*command), cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("s/*/*/seed0/train.csv")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "The same command goes on: qcse sweep --file sweep.toml --batch-seeds 2" in said

    other = qcse(*command[:3], "--seeds", 5, *command[3:])
    assert other.returncode == 1 and "seeds" in other.stderr and "another sweep" in other.stderr

    result = qcse(*command, check=True)
    assert "Across" not in result.stderr and "IQM" in result.stdout
    finished = sorted(path.parent.relative_to(tmp_path / "s").as_posix() for path in tmp_path.glob("s/**/eval.csv"))
    kinds = ("Hopper-v5-cql-none", "Hopper-v5-cql-qcse", "pretrained/Hopper-v5-cql")
    assert finished == sorted([*(f"{kind}-from0/seed{s}" for kind in kinds for s in (0, 1)),
                               *(f"{kind}-from2" for kind in kinds)])  # fmt: skip
    assert "offline updates: 60 instead of 120" in result.stdout
    # What the runs did, not what the plan says: offline once for each batch of seeds, online in each arm.
    done = [rows(tmp_path / "s" / name / "train.csv") for name in finished if "seed1" not in name]
    assert sum(int(run[-1]["step"]) - int(run[0]["step"]) + 10 for run in done) == 2 * 30 + 4 * 30
    whole = ["train", "--algo", "cql", "--bonus", "qcse", "--env", "Hopper-v5", "--dataset", hopper_data, "--seed", 2]
    whole += ["--offline-steps", 30, "--online-steps", 30, "--eval-every", 20, "--log-every", 10, *QUICK]
    qcse(*whole, "--out", "whole", check=True)
    states = [checkpoint.load(tmp_path / out / checkpoint.NAME) for out in ("whole", "s/Hopper-v5-cql-qcse-from2")]
    for part in ("agent", "reward", "streams", "episodes", "buffer"):
        assert equal(states[0][part], states[1][part]), part
    assert (tmp_path / "s" / "report" / "report.html").exists() and (tmp_path / "s" / "report" / "curves.png").exists()
    for name in ("cql + qcse", "0, 1, 2"):
        assert name in result.stdout
    again = qcse(*command, check=True)
    assert (
        again.stdout.splitlines()[-1] == result.stdout.splitlines()[-1] and "complete already: 6 of 6" in again.stdout
    )
    command[command.index("--online-steps") + 1] = 40
    extended = qcse(*command, check=True)
    assert "complete already: 2 of 6" in extended.stdout
    assert all(int(rows(path)[-1]["step"]) == 70 for path in tmp_path.glob("s/Hopper*/**/eval.csv"))
    assert "6 complete" in qcse("status", "s", check=True).stdout


def test_a_failing_run_is_named_with_the_end_of_its_log(hopper_data: Path, tmp_path: Path, qcse) -> None:
    command = ["sweep", "--envs", "HalfCheetah-v5", "--datasets", hopper_data, "--algos", "cql", "--bonuses", "none"]
    result = qcse(*command, "--offline-steps", 5, "--online-steps", 5, "--no-estimate", "--out", "s")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for word in ("HalfCheetah-v5-cql-none-from0", "11", "17"):
        assert word in result.stderr


def test_a_failing_run_does_not_stop_the_others(hopper_data: Path, tmp_path: Path, qcse) -> None:
    command = ["sweep", "--envs", "Hopper-v5", "--datasets", hopper_data, "--algos", "cql", "--seeds", 1, "--out", "s"]
    command += [
        "--offline-steps",
        8,
        "--online-steps",
        8,
        "--grid",
        "critic_lr=1e30,1e-3",
        "--no-estimate",
        "--",
        *QUICK,
    ]
    result = qcse(*command)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "loss is not finite" in result.stderr
    assert "not started, as they start from it: Hopper-v5-cql-none-critic_lr=1e+30-from0, Hopper" in result.stderr
    done = [path.parent.name for path in tmp_path.glob("s/Hopper*/eval.csv")]
    assert sorted(done) == [f"Hopper-v5-cql-{bonus}-critic_lr=0.001-from0" for bonus in ("none", "qcse")]
    table = qcse("status", "s", check=True).stdout
    assert "1 failed" in table and "3 complete" in table and "2 waiting" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "s"], "envs, tasks: got none"),
        (["--envs", "Hopper-v5", "Ant-v5", "--datasets", "a.hdf5"], "datasets: got 1 for 2"),
        (["--envs", "Hopper-v5", "--seeds", "0"], "seeds: got 0"),
        (["--envs", "Hopper-v5", "--datasets", "none.hdf5"], "no file at none.hdf5"),
        (["--envs", "Hoper-v5"], "near matches: Hopper-v"),
        (["--tasks", "hoper-medium"], "near matches: hopper-medium-v2"),
        (["--file", "none.toml"], "none.toml"),
        (["--file", "odd.toml"], "sedes"),
        (["--envs", "Hopper-v5", "--grid", "bonus.kk=3"], "unknown option 'bonus.kk' (near matches: bonus.k"),
        (["--envs", "Hopper-v5", "--grid", "bonus.k"], "expected an option and its values, such as bonus.k=5,10,25"),
        (["--envs", "Hopper-v5", "--grid", "bonus.k=5,many"], "bonus.k: got the text 'many', expected a whole number"),
        (["--envs", "Hopper-v5", "--grid", "bonus.k=5,5"], "bonus.k has a value twice"),
        (["--envs", "Hopper-v5", "--grid", "bonus.k=5", "--grid", "bonus.k=6"], "bonus.k is there twice"),
        (["--envs", "Hopper-v5", "--grid", "algo=cql,iql"], "a sweep has --algos"),
        (["--tasks", "hopper-replay", "--grid", "bonus.k=0"], "bonus.k: got 0, expected 1 or more"),
        (
            ["--tasks", "hopper-replay", "--grid", "batch_size=8,9", "--", "--batch-size", "8"],
            "batch_size is given behind",
        ),
        (["--tasks", "hopper-replay", "--grid", "iql.beta=1,2"], "iql.beta is read by none of these"),
        (["--envs", "Hopper-v5", "--workers", "0"], "workers: got 0"),
        (["--tasks", "hopper-replay", "--", "--seed", "3", "--init_from=x"], "got --seed, --init_from=x behind --"),
    ],
)
def test_bad_sweeps_are_named(words: list[str], message: str, tmp_path: Path, qcse_here) -> None:
    (tmp_path / "odd.toml").write_text("sedes = 3")
    code, said = qcse_here("sweep", *words)
    assert code == 1 and message in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["odd.toml"]


def test_datasets_of_one_environment_are_told_apart(hopper_data: Path, tmp_path: Path, qcse) -> None:
    for name in ("a.hdf5", "b.hdf5", "other/a.hdf5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(hopper_data, tmp_path / name)
    command = ["sweep", "--envs", "Hopper-v5", "Hopper-v5", "--algos", "iql", "--bonuses", "none", "--seeds", 1]
    command += ["--offline-steps", 2, "--online-steps", 0, "--no-estimate", "--out", "s", "--datasets"]
    refused = qcse(*command, "a.hdf5", "other/a.hdf5")
    assert refused.returncode == 1 and "two runs would be called Hopper-v5-a-iql-none-from0" in refused.stderr
    assert not (tmp_path / "s").exists()
    qcse(*command, "a.hdf5", "b.hdf5", "--", *QUICK, check=True)
    configs = [from_dict(json.loads(path.read_text())) for path in sorted(tmp_path.glob("s/*/config.json"))]
    assert [config.dataset for config in configs] == [tmp_path / "a.hdf5", tmp_path / "b.hdf5"]


@pytest.mark.parametrize("words", [["--algos", "cql", "cql"], ["--bonuses", "se", "se"], ["--tasks", "hopper-replay"]])
def test_a_combination_that_is_there_twice_is_refused(words: list[str], qcse_here) -> None:
    tasks = ["--tasks", "hopper-replay", *words[1:]] if words[0] == "--tasks" else ["--tasks", "hopper-replay", *words]
    code, said = qcse_here("sweep", *tasks)
    assert code == 1 and "two runs would be called hopper-replay" in said


def endless_sweep(tmp_path: Path, hopper_data: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A sweep whose only run would take hours, and the process number of its trainer."""
    command = ["sweep", "--envs", "Hopper-v5", "--datasets", hopper_data, "--algos", "iql", "--bonuses", "none"]
    command += [
        "--seeds",
        1,
        "--offline-steps",
        10**7,
        "--online-steps",
        0,
        "--no-estimate",
        "--out",
        "s",
        "--",
        *QUICK,
    ]
    process = subprocess.Popen(qcse_command(*command), cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("s/*/checkpoint.pt")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    marks = list(tmp_path.glob("s/*/.*.lock"))
    return process, int(marks[0].name.split("-")[3])


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_the_trainers_end_with_the_sweep(number: int, hopper_data: Path, tmp_path: Path, qcse) -> None:
    process, trainer = endless_sweep(tmp_path, hopper_data)
    second = qcse("sweep", "--tasks", "hopper-replay", "--out", "s")
    assert second.returncode == 1 and f"is in use by process {process.pid}" in second.stderr
    process.send_signal(number)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{trainer}").exists() and "Z" not in Path(f"/proc/{trainer}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the trainer goes on alone"
        time.sleep(0.05)
    log = next(tmp_path.glob("s/*.log")).read_text()
    assert "stopped at step" in log and not list(tmp_path.glob("s/*/.*.lock"))


def test_a_hangup_that_is_ignored_is_ignored(hopper_data: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    command = ["train", "--env", "Hopper-v5", "--dataset", hopper_data, "--algo", "iql", "--offline-steps", 10**7]
    words = qcse_command(*command, "--online-steps", 0, "--out", "r", *QUICK)
    process = subprocess.Popen([words[0], "-c", code, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "r" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert "stopped at step" in process.communicate(timeout=60)[1]

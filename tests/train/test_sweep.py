"""A sweep is packed into processes, survives a kill, and reports; a contradicting continuation is refused."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import QUICK, qcse_command


@pytest.mark.slow
def test_sweep_is_killed_and_continued(hopper_data: Path, tmp_path: Path, qcse) -> None:
    lines = ['envs = ["Hopper-v5"]', f'datasets = ["{hopper_data}"]', 'algos = ["cql"]', "seeds = 3"]
    (tmp_path / "sweep.toml").write_text("\n".join([*lines, 'extra = ["--eval-every", "20"]']))
    command = ["sweep", "--file", "sweep.toml", "--batch-seeds", 2, "--offline-steps", 30, "--online-steps", 30]
    command += ["--workers", 2, "--out", "s", "--", "--log-every", 10, "--checkpoint-seconds", 0.1, *QUICK]
    process = subprocess.Popen(qcse_command(*command), cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("s/*/seed0/train.csv")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130

    other = qcse(*command[:3], "--seeds", 5, *command[3:])
    assert other.returncode == 1 and "seeds" in other.stderr and "another sweep" in other.stderr

    result = qcse(*command, check=True)
    assert "Across" not in result.stderr and "IQM" in result.stdout
    finished = sorted(path.parent.relative_to(tmp_path / "s").as_posix() for path in tmp_path.glob("s/**/eval.csv"))
    want = [f"Hopper-v5-cql-{bonus}-from0/seed{s}" for bonus in ("none", "qcse") for s in (0, 1)]
    assert finished == sorted([*want, "Hopper-v5-cql-none-from2", "Hopper-v5-cql-qcse-from2"])
    assert (tmp_path / "s" / "report" / "report.html").exists() and (tmp_path / "s" / "report" / "curves.png").exists()
    for name in ("cql + qcse", "0, 1, 2"):
        assert name in result.stdout
    again = qcse(*command, check=True)
    assert again.stdout.splitlines()[-1] == result.stdout.splitlines()[-1]


def test_a_failing_run_is_named_with_the_end_of_its_log(hopper_data: Path, tmp_path: Path, qcse) -> None:
    command = ["sweep", "--envs", "HalfCheetah-v5", "--datasets", hopper_data, "--algos", "cql", "--bonuses", "none"]
    result = qcse(*command, "--offline-steps", 5, "--online-steps", 5, "--out", "s")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for word in ("HalfCheetah-v5-cql-none-from0", "11", "17"):
        assert word in result.stderr


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
    ],
)
def test_bad_sweeps_are_named(words: list[str], message: str, tmp_path: Path, qcse) -> None:
    (tmp_path / "odd.toml").write_text("sedes = 3")
    result = qcse("sweep", *words)
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["odd.toml"]

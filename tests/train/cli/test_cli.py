"""What a user meets on the command line: help, bad input, eval, report, doctor."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
from support import QUICK, shared_data


def options(data: Path | None, out: object, **changes: object) -> list[object]:
    values = {"algo": "cal_ql", "env": "Hopper-v5", "bonus": "qcse", "offline-steps": 20, "online-steps": 20}
    values |= (
        {"out": out}
        | ({} if data is None else {"dataset": data})
        | {k.replace("_", "-"): v for k, v in changes.items()}
    )
    return ["train", *(word for name, value in values.items() for word in (f"--{name}", value)), *QUICK]


def copy_without(source: Path, target: Path, missing: str) -> Path:
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        for key in old:
            if key != missing:
                old.copy(key, new)
    return target


def truncated(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    return target


def file_as_parent(folder: Path) -> Path:
    (folder / "file").write_text("not a folder")
    return folder / "file" / "run"


# name -> (options made from the data and a folder, words that the message must hold)
BAD = {
    "missing dataset": lambda d, t: (options(t / "none.hdf5", "run"), ["none.hdf5", "HDF5", "qcse collect"]),
    "no dataset": lambda d, t: (options(None, "run"), ["dataset", "cal_ql", "--dataset"]),
    "truncated file": lambda d, t: (options(truncated(d, t / "half.hdf5"), "run"), ["half.hdf5", "cut short"]),
    "no rewards": lambda d, t: (options(copy_without(d, t / "x.hdf5", "rewards"), "run"), ["x.hdf5", "rewards"]),
    "other observation": lambda d, t: (options(d, "run", env="HalfCheetah-v5"), ["HalfCheetah-v5", "11", "17"]),
    "k beyond candidates": lambda d, t: ([*options(d, "run"), "--bonus.k", "16"], ["k", "16", "at most 15"]),
    "unknown environment": lambda d, t: (options(d, "run", env="Hoper-v5"), ["Hoper-v5", "Hopper-v5"]),
    "out under a file": lambda d, t: (options(d, file_as_parent(t)), [str(t / "file"), "is a file"]),
    "negative steps": lambda d, t: (options(d, "run", offline_steps=-5), ["offline_steps", "-5", "0 or more"]),
    "negative online": lambda d, t: (options(d, "run", online_steps=-7), ["online_steps", "-7", "0 or more"]),
    "nothing to do": lambda d, t: (options(d, "run", online_steps=0, offline_steps=0), ["offline_steps", "0 and 0"]),
    "unknown algorithm": lambda d, t: (options(d, "run", algo="ppo"), ["ppo", "cal_ql"]),
    "unknown device": lambda d, t: ([*options(d, "run"), "--device", "tpu9"], ["device", "tpu9"]),
    "not a run": lambda d, t: (["eval", t / "nothing"], ["nothing", "not a run folder"]),
    "resume of nothing": lambda d, t: (["train", "--resume", t / "nothing"], ["nothing", "not a run folder"]),
    "unknown command": lambda d, t: (["trian"], ["trian", "train"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str, hopper_data: Path, tmp_path: Path, qcse) -> None:
    command, words = BAD[name](hopper_data, tmp_path)
    result = qcse(*command)
    said = " ".join((result.stdout + result.stderr).split())
    assert result.returncode != 0
    assert "Traceback" not in said
    for word in words:
        assert word in said, said
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_out_is_not_overwritten_and_resume_does_not_contradict(hopper_data: Path, tmp_path: Path, qcse) -> None:
    qcse(*options(hopper_data, "run"), check=True)
    again = qcse(*options(hopper_data, "run"))
    assert again.returncode == 1 and "already holds a run" in again.stderr and "--resume run" in again.stderr
    other = qcse("train", "--resume", "run", "--online-steps", 10, "--bonus.k", 7)
    assert other.returncode == 1
    for word in ("online_steps", "20", "10", "bonus.k", "5", "7"):
        assert word in other.stderr
    same = qcse("train", "--resume", "run", "--online-steps", 20, "--algo", "cal_ql")
    assert same.returncode == 0, same.stderr

    record = json.loads(qcse("eval", "run", "--episodes", 2, "--json", check=True).stdout)
    assert record["step"] == 40 and record["episodes"] == 2 and record["episode_length"] > 0
    qcse("report", "run", "--out", "page", check=True)
    assert (tmp_path / "page" / "report.html").stat().st_size > 10_000
    assert list((tmp_path / "page").glob("*.png"))


def test_help_explains_every_option(qcse) -> None:
    text = qcse("train", "--help", "--algo", "cql", check=True).stdout
    for word in ("--bonus.references", "--cql.alpha", "--offline-fraction", "--resume", "gradient updates"):
        assert word.lower() in text.lower(), word
    for command in ("eval", "report", "status", "collect", "demo", "doctor"):
        assert command in qcse("--help", check=True).stdout
        assert qcse(command, "--help", check=True).stdout


def test_doctor_finds_everything(qcse) -> None:
    text = qcse("doctor", check=True).stdout
    assert "MISSING" not in text and "operator: cpu_instruction_set" in text and "Hopper-v5" in text


def test_collect_writes_both_files(tmp_path: Path, qcse) -> None:
    qcse("collect", "--steps", 300, "--learning-starts", 100, "--eval-every", 200, "--policy-rows", 150,
         "--replay-rows", 200, "--hidden", 16, 16, "--out", "d", check=True)  # fmt: skip
    with h5py.File(tmp_path / "d" / "hopper-policy.hdf5") as file:
        assert len(file["rewards"]) == 150 and file["infos/qpos"].shape == (150, 6)
    with h5py.File(tmp_path / "d" / "hopper-replay.hdf5") as file:
        assert 100 < len(file["rewards"]) <= 200
        assert file["metadata/env_id"][()].decode() == "Hopper-v5"
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["hopper-policy.hdf5", "hopper-replay.hdf5"]


def test_independent_data(tmp_path: Path, qcse) -> None:
    data = shared_data("hopper-medium-replay.hdf5")
    result = qcse(*options(data, "run", offline_steps=100, online_steps=100, log_every=50), check=True)
    assert "run complete" in result.stdout
    lines = (tmp_path / "run" / "train.csv").read_text().splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert float(last["bonus/covered"]) > 0.5 and -1 <= float(last["bonus/mean"]) <= 1
    assert 0 < float(last["bonus/neighbour_share"]) <= 1

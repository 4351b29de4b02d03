"""Every command that writes has its folder or file to itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import QUICK, holder

from qcse.data.tasks import embedded

DATA = embedded("hopper-replay.hdf5")
TRAIN = ["train", "--algo", "iql", "--env", "Hopper-v5", "--dataset", DATA, "--offline-steps", 2, "--online-steps", 0]


@pytest.mark.parametrize(
    ("command", "path", "folder"),
    [
        ([*TRAIN, *QUICK, "--out", "it"], "it", True),
        ([*TRAIN, *QUICK, "--seeds", 2, "--out", "it"], "it/seed1", True),
        (["sweep", "--tasks", "hopper-replay", "--out", "it"], "it", True),
        (["demo", "--out", "it"], "it", True),
        (["report", "run", "--out", "it"], "it", True),
        (["collect", "--env", "Hopper-v5", "--out", "it"], "it/hopper.collecting", True),
        (["collect", "--env", "Hopper-v5", "--out", "it"], "it/hopper-policy.hdf5", False),
        (["collect", "--env", "qcse/pointmaze-umaze-v0", "--out", "it"], "it/pointmaze-umaze.hdf5", False),
        (["data", "convert", DATA, "it.hdf5"], "it.hdf5", False),
        (["data", "convert", DATA, "minari:it-v0"], "minari/it-v0", False),
    ],
)
def test_a_second_writer_is_refused(
    command: list[object],
    path: str,
    folder: bool,
    tmp_path: Path,
    qcse_here: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    if command[0] == "report":
        qcse_here(*TRAIN, *QUICK, "--out", "run", check=True)
    other = holder(tmp_path / path, folder)
    before = {item for item in tmp_path.rglob("*") if item.name not in ("datasets", "minari")}
    try:
        code, said = qcse_here(*command)
    finally:
        other.kill()
        other.wait()
    assert code == 1 and f"is in use by process {other.pid}" in said and "Traceback" not in said
    assert {item for item in tmp_path.rglob("*") if item.name not in ("datasets", "minari")} - before == set()

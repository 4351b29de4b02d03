"""What a checkpoint holds comes back as it was, or is refused; what is valuable is never overwritten."""

from __future__ import annotations

import io
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import QUICK, equal, holder

from qcse.errors import CheckpointError
from qcse.learn.buffer import ReplayBuffer
from qcse.runs import checkpoint
from qcse.runs.checkpoint import NAME, PREVIOUS, Checkpoints


def ring() -> ReplayBuffer:
    return ReplayBuffer(None, 2, 64, 3, 1, torch.device("cpu"))


def fill(buffer: ReplayBuffer, rows: int) -> None:
    shapes = {name: value.shape[2:] for name, value in buffer.online.items()}
    for _ in range(rows):
        buffer.add(**{name: torch.randn(2, *shape) for name, shape in shapes.items()})


def content(folder: Path) -> dict[str, Any] | None:
    """What a resumed run would see of it."""
    state = checkpoint.load_run(folder)
    if state is None:
        return None
    buffer = ring()
    checkpoint.load_buffer(folder, buffer, state)
    return {"step": state["step"], "weights": state["weights"], "rows": buffer.rows_of(0, buffer.added)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoints:
    """A folder with two checkpoints and their segments."""
    monkeypatch.setattr(checkpoint, "SMALLEST_SEGMENT", 8)
    torch.manual_seed(0)
    buffer, store = ring(), Checkpoints(tmp_path)
    for step in (1, 2):
        fill(buffer, 20)
        store.save({"step": step, "weights": torch.randn(50)}, buffer, settled=buffer.added)
    assert sorted(p.name for p in tmp_path.rglob("*.pt")) == ["000000.pt", "000001.pt", PREVIOUS, NAME]
    return store


@pytest.mark.parametrize("name", [NAME, "buffer/000000.pt"])
def test_a_flipped_bit_is_found(name: str, store: Checkpoints, tmp_path: Path, capsys) -> None:
    good, want = (tmp_path / name).read_bytes(), content(tmp_path)
    before = checkpoint.load(tmp_path / PREVIOUS)["step"]
    assert want is not None and before == 1 and want["step"] == 2
    rng, found = random.Random(0), 0
    for _ in range(300):
        flipped = bytearray(good)
        bit = rng.randrange(len(good) * 8)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(flipped)
        try:
            got = content(tmp_path)
        except CheckpointError as error:  # a segment that both checkpoints need
            assert str(tmp_path / name) in str(error) and name != NAME
            found += 1
            continue
        assert got is not None
        if got["step"] == before:
            found += 1
            assert str(tmp_path / name) in capsys.readouterr().err
        else:
            assert equal(got, want)
    assert found == 300


def test_the_checkpoint_before_stands_in_and_is_not_replaced_by_a_damaged_one(
    store: Checkpoints, tmp_path: Path, capsys
) -> None:
    (tmp_path / NAME).write_bytes(b"damaged")
    previous = (tmp_path / PREVIOUS).read_bytes()
    state = checkpoint.load_run(tmp_path)
    assert state is not None and state["step"] == 1 and PREVIOUS in capsys.readouterr().err
    buffer, again = ring(), Checkpoints(tmp_path)
    checkpoint.load_buffer(tmp_path, buffer, state)
    again.resume(state)
    fill(buffer, 1)
    again.save({"step": 3, "weights": torch.zeros(1)}, buffer, settled=0)
    assert (tmp_path / PREVIOUS).read_bytes() == previous and checkpoint.load_run(tmp_path)["step"] == 3
    (tmp_path / NAME).unlink()
    assert checkpoint.load_run(tmp_path)["step"] == 1
    (tmp_path / PREVIOUS).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=rf"{PREVIOUS}.*Restore what is damaged.*another --out"):
        checkpoint.load_run(tmp_path)


def test_killed_between_the_two_moves_nothing_is_left_over(store: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / PREVIOUS).unlink()
    os.link(tmp_path / NAME, tmp_path / PREVIOUS)
    buffer = ring()
    fill(buffer, 40)
    store.save({"step": 3, "weights": torch.zeros(1)}, buffer, settled=40)
    assert not list(tmp_path.rglob("*.partial"))
    assert [checkpoint.load(tmp_path / name)["step"] for name in (PREVIOUS, NAME)] == [2, 3]


def test_a_segment_of_another_place_or_run_is_refused(store: Checkpoints, tmp_path: Path) -> None:
    first, second = tmp_path / "buffer" / "000000.pt", tmp_path / "buffer" / "000001.pt"
    good = first.read_bytes()
    shutil.copy(second, first)
    with pytest.raises(CheckpointError, match=r"000000.pt is damaged"):
        content(tmp_path)
    first.unlink()
    with pytest.raises(CheckpointError, match=r"000000.pt is missing"):
        content(tmp_path)
    first.write_bytes(good)
    state = checkpoint.load_run(tmp_path)
    assert state is not None
    state["files"]["run"], state["files"]["segments"] = "another", {}
    with pytest.raises(CheckpointError, match="belongs to another run"):
        checkpoint.load_buffer(tmp_path, ring(), state)


def test_rows_of_another_shape_are_refused(store: Checkpoints, tmp_path: Path) -> None:
    state = checkpoint.load_run(tmp_path)
    assert state is not None
    for odd in (torch.zeros(2, 4, 5), torch.zeros(1, 4, 3), torch.zeros(2, 4, 3, dtype=torch.float64), None):
        changed = state | {"buffer": state["buffer"] | {"rows": state["buffer"]["rows"] | {"observations": odd}}}
        with pytest.raises(CheckpointError, match="observations of another shape"):
            checkpoint.load_buffer(tmp_path, ring(), changed)


def without_digests(folder: Path) -> None:
    """The files as the version before wrote them."""
    for path in folder.rglob("*.pt"):
        state = checkpoint.load(path)
        state.pop("files", None)
        torch.save(state | {"format": 1}, path)
    (folder / PREVIOUS).unlink()


def test_checkpoints_without_digests_load_with_one_line(store: Checkpoints, tmp_path: Path, capsys) -> None:
    want = content(tmp_path)
    without_digests(tmp_path)
    assert equal(content(tmp_path), want)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "without digests" in said
    state, buffer, again = checkpoint.load_run(tmp_path), ring(), Checkpoints(tmp_path)
    assert state is not None
    checkpoint.load_buffer(tmp_path, buffer, state)
    again.resume(state)
    fill(buffer, 20)
    again.save({"step": 3, "weights": torch.zeros(1)}, buffer, settled=buffer.added)
    (tmp_path / "buffer" / "000002.pt").write_bytes(b"")
    assert content(tmp_path)["step"] == 2  # type: ignore[index]


def refused(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(path)


def test_archives_that_declare_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    plain = io.BytesIO()
    torch.save({"format": 1, "x": torch.zeros(1 << 20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    refused(path, "declares more than it holds")
    for junk in (b"", b"PK", b"x" * 1000, plain.getvalue()[:-100], plain.getvalue()[: 1 << 20]):
        path.write_bytes(junk)
        refused(path, "cannot be read")
    torch.save({"format": 2}, path)
    refused(path, "digest at its end is missing")
    torch.save([1], path)
    refused(path, "format list")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "there is no file")


def test_what_may_not_be_read_is_not_called_damaged(store: Checkpoints, tmp_path: Path, monkeypatch) -> None:
    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(PermissionError):
        checkpoint.load_run(tmp_path)


def test_a_failed_write_leaves_the_last_two(store: Checkpoints, tmp_path: Path, monkeypatch) -> None:
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    buffer = ring()
    fill(buffer, 40)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        store.save({"step": 3, "weights": torch.zeros(9)}, buffer, settled=40)
    assert error.value.filename == str(tmp_path / NAME)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


Runner = Callable[..., tuple[int, str]]


def test_a_folder_with_logs_is_never_begun_anew(hopper_data: Path, tmp_path: Path, qcse_here: Runner) -> None:
    words = ["train", "--algo", "iql", "--env", "Hopper-v5", "--dataset", hopper_data, "--offline-steps", 6]
    words += ["--online-steps", 0, "--eval-every", 3, "--log-every", 1, "--out", "run", *QUICK]
    qcse_here(*words, check=True)
    files = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.csv")}
    for name in (NAME, PREVIOUS):
        (tmp_path / "run" / name).unlink()
    code, said = qcse_here("train", "--resume", "run")
    assert code == 1 and "step000000006.pt of a run that had begun" in said and "another --out" in said
    (tmp_path / "run" / "config.json").unlink()
    code, said = qcse_here(*words)
    assert code == 1 and "already holds a run" in said
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.csv")} == files


def test_a_full_disk_ends_a_run_in_one_line(hopper_data: Path, tmp_path: Path, qcse_here: Runner, monkeypatch) -> None:
    words = ["train", "--algo", "iql", "--env", "Hopper-v5", "--dataset", hopper_data, "--offline-steps", 6]
    words += ["--online-steps", 0, "--eval-every", 3, "--log-every", 1, "--out", "run", *QUICK]
    qcse_here(*[w if w != "run" else "whole" for w in words], check=True)
    save, calls = checkpoint.save, []

    def full(path: Path, *args: Any, **kwargs: Any) -> str:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device", str(path))
        return save(path, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", full)
    code, said = qcse_here(*words)
    assert code == 1 and "Traceback" not in said
    assert f"run/{NAME}: No space left on device" in said and "qcse train --resume run" in said
    qcse_here("train", "--resume", "run", check=True)
    a, b = (checkpoint.load(tmp_path / name / NAME) for name in ("run", "whole"))
    assert a["step"] == 6 and equal(a["agent"], b["agent"])


def test_one_folder_has_one_trainer(hopper_data: Path, tmp_path: Path, qcse_here: Runner) -> None:
    words = ["train", "--algo", "iql", "--env", "Hopper-v5", "--dataset", hopper_data, "--offline-steps", 2]
    words += ["--online-steps", 0, "--out", "run", *QUICK]
    qcse_here(*words, check=True)
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other = holder(tmp_path / "run")
    try:
        for command in (words, ["train", "--resume", "run"]):
            code, said = qcse_here(*command)
            assert code == 1 and f"run is in use by process {other.pid}" in said
    finally:
        other.kill()
        other.wait()
    qcse_here("train", "--resume", "run", check=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == files

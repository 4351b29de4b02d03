"""Who may write a folder or a file, and what is left of files that were not finished."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import holder

from qcse import files
from qcse.errors import InUseError
from qcse.files import atomic_path, own, owner_of


@pytest.mark.parametrize("folder", [True, False])
def test_one_process_alone_owns_a_path(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "thing"
    process = holder(path, folder)
    try:
        with pytest.raises(InUseError, match=rf"{path} is in use by process {process.pid} on .*delete ") as error:
            with own(path, folder):
                raise AssertionError("two owners")
        assert Path(str(error.value).rpartition("delete ")[2]).is_file()
    finally:
        process.kill()
        process.wait()
    with own(path, folder):  # a killed process owns nothing
        marks = [name for name in os.listdir(path if folder else tmp_path) if name.endswith(".lock")]
        assert len(marks) == 1
    assert not list(tmp_path.rglob("*.lock"))


def test_looking_at_the_owner_changes_nothing(tmp_path: Path) -> None:
    assert owner_of(tmp_path) is None and owner_of(tmp_path / "nothing") is None
    process = holder(tmp_path)
    try:
        said = owner_of(tmp_path)
        assert said is not None and said.startswith(f"process {process.pid} on ") and ", since " in said
    finally:
        process.kill()
        process.wait()
    assert owner_of(tmp_path) is None and len(list(tmp_path.glob(".*.lock"))) == 1
    renamed(tmp_path, 0)
    assert str(owner_of(tmp_path)).startswith("process")  # of another host: it may live
    (mark,) = tmp_path.glob(".*.lock")
    mark.unlink()
    os.mkfifo(mark)  # nobody's mark, and reading it would hang
    assert owner_of(tmp_path) == "another process"


RACE = """
import sys
from qcse.errors import InUseError
from qcse.files import own
print("ready", flush=True)
sys.stdin.readline()
try:
    with own(sys.argv[1]):
        print("mine", flush=True)
        sys.stdin.readline()
except InUseError:
    print("refused", flush=True)
"""


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    for round_ in range(3):
        words = [sys.executable, "-P", "-c", RACE, str(tmp_path / str(round_))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        racers = [subprocess.Popen(words, **pipes) for _ in range(4)]  # type: ignore[call-overload]
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 4
        for racer in racers:
            racer.stdin.write("go\n")
        assert sorted(racer.stdout.readline() for racer in racers) == ["mine\n"] + ["refused\n"] * 3
        for racer in racers:
            racer.communicate()


def renamed(path: Path, position: int) -> None:
    """Make the mark in a folder that of a process elsewhere: of another host (0), boot (1) or container (2)."""
    (mark,) = path.glob(".*.lock")
    words = mark.name.split("-")
    words[position] = ("." if position == 0 else "") + "0123abcd"
    mark.rename(path / "-".join(words))


@pytest.mark.parametrize(("position", "refused"), [(0, True), (1, False), (2, True)])
def test_another_hosts_or_containers_process_may_live_one_before_a_restart_does_not(
    tmp_path: Path, position: int, refused: bool
) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    renamed(tmp_path, position)
    if refused:
        with pytest.raises(InUseError), own(tmp_path):
            pass
        (mark,) = tmp_path.glob(".*.lock")
        mark.unlink()  # as the message says
    with own(tmp_path):
        pass


def test_a_number_that_another_process_has_now_is_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    (mark,) = tmp_path.glob(".*.lock")
    words = mark.name.split("-")
    words[3] = str(os.getppid())  # it lives, but started at another time
    mark.rename(tmp_path / "-".join(words))
    with own(tmp_path):
        pass


def test_a_thread_may_own_a_path_twice_another_may_not(tmp_path: Path) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            with own(tmp_path):
                said.append("owned")
        except InUseError as error:
            said.append(str(error))

    with own(tmp_path), own(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert re.search("another thread", said[0])


def test_what_a_killed_writer_left_is_removed_and_an_empty_folder_too(tmp_path: Path) -> None:
    kept, partial = tmp_path / "checkpoint.pt", tmp_path / ".checkpoint.pt.abc.partial"
    kept.write_text("good")
    partial.write_text("half")
    with own(kept, folder=False):
        assert not partial.exists()
    partial.write_text("half")
    with own(tmp_path):
        assert not partial.exists() and kept.exists()
    with own(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a").exists()
    with own(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()


def test_killed_amid_writing_the_old_file_is_there(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from qcse.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path: path.write_text('new'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "file"
    path.write_text("old")
    assert subprocess.run([sys.executable, "-P", "-c", code, str(path)]).returncode == -signal.SIGKILL
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    with own(path, folder=False):
        assert len(list(tmp_path.glob("*.partial"))) == 0


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error, atomic_path(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == str(tmp_path / "file") and not list(tmp_path.iterdir())


def test_names_as_long_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("ö" * 120)
    with own(path, folder=False), atomic_path(path) as temporary:
        temporary.write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert files._prefix(path) != files._prefix(path.with_name("ö" * 119))

"""Names of any bytes, any locale, streams that are closed or full, errors of the system: never a traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
from support import QUICK, qcse_command

from qcse.cli import main as cli
from qcse.config.plain import write_json

RUN = ["train", "--algo", "sac", "--env", "Hopper-v5", "--offline-steps", 0, "--online-steps", 30, "--learning-starts",
       10, "--random-steps", 10, *QUICK]  # fmt: skip


def shell(words: list[object], redirect: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    command = [os.fsencode(word) for word in qcse_command(*words)]
    return subprocess.run(
        [b"bash", b"-c", f'"$@" {redirect}'.encode(), b"bash", *command],
        cwd=cwd, env=os.environ | env, capture_output=True, timeout=120,
    )  # fmt: skip


def test_a_folder_of_any_name_in_any_locale(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name, env in ((b"caf\xe9", {}), ("größe".encode(), plain)):
        result = shell([*RUN, "--out", os.fsdecode(name)], "", tmp_path, **env)
        assert result.returncode == 0 and b"Traceback" not in result.stderr, result.stderr
        stored = json.loads((tmp_path / os.fsdecode(name) / "config.json").read_text(encoding="utf-8"))
        assert stored["out"].encode("utf-8", "surrogateescape") == name
        again = shell(["train", "--resume", os.fsdecode(name)], "", tmp_path)
        assert again.returncode == 0 and b"is complete" in again.stdout, again.stderr
    result = shell(["report", os.fsdecode(b"caf\xe9"), "--out", "page"], "", tmp_path, **plain)
    assert result.returncode == 0 and (tmp_path / "page" / "report.html").exists(), result.stderr


def test_output_that_is_closed_or_full_does_not_end_a_run(tmp_path: Path) -> None:
    for number, redirect in enumerate((">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full")):
        result = shell([*RUN, "--out", f"run{number}"], redirect, tmp_path)
        assert result.returncode == 0 and result.stderr == b"", result.stderr
        rows = (tmp_path / f"run{number}" / "eval.csv").read_bytes().splitlines()
        assert rows[-1].startswith(b"30,online,") and len(rows) == 3  # and nothing that was printed


def test_output_that_is_the_result(tmp_path: Path) -> None:
    result = shell(["data", "list"], ">&-", tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    result = shell(["data", "list"], ">/dev/full", tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(b"qcse data: standard output: No space left on device") and (
        result.stderr.count(b"\n") == 1
    )
    result = shell(["data", "list"], "| head -1; exit ${PIPESTATUS[0]}", tmp_path)
    assert result.returncode in (0, 141) and result.stderr == b""  # 0: all of it went into the pipe before head ended


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["train", "--env", "Hopper-v5", "--out", ""], "--out"),
        (["train", "--env", "Hopper-v5", "--out="], "--out"),
        (["train", "--resume", ""], "--resume"),
        (["eval", ""], "arguments"),
        (["report", "a", "", "--out", "b"], "arguments"),
        (["status", ""], "arguments"),
        (["sweep", "--file", ""], "--file"),
        (["sweep", "--envs", "Hopper-v5", "--", "--dataset", ""], "--dataset"),
        (["collect", "--out", ""], "--out"),
        (["demo", "--out", ""], "--out"),
        (["bench", "--json", ""], "--json"),
        (["data", "convert", "a", ""], "arguments"),
    ],
)
def test_an_empty_name_is_refused(words: list[str], option: str, tmp_path: Path, qcse_here) -> None:
    code, said = qcse_here(*words)
    assert code == 1 and f"qcse {words[0]}: {option}: got an empty name" in said and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", b"a/b"), "a/b: Disk quota exceeded; make room"),
        (OSError(errno.EROFS, "Read-only file system", Path("a")), "a: Read-only file system; name a folder that"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission denied; name another, or change"),
        (OSError(errno.ENOSPC, "No space left on device"), "a file: No space left on device"),
        (OSError("Unable to open\nfile"), "a file: Unable to open"),
        (OSError(), "a file: OSError"),
        (MemoryError(), "memory is exhausted"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory is exhausted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_errors_of_the_system_are_one_line(
    error: BaseException, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "command_of", lambda name: fail)
    assert cli.main(["eval", "x"]) in (1, 130)
    said = capsys.readouterr().err
    assert said.startswith(f"qcse eval: {message}") and len(said.splitlines()) == 1


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), RuntimeError("shapes"), KeyError("a")])
def test_errors_of_the_program_are_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "command_of", lambda name: fail)
    with pytest.raises(type(error)):
        cli.main(["eval", "x"])


def test_an_error_without_a_file_names_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def __fspath__(self) -> str:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(cli, "command_of", lambda name: lambda argv: write_json(tmp_path / "a.json", {"a": Full()}))
    assert cli.main(["eval", "x"]) == 1
    assert capsys.readouterr().err == "qcse eval: plain, plain: Input/output error\n"

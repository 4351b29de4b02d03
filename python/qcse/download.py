"""Fetch D4RL's files into its own cache folder; a failed or partial download is never mistaken for data.

A file appears under its name only once it is complete and has been checked. What an interrupted download has got so
far stays beside it as NAME.partial, and the next attempt goes on from there if the server still has the same file.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from .datasets import DatasetError, bar_hidden, check_structure
from .errors import QcseError
from .tasks import ARCHIVE, DatasetTask

ATTEMPTS = 4  # without getting further; each goes on where the last one broke off
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18


class DownloadError(QcseError):
    """A dataset could not be fetched."""


class _BrokenOff(Exception):
    """The connection ended before the file did."""


def task_file(task: DatasetTask, progress: bool = True) -> Path:
    """The file of a task: embedded, found in the cache folder, or else downloaded into it.

    Args:
        task: from the registry.
        progress: show a bar on stderr.

    Raises:
        DatasetError: the file that is there is cut short or holds something else.
        DownloadError: it cannot be fetched; the message says where to put it by hand.
    """
    path = task.path
    if path.exists():
        _verify(path, task, "delete it, and the next run downloads it again")
        return path
    if not task.url:
        raise DatasetError(f"dataset: {path} is part of the installed package but missing; install the package again")
    return download(address(task), path, task, progress)


def address(task: DatasetTask) -> str:
    """Where a task's file comes from: D4RL's archive, or the mirror of it that QCSE_D4RL_ARCHIVE names."""
    mirror = os.environ.get("QCSE_D4RL_ARCHIVE")
    return f"{mirror.rstrip('/')}/{task.url.removeprefix(ARCHIVE)}" if mirror else task.url


def download(url: str, path: Path, task: DatasetTask, progress: bool = True) -> Path:
    """Fetch `url` to `path`, going on with an earlier partial download where there is one.

    Raises:
        DownloadError: no connection, no such file, a server that breaks off again and again, or content that is not
            the task's dataset. Nothing is at `path` then.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(partial) as file:
            if path.exists():  # another process was faster
                return path
            _complete(url, file, partial, path, progress)
            _verify(partial, task, f"it came from {url}; {_by_hand(url, path)}", discard=True)
            os.replace(partial, path)
            _note(partial).unlink(missing_ok=True)
            return path
    except OSError as error:
        raise DownloadError(f"download: {path} cannot be written ({error}); {_by_hand(url, path)}") from error


def _by_hand(url: str, path: Path) -> str:
    return f"fetch {url} by other means and put it at {path}, or name any file with --dataset"


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[IO[bytes]]:
    """The partial file, open for appending, while no other process of this machine writes it."""
    with open(partial, "ab") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield file
        finally:
            # Empty: nothing was got, or another process has moved the file that we waited for and this is a new one.
            if partial.exists() and partial.stat().st_size == 0:
                partial.unlink()
                _note(partial).unlink(missing_ok=True)


def _note(partial: Path) -> Path:
    """Beside the partial file: which version of which address it is a part of."""
    return partial.with_name(partial.name + ".json")


def _complete(url: str, file: IO[bytes], partial: Path, path: Path, progress: bool) -> None:
    """Append to `file` until it is whole, over several connections if need be."""
    failures, furthest = 0, file.seek(0, os.SEEK_END)
    while True:
        try:
            return _attempt(url, file, partial, progress)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what we have is as long as the file, or longer: begin anew
                _forget(file, partial)
            elif error.code < 500 and error.code not in (408, 429):
                reason = f"the server says {error.code} {error.reason}"
                raise DownloadError(f"download: {url}: {reason}; {_by_hand(url, path)}") from None
            failed: Exception = error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, _BrokenOff) as error:
            failed = error
        except ValueError as error:
            raise DownloadError(f"download: {url}: {error}; is QCSE_D4RL_ARCHIVE an address?") from None
        size = file.seek(0, os.SEEK_END)
        failures, furthest = (0, size) if size > furthest else (failures + 1, furthest)
        if failures == ATTEMPTS:
            kept = f"; {size:,} bytes are kept, and the next attempt goes on from there" if size else ""
            reason = getattr(failed, "reason", None) or failed
            raise DownloadError(f"download: {url}: {reason} (tried again and again){kept}; {_by_hand(url, path)}")
        time.sleep(PAUSE * 2 ** max(0, failures - 1))


def _forget(file: IO[bytes], partial: Path) -> None:
    file.truncate(0)
    file.seek(0)
    _note(partial).unlink(missing_ok=True)


def _attempt(url: str, file: IO[bytes], partial: Path, progress: bool) -> None:
    """One connection: from where the file ends to its end."""
    start = file.seek(0, os.SEEK_END)
    note = _read_note(partial)
    if start and (note.get("url") != url or not note.get("version")):
        _forget(file, partial)  # of another file, or of one that cannot be told from a newer version of it
        start = 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", str(note["version"]))  # the server sends all of it where it is another now
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206 and start:
            _forget(file, partial)
            start = 0
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            _note(partial).write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=partial.name.removesuffix(".partial"),
            disable=bar_hidden(progress), leave=False,
        )  # fmt: skip
        with bar:
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        file.flush()
        if total is not None and file.tell() != total:
            raise _BrokenOff(f"the connection ended after {file.tell():,} of {total:,} bytes")


def _read_note(partial: Path) -> dict[str, Any]:
    try:
        note = json.loads(_note(partial).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _verify(path: Path, task: DatasetTask, remedy: str, discard: bool = False) -> None:
    """Refuse a file that is not the task's dataset; with `discard`, delete it first."""
    try:
        check_structure(path, task.observation_dim, task.action_dim)
    except DatasetError as error:
        if not discard:
            raise DatasetError(f"{error}. It was to be {task.name}; {remedy}") from error
        start = path.read_bytes()[:60]
        path.unlink()
        _note(path).unlink(missing_ok=True)
        what = str(error).removeprefix("dataset: ")
        raise DownloadError(
            f"download: what came is not {task.name}: {what} (it begins with {start!r}) and was deleted; {remedy}"
        ) from error

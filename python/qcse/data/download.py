"""Fetch D4RL's files into its own cache folder; a failed or partial download is never mistaken for data.

A file appears under its name only once it is complete and has been checked. What an interrupted download has got so
far stays beside it as NAME.partial, and the next attempt goes on from there if the server still has the same file.
Nobody publishes digests of D4RL's files, so that of the first use is noted beside each (NAME.digest.json), and a file
that is another one later is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from ..errors import DatasetError, InUseError, QcseError
from ..files import atomic_path, own
from .d4rl import check_structure
from .tasks import ARCHIVE, DIGESTS, DatasetTask
from .transitions import bar_hidden

_log = logging.getLogger(__name__)

ATTEMPTS = 4  # without getting further; each goes on where the last one broke off
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18
LARGEST = 8 << 30  # bytes; D4RL's largest file has a quarter of it
IDLE = 600.0  # seconds without a byte, after which another process's download is not waited for


class DownloadError(QcseError):
    """A dataset could not be fetched."""


class _BrokenOff(Exception):
    """The connection ended before the file did."""


class _NoHttps(Exception):
    """The archive could not be reached by https."""


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
        _check_digest(path, task)
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
        with _alone(path, partial) as file:
            if file is None:  # another process was faster
                return path
            try:
                _complete(url, file, partial, path, progress)
            except _NoHttps as error:
                url = url.replace("https://", "http://", 1)
                print(
                    f"download: the archive has no https ({error}); going on with {url}, unprotected", file=sys.stderr
                )
                _complete(url, file, partial, path, progress)
            _verify(partial, task, f"it came from {url}; {_by_hand(url, path)}", discard=True)
            known = DIGESTS.get(task.file)
            if known is not None and _sha256(partial) != known:
                _discard(partial)
                raise DownloadError(
                    f"download: what came from {url} is not {task.name} (its SHA-256 is not {known}) and was deleted; "
                    f"{_by_hand(url, path)}"
                )
            os.replace(partial, path)
            _note(partial).unlink(missing_ok=True)
            _digest_file(path).unlink(missing_ok=True)  # of an earlier file of that name, which the user deleted
            _check_digest(path, task)
            return path
    except OSError as error:
        raise DownloadError(f"download: {path} cannot be written ({error}); {_by_hand(url, path)}") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".digest.json")


def _check_digest(path: Path, task: DatasetTask) -> None:
    """DatasetError where a file is not the one that is known, or that was here at its first use.

    It is read only where its size or time changed since it was last looked at.
    """
    facts, beside = path.stat(), _digest_file(path)
    looks = {"size": facts.st_size, "modified": facts.st_mtime_ns}
    noted = _read_note(beside) if task.url else {"sha256": DIGESTS.get(task.file)}
    if task.url and noted.get("sha256") and all(noted.get(key) == value for key, value in looks.items()):
        return
    digest = _sha256(path)
    expected = DIGESTS.get(task.file) or noted.get("sha256") or digest
    if digest != expected:
        raise DatasetError(
            f"dataset: {path} is not the file that it was: its SHA-256 is {digest}, expected {expected}; "
            + (
                f"delete it and download it again, or delete {beside} if you changed it"
                if task.url
                else "reinstall qcse"
            )
        )
    if task.url:
        try:
            with atomic_path(beside) as temporary:
                temporary.write_text(json.dumps(looks | {"sha256": digest}), encoding="utf-8")
        except OSError as error:  # a cache that others keep, for reading only
            _log.info("%s cannot be written (%s): a change of the file beside it will not be noticed", beside, error)


def _by_hand(url: str, path: Path) -> str:
    return f"fetch {url} by other means and put it at {path}, or name any file with --dataset"


@contextlib.contextmanager
def _alone(path: Path, partial: Path) -> Iterator[IO[bytes] | None]:
    """The partial file, open for appending, while no other process writes it; None where another has fetched `path`."""
    with contextlib.ExitStack() as stack:
        size, since, said = -1, time.monotonic(), False
        while True:
            try:
                stack.enter_context(own(path, folder=False))
                break
            except InUseError as error:
                if not said:
                    print(f"download: waiting, as {error}", file=sys.stderr)
                said, before = True, size
                size = partial.stat().st_size if partial.exists() else 0
                since = time.monotonic() if size != before else since
                if time.monotonic() - since > IDLE:
                    raise
                time.sleep(0.2)
        if path.exists():
            yield None
            return
        with open(partial, "ab") as file:
            try:
                yield file
            finally:
                if partial.exists() and partial.stat().st_size == 0:
                    _discard(partial)


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _note(partial).unlink(missing_ok=True)


def _note(partial: Path) -> Path:
    """Beside the partial file: which version of which address it is a part of."""
    return partial.with_name(partial.name + ".json")


def _complete(url: str, file: IO[bytes], partial: Path, path: Path, progress: bool) -> None:
    """Append to `file` until it is whole, over several connections if need be."""
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in ("https", "http"):
        raise DownloadError(
            f"download: {url}: unknown url type {scheme!r}, expected https or http; is QCSE_D4RL_ARCHIVE an address?"
        )
    failures, furthest = 0, file.seek(0, os.SEEK_END)
    while True:
        try:
            return _attempt(url, file, partial, progress)
        except DownloadError:
            raise
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what we have is as long as the file, or longer: begin anew
                _forget(file, partial)
            elif error.code < 500 and error.code not in (408, 429):
                reason = f"the server says {error.code} {error.reason}"
                raise DownloadError(f"download: {url}: {reason}; {_by_hand(url, path)}") from None
            failed: Exception = error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, _BrokenOff) as error:
            reached = _read_note(_note(partial)).get("url") == url
            if url.startswith(ARCHIVE) and not reached and _lacks_https(error):
                raise _NoHttps(getattr(error, "reason", error)) from error
            failed = error
        except ValueError as error:
            raise DownloadError(f"download: {url}: {error}; is QCSE_D4RL_ARCHIVE an address?") from None
        size = file.seek(0, os.SEEK_END)
        failures, furthest = (0, size) if size > furthest else (failures + 1, furthest)
        if failures == ATTEMPTS:
            kept = f"; {size:,} bytes are kept, and the next attempt goes on from there" if size else ""
            reason = str(getattr(failed, "reason", None) or failed)
            raise DownloadError(f"download: {url}: {reason} (tried again and again){kept}; {_by_hand(url, path)}")
        time.sleep(PAUSE * 2 ** max(0, failures - 1))


def _lacks_https(error: Exception) -> bool:
    """Whether a failure to connect may mean that there is no encrypted service, rather than no network."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, ssl.SSLError | ConnectionRefusedError | TimeoutError)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To http and https only, and never from https down to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        schemes = [urllib.parse.urlsplit(address).scheme.lower() for address in (req.full_url, newurl)]
        if schemes[1] not in ("https", "http") or schemes == ["https", "http"]:
            raise DownloadError(
                f"download: {req.full_url}: the server sends us on to {newurl[:200]!r}, which is not followed; "
                "expected an https address, or http where it began so"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request) -> Any:
    """urllib's own opener, without its handlers for files and ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler, _Redirects,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener.open(request, timeout=TIMEOUT)


def _forget(file: IO[bytes], partial: Path) -> None:
    file.truncate(0)
    file.seek(0)
    _note(partial).unlink(missing_ok=True)


def _attempt(url: str, file: IO[bytes], partial: Path, progress: bool) -> None:
    """One connection: from where the file ends to its end."""
    start = file.seek(0, os.SEEK_END)
    note = _read_note(_note(partial))
    here, there = (str(address).partition("://")[2] for address in (note.get("url", ""), url))
    if start and (here != there or not note.get("version")):
        _forget(file, partial)  # of another file, or of one that cannot be told from a newer version of it
        start = 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", str(note["version"]))  # the server sends all of it where it is another now
    with _open(request) as response:
        if response.status != 206 and start:
            _forget(file, partial)
            start = 0
        total = _total(response, start)
        misplaced = response.status == 206 and _range_start(response) != start
        if misplaced or (total is not None and total < start):
            _forget(file, partial)
            raise _BrokenOff(
                f"the server sent another part ({response.headers.get('Content-Range')}) than was asked for"
            )
        _check_room(url, partial, start, total)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            _note(partial).write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")
        bar = tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=partial.name.removesuffix(".partial"),
            disable=bar_hidden(progress), leave=False,
        )  # fmt: skip
        with bar:
            while block := response.read(BLOCK):
                file.write(block)
                if total is None and file.tell() > LARGEST:
                    raise _too_large(url, file.tell())
                bar.update(len(block))
        file.flush()
        if total is not None and file.tell() != total:
            raise _BrokenOff(f"the connection ended after {file.tell():,} of {total:,} bytes")


def _range_start(response: Any) -> int | None:
    """Where the part that a server sends begins, as it says itself."""
    found = re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", response.headers.get("Content-Range", "").strip())
    return int(found[1]) if found else None


def _total(response: Any, start: int) -> int | None:
    """Size of the whole file, where the server tells it."""
    length = response.headers.get("Content-Length", "").strip()
    if re.fullmatch(r"\d{1,15}", length) is None:
        return None
    whole = re.search(r"/(\d{1,15})$", response.headers.get("Content-Range", "")) if start else None
    return int(whole[1]) if whole else start + int(length)


def _check_room(url: str, partial: Path, start: int, total: int | None) -> None:
    if total is None:
        return
    if total > LARGEST:
        raise _too_large(url, total)
    free = shutil.disk_usage(partial.parent).free
    if total - start > free:
        raise DownloadError(
            f"download: {url} has {total - start:,} bytes to come, the disk of {partial.parent} has room for {free:,}; "
            "make room, or name another folder with D4RL_DATASET_DIR"
        )


def _too_large(url: str, size: int) -> DownloadError:
    return DownloadError(
        f"download: {url} has {size:,} bytes or more; expected up to {LARGEST:,}, as D4RL's files have"
    )


def _read_note(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            note = json.loads(file.read(10_000))
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
        with open(path, "rb") as file:
            start = file.read(60)
        _discard(path)
        what = str(error).removeprefix("dataset: ")
        raise DownloadError(
            f"download: what came is not {task.name}: {what} (it begins with {start!r}) and was deleted; {remedy}"
        ) from error

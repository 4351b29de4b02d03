"""Downloads from a local server that breaks off, lies, changes its mind, or is not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from support import QUICK

from qcse.data import download as module
from qcse.data.d4rl import check_structure, load_d4rl, write_d4rl
from qcse.data.download import DownloadError, address, download, task_file
from qcse.data.tasks import TASKS, find_task
from qcse.errors import DatasetError

TASK = find_task("maze2d-umaze-v1")
WHOLE = ["data.hdf5", "data.hdf5.digest.json"]


class Server(ThreadingHTTPServer):
    """Serves `content` at /data.hdf5; `breaks` is how many bytes each of the next connections may send."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = content, '"a"'
        self.breaks: list[int] = []
        self.always_break: int | None = None
        self.ranges, self.declare, self.type = True, True, "application/x-hdf5"
        self.seen: list[str | None] = []
        self.redirect: str | None = None
        self.shift = 0  # by how many bytes the part that is sent differs from the one that was asked for
        self.url = f"http://127.0.0.1:{self.server_port}/data.hdf5"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.seen.append(asked)
        if "missing" in self.path:
            self.send_error(404)
            return
        if server.redirect and self.path == "/data.hdf5":
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_error(416)
                return
            start += server.shift
        rest = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.declare:
            self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.type)
        self.end_headers()
        limit = server.breaks.pop(0) if server.breaks else server.always_break
        self.wfile.write(rest if limit is None else rest[:limit])


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    rng, n = np.random.default_rng(0), 3000
    arrays = {
        "observations": 1 + 0.1 * rng.normal(size=(n, 4)),  # inside one cell of the maze
        "actions": rng.uniform(-1, 1, (n, 2)),
        "rewards": rng.normal(size=n),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(n) % 300 == 299,
    }
    write_d4rl(tmp_path / "source" / "data.hdf5", arrays, {"env": "maze2d-umaze-v1"}, compression=None)
    return (tmp_path / "source" / "data.hdf5").read_bytes()


@pytest.fixture
def server(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(content)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(server: Server, folder: Path, url: str | None = None) -> Path:
    return download(url or server.url, folder / "data.hdf5", TASK, progress=False)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_file_is_fetched_checked_and_alone(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path / "cache")
    assert path.read_bytes() == server.content and left(tmp_path / "cache") == WHOLE
    assert check_structure(path, 4, 2) == 3000 and server.seen == [None]


def test_an_interrupted_download_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    server.breaks = [30_000, 20_000, 1]
    path = fetch(server, tmp_path)
    assert path.read_bytes() == server.content
    assert server.seen == [None, "bytes=30000-", "bytes=50000-", "bytes=50001-"]
    assert "data.hdf5.partial" not in left(tmp_path)


def test_the_next_run_resumes_what_the_last_one_kept(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    server.breaks, server.always_break = [40_000], 0
    with pytest.raises(DownloadError, match=r"ended after 40,000 of .* bytes .*40,000 bytes are kept.*by other means"):
        fetch(server, folder)
    assert "data.hdf5" not in left(folder) and "data.hdf5.partial" in left(folder)
    server.always_break, server.seen = None, []
    assert fetch(server, folder).read_bytes() == server.content
    assert server.seen == ["bytes=40000-"] and left(folder) == WHOLE


@pytest.mark.parametrize("change", ["another version", "no ranges", "another address"])
def test_parts_of_different_files_are_never_joined(change: str, server: Server, tmp_path: Path) -> None:
    server.breaks, server.always_break = [40_000], 0
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "cache")
    server.always_break, url = None, server.url
    if change == "another version":
        server.content, server.etag = server.content + b"\0" * 512, '"b"'  # HDF5 ignores what follows its end
    elif change == "no ranges":
        server.ranges = False
    else:
        url = server.url + "?mirror"
    assert fetch(server, tmp_path / "cache", url).read_bytes() == server.content


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    whole = server.content
    server.content = whole + b"\0" * 9999
    server.breaks, server.always_break = [len(whole) + 10], 0
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "cache")
    server.content, server.always_break = whole, None
    assert fetch(server, tmp_path / "cache").read_bytes() == whole


def test_a_truncated_file_is_refused_even_if_the_server_hides_its_length(server: Server, tmp_path: Path) -> None:
    server.declare, server.always_break = False, 60_000
    with pytest.raises(DownloadError, match=r"what came is not maze2d-umaze-v1.*cut short.*deleted"):
        fetch(server, tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_a_page_instead_of_data_is_refused(server: Server, tmp_path: Path) -> None:
    server.content, server.type = b"<html>Please log in</html>", "text/html"
    with pytest.raises(DownloadError, match=r"not an HDF5 file.*begins with b'<html>Please log in"):
        fetch(server, tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_another_tasks_data_is_refused(server: Server, tmp_path: Path) -> None:
    other = dataclasses.replace(TASK, name="hopper-medium-v2", observation_dim=11)
    with pytest.raises(DownloadError, match=r"not hopper-medium-v2.*observations of 4 numbers; expected 11"):
        download(server.url, tmp_path / "cache" / "data.hdf5", other, progress=False)
    assert left(tmp_path / "cache") == []


def test_404_is_said_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"404 Not Found.*put it at .*data\.hdf5.*--dataset"):
        fetch(server, tmp_path / "cache", server.url.replace("data", "missing"))
    assert server.seen == [None] and left(tmp_path / "cache") == []


def test_no_network(server: Server, tmp_path: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"refused.*put it at"):
        fetch(server, tmp_path / "cache")
    assert left(tmp_path / "cache") == []
    with pytest.raises(DownloadError, match=r"no-such-host\.invalid.*put it at"):
        fetch(server, tmp_path / "cache", "http://no-such-host.invalid/data.hdf5")
    assert left(tmp_path / "cache") == []


def test_an_address_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCSE_D4RL_ARCHIVE", "nowhere")
    with pytest.raises(DownloadError, match=r"unknown url type.*is QCSE_D4RL_ARCHIVE an address"):
        download(address(TASK), tmp_path / "cache" / "data.hdf5", TASK, progress=False)
    assert left(tmp_path / "cache") == []


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"file/cache.* cannot be written"):
        fetch(server, tmp_path / "file" / "cache")


def test_several_processes_want_the_same_file(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(server, tmp_path / "cache"), range(4)))
    assert {path.read_bytes() for path in paths} == {server.content}
    assert left(tmp_path / "cache") == WHOLE and len(server.seen) == 1


def test_a_task_is_found_downloaded_or_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("QCSE_D4RL_ARCHIVE", server.url.rsplit("/", 1)[0])
    assert address(TASK) == server.url.replace("data.hdf5", "maze2d/maze2d-umaze-sparse-v1.hdf5")
    path = task_file(TASK, progress=False)
    assert path == tmp_path / "cache" / "maze2d-umaze-sparse-v1.hdf5" and len(load_d4rl(path)) == 2990
    server.seen = []
    assert task_file(TASK, progress=False) == path and server.seen == []  # an existing download is used
    path.write_bytes(server.content[:50_000])
    with pytest.raises(DatasetError, match=r"cut short.*maze2d-umaze-v1; delete it, and the next run downloads"):
        task_file(TASK, progress=False)
    monkeypatch.delenv("QCSE_D4RL_ARCHIVE")
    assert address(TASK) == TASK.url


def test_train_by_task_name(server: Server, tmp_path: Path, qcse_here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("QCSE_D4RL_ARCHIVE", server.url.rsplit("/", 1)[0])
    steps = ["--offline-steps", 5, "--online-steps", 5, *QUICK]
    result = qcse_here("train", "--task", "maze2d-umaze-v1", "--algo", "cql", "--out", "run", *steps, check=True)
    assert "run complete" in result[1] and (tmp_path / "cache" / TASK.file).exists()
    config = (tmp_path / "run" / "config.json").read_text()
    assert '"env": "qcse/maze2d-umaze-v1"' in config and '"task": "maze2d-umaze-v1"' in config
    # explicit flags win; an unknown task is named with near matches
    other = qcse_here("train", "--task", "maze2d-umaze-v1", "--env", "qcse/pointmaze-umaze-v0", "--out", "two", *steps)
    assert other[0] == 0, other[1]
    assert '"env": "qcse/pointmaze-umaze-v0"' in (tmp_path / "two" / "config.json").read_text()
    wrong = qcse_here("train", "--task", "maze2d-umaze")
    assert wrong[0] == 1 and "maze2d-umaze-v1" in wrong[1]
    os.remove(tmp_path / "cache" / TASK.file)
    server.shutdown()
    server.server_close()
    lost = qcse_here("train", "--task", "maze2d-umaze-v1", "--out", "three", *steps)
    assert lost[0] == 1 and "put it at" in lost[1]
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://localhost/x", "data:text/plain,x", "gopher://x/"])
def test_redirects_lead_to_http_only(target: str, server: Server, tmp_path: Path) -> None:
    server.redirect = target
    with pytest.raises(DownloadError, match=r"sends us on to .*not followed|is not allowed"):
        fetch(server, tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_redirects_lead_from_http_to_http_but_not_down_from_https(server: Server, tmp_path: Path) -> None:
    server.redirect = server.url.replace("data", "moved")
    assert fetch(server, tmp_path / "cache").read_bytes() == server.content
    handler = module._Redirects()
    request = urllib.request.Request("https://somewhere/x")
    with pytest.raises(DownloadError, match=r"'http://somewhere/x', which is not followed; expected an https address"):
        handler.redirect_request(request, None, 302, "", Message(), "http://somewhere/x")
    assert handler.redirect_request(request, None, 302, "", Message(), "https://other/x").full_url == "https://other/x"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://localhost/data.hdf5", "data:text/plain,x", "HDF5:x", ""])
def test_other_addresses_than_http_are_refused(url: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"unknown url type .*expected https or http"):
        fetch(server, tmp_path / "cache", url or "/etc/passwd")
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("shift", [-1000, 1000])
def test_another_part_than_was_asked_for_is_not_joined(shift: int, server: Server, tmp_path: Path) -> None:
    server.breaks, server.shift = [40_000], shift
    assert fetch(server, tmp_path / "cache").read_bytes() == server.content
    assert server.seen == [None, "bytes=40000-", None]


@pytest.mark.parametrize("declare", [True, False])
def test_a_file_larger_than_any_of_d4rls_is_refused(
    declare: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 50_000)
    monkeypatch.setattr(module, "BLOCK", 4096)
    server.declare = declare
    with pytest.raises(DownloadError, match=r"bytes or more; expected up to 50,000"):
        fetch(server, tmp_path / "cache")
    kept = tmp_path / "cache" / "data.hdf5.partial"
    assert not kept.exists() or kept.stat().st_size <= 54_096


def test_a_disk_without_room_is_said_before(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))(100, 90, 10)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        DownloadError, match=r"has room for 10; make room, or name another folder with D4RL_DATASET_DIR"
    ):
        fetch(server, tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_the_archive_is_asked_by_https_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert TASK.url.startswith("https://")
    monkeypatch.setattr(module, "ARCHIVE", server.url.replace("http:", "https:").replace("data.hdf5", ""))
    url = server.url.replace("http:", "https:")
    server.breaks, server.always_break = [30_000], 0
    with pytest.raises(DownloadError, match="30,000 bytes are kept"):
        fetch(server, tmp_path / "cache", url)
    assert capsys.readouterr().err.count("the archive has no https") == 1
    server.always_break, server.seen = None, []
    assert fetch(server, tmp_path / "cache", url).read_bytes() == server.content
    assert server.seen == ["bytes=30000-"]  # what came the same way before is of use
    # Somebody else's https address is not tried without.
    monkeypatch.setattr(module, "ARCHIVE", "https://elsewhere/")
    with pytest.raises(DownloadError, match=r"SSL|WRONG_VERSION|wrong version"):
        fetch(server, tmp_path / "other", url)
    assert left(tmp_path / "other") == []


def test_a_file_that_changed_since_its_first_use_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    path, beside = TASK.path, TASK.path.with_name(TASK.path.name + ".digest.json")
    path.parent.mkdir()
    path.write_bytes(server.content)  # put there by hand
    assert task_file(TASK) == path
    assert json.loads(beside.read_text())["sha256"] == hashlib.sha256(server.content).hexdigest()
    os.utime(path, ns=(0, 0))  # touched, and still the same
    assert task_file(TASK) == path
    hashed = []
    monkeypatch.setattr(module, "_sha256", lambda path: hashed.append(path))
    assert task_file(TASK) == path and hashed == []  # looked at once
    monkeypatch.undo()
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    content = bytearray(server.content)
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"is not the file that it was: .*delete .*digest\.json if you changed it"):
        task_file(TASK)
    beside.unlink()
    assert task_file(TASK) == path
    beside.write_text("{")
    assert task_file(TASK) == path and "sha256" in json.loads(beside.read_text())


def test_known_digests_hold(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.DIGESTS, TASK.file, "0" * 64)
    with pytest.raises(DownloadError, match=r"what came from .* is not maze2d-umaze-v1 \(its SHA-256 is not 0000"):
        fetch(server, tmp_path / "cache")
    assert left(tmp_path / "cache") == []
    embedded = find_task("pointmaze-umaze")
    assert task_file(embedded) == embedded.path
    assert {task.file for task in TASKS.values() if not task.url} <= set(module.DIGESTS)
    monkeypatch.setitem(module.DIGESTS, embedded.file, "0" * 64)
    with pytest.raises(DatasetError, match=r"is not the file that it was.*reinstall"):
        task_file(embedded)


def test_no_file_lies_outside_the_cache_folder() -> None:
    assert all(re.fullmatch(r"[\w-]+\.hdf5", task.file) for task in TASKS.values())

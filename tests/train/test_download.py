"""Downloads from a local server that breaks off, lies, changes its mind, or is not there."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK

from qcse import download as module
from qcse.datasets import DatasetError, check_structure, load_d4rl, write_d4rl
from qcse.download import DownloadError, address, download, task_file
from qcse.tasks import find_task

TASK = find_task("maze2d-umaze-v1")


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
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_error(416)
                return
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
    assert path.read_bytes() == server.content and left(tmp_path / "cache") == ["data.hdf5"]
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
    assert server.seen == ["bytes=40000-"] and left(folder) == ["data.hdf5"]


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
    assert left(tmp_path / "cache") == ["data.hdf5"] and len(server.seen) == 1


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

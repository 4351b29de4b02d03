"""Checkpoints: plain data, written atomically, read with `weights_only=True`, verified by a digest in each file.

A run's checkpoint is one file, the one before it, and, for a long online phase, segments: files of a fixed number of
transitions each that are written once. Without them each checkpoint would write the whole online buffer again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import math
import os
import re
import secrets
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..config.algorithms.base import Options
from ..errors import CheckpointError
from ..files import atomic_path, sweep
from ..learn.buffer import COLUMNS, ReplayBuffer

FORMAT = 2
UNVERIFIED = 1  # the format before: the same content, without digests
NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
KEPT = "checkpoints"  # sub-folder of those that stay
SEGMENT = 16_384  # transitions at most
SMALLEST_SEGMENT = 1024  # a ring of less than four of these is written whole
END = re.compile(rb"\nqcse sha256 ([0-9a-f]{64})\n\Z")  # of a file: the digest of all that lies before it
END_BYTES = len(b"\nqcse sha256 \n") + 64


def save(path: Path, state: dict[str, Any], keep: Path | None = None) -> str:
    """Write `state` (tensors, numbers, strings, lists, dicts) so that `path` holds the old or the new one whole,
    whenever the process or the machine stops.

    Args:
        keep: where the old one goes once the new one has been read back; one that is damaged does not go there.

    Returns:
        The digest of the content, SHA-256 in hexadecimal digits.

    Raises:
        OSError: it cannot be written; `path` and `keep` are as they were.
    """
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.write(f"\nqcse sha256 {digest}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        if _digests(temporary) != (digest, digest):
            raise OSError(errno.EIO, "what was written reads back as something else", str(path))
        if keep is not None and path.exists() and _is_sound(path):
            _move_a_copy(path, keep)
    return digest


def load(path: Path, device: torch.device | str = "cpu", digest: str | None = None) -> dict[str, Any]:
    """Read a file that `save` wrote.

    Args:
        device: where its tensors go.
        digest: of the content that is expected, where it is known.

    Returns:
        What was saved, and its digest as "sha256".

    Raises:
        CheckpointError: there is none, or it is damaged or of another format.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint: there is no file {path}; expected the checkpoint of a qcse run folder")
    content = path.read_bytes()
    end = END.search(content, len(content) - min(END_BYTES, len(content)))
    body = memoryview(content)[: end.start() if end else len(content)]
    found = hashlib.sha256(body).hexdigest()
    if (end and end[1].decode() != found) or digest not in (None, found):
        raise CheckpointError(f"checkpoint: {path} is damaged: its content does not fit its digest")
    _check_archive(path, body)
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds; all mean that this file is not a checkpoint of ours
        # torch's own text would advise to load it as code.
        raise CheckpointError(
            f"checkpoint: {path} cannot be read ({type(error).__name__}); it is damaged or was not written by qcse"
        ) from error
    number = state.get("format") if isinstance(state, dict) else type(state).__name__
    if number not in (FORMAT, UNVERIFIED):
        raise CheckpointError(
            f"checkpoint: {path} has format {number}, this version of qcse reads {UNVERIFIED} and {FORMAT}"
        )
    if number == FORMAT and not end:
        raise CheckpointError(f"checkpoint: {path} is damaged: the digest at its end is missing")
    return state | {"sha256": found}


def _check_archive(path: Path, body: memoryview) -> None:
    """CheckpointError where the content would need more memory than the file's own size."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint: {path} cannot be read ({error}); it is damaged or was not written by qcse"
        ) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(
        entry.file_size for entry in entries
    ) > len(body):
        raise CheckpointError(f"checkpoint: {path} declares more than it holds; it was not written by qcse")


def _digests(path: Path) -> tuple[str, str | None]:
    """Digest of a file's content, and the one that it names."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - END_BYTES))
        end = END.search(file.read())
        left = size - END_BYTES if end else size
        file.seek(0)
        digest = hashlib.sha256()
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest(), end[1].decode() if end else None


def _is_sound(path: Path) -> bool:
    content, named = _digests(path)
    if named is not None:
        return named == content
    try:  # one without a digest is good if it is of the format that had none
        load(path)
    except CheckpointError:
        return False
    return True


def _move_a_copy(path: Path, target: Path) -> None:
    """Put what is at `path` at `target` as well; where the file system has no links, only there."""
    link = path.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        os.link(path, link)
    except OSError:  # between here and the next move `target` is the checkpoint that is loaded
        os.replace(path, target)
    else:
        os.replace(link, target)
        link.unlink(missing_ok=True)  # still there where `target` was this very file: then a move does nothing


def check_parameters(config: Options, state: Mapping[str, Any], folder: Path) -> None:
    """CheckpointError where a run folder's configuration asks for more weights than its checkpoint has: they would be
    made before anybody could see that they do not fit."""
    net, storages = config.net, dict[int, int]()
    waiting: list[Any] = [state.get("agent")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    weights = [sum(map(math.prod, itertools.pairwise(hidden))) for hidden in (net.policy_hidden, net.critic_hidden)]
    asked = 4 * config.seeds * (weights[0] + net.critics * weights[1])
    if asked > sum(storages.values()):
        raise CheckpointError(
            f"checkpoint: {folder} names networks of {asked:,} bytes and more in its config.json, its checkpoint holds "
            f"{sum(storages.values()):,}; restore the configuration that the run was started with"
        )


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """What a checkpoint that is put back may raise where it does not fit becomes a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint: what {folder} holds does not fit its configuration, or was written by another version "
            f"of qcse ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); restore it "
            "from a copy, or start a new run with another --out"
        ) from error


def load_run(folder: Path, device: torch.device | str = "cpu", buffer: bool = True) -> dict[str, Any] | None:
    """The last good checkpoint of a run folder; None where the run has written nothing yet that could be lost.

    Args:
        device: where its tensors go.
        buffer: verify the segments as well.

    Raises:
        CheckpointError: none is good, or there is none in a folder that holds logs or segments.
        OSError: one cannot be read.
    """
    paths = [path for path in (folder / NAME, folder / PREVIOUS) if path.exists()]
    if not paths:
        refuse_begun(folder)
    damages: list[str] = []
    for path in paths:
        try:
            state = load(path, device)
            if buffer:
                _verify_segments(folder, state)
        except CheckpointError as error:
            damages.append(str(error))
            continue
        if path.name == PREVIOUS:
            reason = damages[0] if damages else f"there is no {NAME}"
            print(f"warning: {reason}; {PREVIOUS} is used instead, step {state.get('step')}", file=sys.stderr)
        if state["format"] == UNVERIFIED:
            print(f"warning: {path} was written by an earlier version, without digests: not verified", file=sys.stderr)
        return state
    if damages:
        raise CheckpointError(
            f"{'; '.join(damages)}. Restore what is damaged from a copy, or start a new run with another --out"
        )
    return None


def kept(folder: Path, step: int) -> Path:
    """The file of a checkpoint that stays."""
    return folder / KEPT / f"step{step:09d}.pt"


def run_of(path: Path) -> Path:
    """The run folder that a path means: itself, or that of a checkpoint file in it."""
    if path.suffix != ".pt" and not path.is_file():
        return path
    folder = path.resolve().parent
    return folder.parent if folder.name == KEPT else folder


def refuse_begun(folder: Path) -> None:
    """CheckpointError where a folder holds something that a run which begins in it would overwrite."""
    begun = [path for path in (folder / NAME, folder / PREVIOUS) if path.exists()]
    begun += sorted(path for part in ("buffer", KEPT) for path in (folder / part).glob("*.pt"))
    for path in [*sorted(folder.glob("*.csv")), *sorted(folder.glob("seed*/*.csv"))]:
        with open(path, "rb") as file:
            if len(file.read(1 << 16).splitlines()) > 1:  # a header alone says nothing
                begun.append(path)
    if begun:
        raise CheckpointError(
            f"checkpoint: {folder} holds {begun[0].relative_to(folder)} of a run that had begun, so none can begin in "
            f"it, and no good {NAME} to go on from; restore {NAME}, or start a new run with another --out"
        )


def _verify_segments(folder: Path, state: dict[str, Any]) -> None:
    digests = state.get("files", {}).get("segments", {})
    for number in range(*state.get("buffer", {}).get("segments", (0, 0))):
        path = _segment(folder, number)
        if not path.is_file():
            raise CheckpointError(f"checkpoint: {path} is missing, which the checkpoint needs")
        if number in digests and _digests(path)[0] != digests[number]:
            raise CheckpointError(f"checkpoint: {path} is damaged: its content does not fit the checkpoint's digest")


class Checkpoints:
    """Writes the checkpoints of a run folder; to be used by the folder's owner (`files.own`) alone.

    Args:
        folder: the run folder; segments go to its sub-folder buffer/.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = secrets.token_hex(8)  # which run a file belongs to
        self.number = 0  # checkpoints written
        self.size = 0  # transitions in a segment; a run that was extended keeps the size that it had
        self._segments: dict[int, str] = {}  # number -> digest of those that are written
        self._needed = [range(0)] * 2  # segments of the checkpoint before, and of the last one

    def save(self, state: dict[str, Any], buffer: ReplayBuffer, settled: int) -> None:
        """Write a checkpoint; the one before stays beside it.

        Args:
            state: all but the buffer.
            buffer: the online buffer.
            settled: transitions before this number will not change any more.
        """
        size = self.size = self.size or segment_size(buffer.capacity)
        oldest = buffer.added - buffer.size
        segments = range(oldest // size, max(oldest, settled) // size) if size else range(0)
        for number in segments:
            if number not in self._segments:
                path = _segment(self.folder, number)
                path.parent.mkdir(exist_ok=True)
                columns = buffer.rows_of(max(oldest, number * size), (number + 1) * size)
                self._segments[number] = save(path, {"run": self.run, "number": number, "columns": columns})
        first = max(segments.stop * size, oldest)
        rows = {"added": buffer.added, "first": first, "rows": buffer.rows_of(first, buffer.added)}
        self.number += 1
        digests = {number: self._segments[number] for number in segments}
        files = {"run": self.run, "number": self.number, "segments": digests}
        part = rows | {"segments": [segments.start, segments.stop], "segment_size": size}
        whole = state | {"buffer": part, "files": files}
        save(self.folder / NAME, whole, keep=self.folder / PREVIOUS)
        self._needed = [self._needed[1], segments]
        self._drop({*self._needed[0], *self._needed[1]})

    def keep(self, state: dict[str, Any]) -> None:
        """Write a checkpoint that stays, without a buffer."""
        save(kept(self.folder, state["step"]), state)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on behind this checkpoint: segments that were written after it will be written again."""
        self.size = segment_size_of(state)
        files = state.get("files", {})
        segments = range(*state["buffer"]["segments"])
        self.run, self.number = files.get("run", self.run), files.get("number", 0)
        digests = files.get("segments", {})
        self._segments = {n: digests.get(n) or _digests(_segment(self.folder, n))[0] for n in segments}
        self._needed = [range(segments.stop), segments]
        self._drop(set(range(segments.stop)))
        for part in ("buffer", KEPT):
            sweep(self.folder / part)

    def _drop(self, needed: set[int]) -> None:
        """Remove the other segments."""
        for path in (self.folder / "buffer").glob("*.pt"):
            if path.stem.isdecimal() and int(path.stem) not in needed:
                path.unlink()
                self._segments.pop(int(path.stem), None)


def load_buffer(folder: Path, buffer: ReplayBuffer, state: Mapping[str, Any]) -> None:
    """Put the online buffer of a checkpoint, and of the segments that it names, into `buffer`."""
    part, files = state["buffer"], state.get("files", {})
    buffer.added = part["added"]
    size = segment_size_of(state)
    for number in range(*part["segments"]):
        path = _segment(folder, number)
        segment = load(path, buffer.device, files.get("segments", {}).get(number))
        if files and (segment.get("run"), segment.get("number")) != (files["run"], number):
            raise CheckpointError(f"checkpoint: {path} belongs to another run, or to another place of this one")
        oldest = (number + 1) * size - segment["columns"]["rewards"].shape[1]
        _restore(path, buffer, oldest, segment["columns"])
    _restore(folder / NAME, buffer, part["first"], part["rows"])


def _restore(path: Path, buffer: ReplayBuffer, first: int, columns: dict[str, torch.Tensor]) -> None:
    for name in COLUMNS:
        expected, got = buffer.online[name], columns.get(name)
        shape = None if got is None else (got.shape[0], *got.shape[2:])
        if got is None or shape != (expected.shape[0], *expected.shape[2:]) or got.dtype != expected.dtype:
            raise CheckpointError(f"checkpoint: {path} holds {name} of another shape than the run's buffer")
    buffer.restore(first, columns)


def segment_size_of(state: Mapping[str, Any]) -> int:
    """Transitions in a segment of a checkpoint; that of an earlier version leaves it to the capacity of its buffer."""
    if "segment_size" in state["buffer"]:
        return int(state["buffer"]["segment_size"])
    config = json.loads(state["config"])
    return segment_size(min(config["online_buffer"], max(config["online_steps"], 1)))


def segment_size(capacity: int) -> int:
    """Transitions in a segment of a ring of this capacity, a quarter of it at most; 0: the ring is written whole."""
    size = SEGMENT
    while size > capacity // 4:
        size //= 2
    return size if size >= SMALLEST_SEGMENT else 0


def _segment(folder: Path, number: int) -> Path:
    return folder / "buffer" / f"{number:06d}.pt"

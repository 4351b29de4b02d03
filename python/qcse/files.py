"""Files that are either wholly there or not there at all, and folders and files that one process alone may write."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import random
import re
import secrets
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import DatasetError, InUseError

PATIENCE = 1.0  # seconds in which processes that ask for the same path at once sort out who gets it


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends, deleted where the block raises.

    A reader sees the old file or the new one, never a part, even if the process is killed or the machine loses power.
    Missing parent folders are made. OSError is passed on; one that names no file, such as a full disk, names `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a move is atomic within one file system only.
    try:
        handle, name = tempfile.mkstemp(prefix=_prefix(target), suffix=".partial", dir=target.parent)
    except OSError as error:
        raise _about(error, target) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that nobody else may read; a result gets the permissions of any newly created file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and (error.filename is None or str(error.filename) == name):
            raise _about(error, target) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder have reached the disk."""
    if sys.platform == "win32":  # which opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _about(error: OSError, target: Path) -> OSError:
    """The same error, of the file that the user knows of."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(target))


def _prefix(target: Path) -> str:
    """Of the hidden names beside a file; a long name is cut, as a name may have 255 bytes."""
    name = target.name
    if len(os.fsencode(name)) > 80:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}."


def check_regular(path: Path, what: str = "dataset") -> None:
    """DatasetError unless there is a regular file, which a pipe or a device, that may never end, is not."""
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(
            f"{what}: no file at {path}; expected an HDF5 file in D4RL's layout (`qcse collect` makes one)"
        ) from None
    except ValueError as error:  # a name that no file can have
        raise DatasetError(f"{what}: {str(path)!r} cannot be a file's name ({error})") from None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    if not stat.S_ISREG(facts.st_mode):
        kind = kinds.get(stat.S_IFMT(facts.st_mode), "a device")
        raise DatasetError(f"{what}: {path} is {kind}, not a file; expected an HDF5 file in D4RL's layout")
    if facts.st_size == 0:
        raise DatasetError(f"{what}: {path} is empty, not an HDF5 file; copy or download it again")


# Ownership. Neither flock nor hard links are needed, which not every network file system has: each process that wants a
# path first puts down a file whose name says who it is, then looks at the others' files. Of two that come at once at
# least one sees the other, so that never both go on; a file of a process that has ended is removed by whoever finds it.

_owned: dict[Path, int] = {}  # resolved path -> the thread of this process that owns it
_guard = threading.Lock()


@contextmanager
def own(path: str | os.PathLike[str], folder: bool = True) -> Iterator[None]:
    """Be the only process that writes a folder (or a file), for as long as the block runs.

    To be taken before what is there is read. What killed processes left of temporary files is removed. A folder is
    made if it is missing, and removed again where the block leaves it empty. Within the block the same thread may own
    the same path again.

    Args:
        path: the folder, or the file.
        folder: False where `path` is a file.

    Raises:
        InUseError: another process, of this or another host, or another thread owns it; the message says which.
        OSError: the folder cannot be made or written.
    """
    target = Path(path)
    place = target if folder else target.parent
    key = target.resolve()
    with _guard:
        holder = _owned.get(key)
        if holder is not None and holder != threading.get_ident():
            raise InUseError(f"{target} is in use by another thread of this process; wait for it, or name another")
        if holder is None:
            _owned[key] = threading.get_ident()
    if holder is not None:
        yield
        return
    made: list[Path] = []
    try:
        made = _make(place)
        mark = _take(place, "." if folder else _prefix(target), target)
        try:
            sweep(place, "." if folder else _prefix(target))
            yield
        finally:
            mark.unlink(missing_ok=True)
    finally:
        del _owned[key]
        for empty in made:
            with suppress(OSError):  # not empty, then: what the block was for
                empty.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns those that were made, the innermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def sweep(folder: Path, prefix: str = ".") -> None:
    """Remove temporary files in a folder of one's own: their writers have ended, as only the owner writes."""
    for path in folder.glob("*.partial"):
        if path.name.startswith(prefix):
            path.unlink(missing_ok=True)


def _take(folder: Path, prefix: str, target: Path) -> Path:
    """Put down this process's mark and keep it, unless there is another's."""
    deadline = time.monotonic() + PATIENCE
    while True:
        mark = folder / f"{prefix}{'-'.join(_identity())}-{secrets.token_hex(4)}.lock"
        try:
            mark.write_text(f"process {os.getpid()} on {platform.node()}, {_command()}", "utf-8", "surrogateescape")
        except OSError as error:
            mark.unlink(missing_ok=True)  # on a full disk it is there, and empty
            raise _about(error, target) from error
        others = [path for path in folder.iterdir() if path != mark and path.name.startswith(prefix)]
        marks = [path for path in others if _MARK.fullmatch(path.name[len(prefix) :])]
        living = [path for path in marks if _lives(path, prefix)]
        if not living:
            return mark
        mark.unlink(missing_ok=True)
        # Both of two that come at once give way; one that is there to stay is still there later.
        if time.monotonic() > deadline:
            raise InUseError(
                f"{target} is in use by {_reading(living[0])}; wait for it, stop it, or name another. If that process "
                f"does not exist any more, delete {living[0]}"
            )
        time.sleep(random.uniform(0.01, 0.1))


LONGEST_MARK = 1000  # bytes of a mark that are read
# A mark's name: host, boot, namespace and process tell which process this is, among all that ever see the file system.
_MARK = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}\.lock")


def _identity() -> tuple[str, ...]:
    """Host, boot, container, process and its start, of this process."""
    facts = (platform.node() + _text("/etc/machine-id"), _text("/proc/sys/kernel/random/boot_id"), _namespace())
    words = [hashlib.sha256(os.fsencode(fact)).hexdigest()[:8] for fact in facts]
    return (*words, str(os.getpid()), str(_start_of(os.getpid()) or 0))


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:  # not Linux
        return ""


def _namespace() -> str:
    """In which container's process numbers count; "" where there are none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return ""


def _start_of(process: int) -> int | None:
    """When a process of this machine started, in the kernel's ticks; 0 where that is not told, None: there is none."""
    try:
        # The second field, the program's name, may hold anything, even blanks and parentheses.
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # somebody else's, so there is one
        return 0
    return 0


def owner_of(folder: Path) -> str | None:
    """Whose a folder is, in words; None where no process owns it. Only looks: marks of processes that have ended stay.

    Raises:
        OSError: the folder is there and cannot be read.
    """
    try:
        marks = [path for path in folder.iterdir() if path.name[0] == "." and _MARK.fullmatch(path.name[1:])]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return next((_reading(mark) for mark in marks if not _ended(mark, ".") and mark.exists()), None)


def _lives(mark: Path, prefix: str) -> bool:
    """Whether the process that put down a mark still runs, or may; the mark of one that has ended is removed."""
    if _ended(mark, prefix):
        mark.unlink(missing_ok=True)
        return False
    return mark.exists()


def _ended(mark: Path, prefix: str) -> bool:
    """Whether the process that put down a mark is known to run no more."""
    found = _MARK.fullmatch(mark.name[len(prefix) :])
    assert found is not None
    host, boot, namespace, process, start = found.groups()
    here = _identity()
    # Nothing can be said of another host's processes, nor of another container's.
    if host != here[0] or (boot == here[1] and namespace != here[2]):
        return False
    return boot != here[1] or str(_start_of(int(process))) != start


def _reading(mark: Path) -> str:
    """Whose a mark is, in words."""
    if not mark.is_file():  # it has just ended, or this is a pipe, which might never tell
        return "another process"
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(mark.stat().st_mtime))
        with open(mark, "rb") as file:
            who = file.read(LONGEST_MARK).decode("utf-8", "replace")
        return f"{who or 'another process'}, since {since}"
    except OSError:  # it has just ended
        return "another process"


def _command() -> str:
    return " ".join([Path(sys.argv[0] or "python").name, *sys.argv[1:3]])

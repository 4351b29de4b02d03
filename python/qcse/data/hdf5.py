"""Opening HDF5 files of unknown origin.

The format lets a file point to other files (external links, external storage, virtual datasets), name filters that are
loaded as code, and declare sizes that have nothing to do with its own. Nothing of that is followed: what is read lies
in the file itself, all of it was written, and how much memory it takes is known before any is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import math
import os
import signal
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import DatasetError, QcseError
from ..files import check_regular

try:
    import resource
except ImportError:  # not POSIX
    resource = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

MIB = 1 << 20
LINKS = 8  # soft links that are followed for one name
CHUNK_BYTES = 64 * MIB  # a chunk may have that much, or twice its array's size
LZF_CHUNK_BYTES = 8 * MIB  # LZF makes up to ninety bytes of one
INFLATED_UNCHECKED = MIB // 2  # stored bytes of a gzip chunk that can do no harm; gzip makes up to 1032 bytes of one
RATIO, RATIO_FROM = 100, 256 * MIB  # declared bytes for one stored, tolerated in arrays of more than so many bytes
SCALAR_BYTES = MIB  # a larger scalar is left out of the metadata
METADATA_TEXT = 10_000  # characters of a metadata text that are kept
SCALARS, GROUPS = 1000, 1000  # metadata beyond are left out
CHUNKS = 20_000_000
TRIAL_SECONDS, TRIAL_ITEMS = 15, 1000  # of the process that walks through a file first

SHUFFLE, FLETCHER32 = h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32
COMPRESSORS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_LZF)


@contextmanager
def opened(path: Path, locking: bool | None = None) -> Iterator[h5py.File]:
    """An HDF5 file for reading; whatever h5py raises on damaged content becomes a DatasetError.

    Raises:
        DatasetError: no regular file, in use, not HDF5, or damaged.
        OSError: the system could not read it, for another reason than a lock or a missing permission.
    """
    check_regular(path)
    _try_out(path)
    try:
        # Each chunk is read once, so a cache of chunks would only cost memory.
        with h5py.File(path, "r", locking=locking, rdcc_nbytes=MIB) as file:
            yield file
    except QcseError:
        raise
    except MemoryError as error:
        raise DatasetError(f"dataset: {path} does not fit in memory; read it on a machine with more") from error
    except OSError as error:
        if error.errno is None:  # the library's own complaint, about what is in the file
            raise DatasetError(_unreadable(path, error)) from error
        raise _system_error(path, error) from error
    except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise DatasetError(_unreadable(path, error)) from error


def _try_out(path: Path) -> None:
    """Let a process of its own walk through the file first. On some damaged files HDF5's library crashes, or runs in
    circles (a text whose heap refers to itself), which nothing in this process could end.

    Raises:
        DatasetError: it did. All else is left to the reading itself.
    """
    if sys.platform != "linux":  # elsewhere a process with threads may not fork
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads, of which the new process needs none
        try:
            process = os.fork()
        except OSError as error:  # no memory for another process's tables
            _log.debug("not tried out: %s", error)
            return
    if process == 0:
        faulthandler.disable()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(TRIAL_SECONDS)
        try:
            with h5py.File(path, "r", locking=False, rdcc_nbytes=MIB) as file:
                _walk(file)
        finally:
            os._exit(0)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        how = "does not come to an end" if os.WTERMSIG(status) == signal.SIGALRM else "crashes"
        raise DatasetError(
            f"dataset: {path} is damaged: HDF5's library {how} where it reads what the file holds; copy or download it "
            "again"
        )


def _walk(file: h5py.File) -> None:
    """Look at what reading will look at, but for the numbers."""
    scalars(file)
    seen = []

    def look(name: str, item: h5py.Group | h5py.Dataset) -> bool | None:
        seen.append(name)
        list(item.attrs)
        if isinstance(item, h5py.Dataset):
            with contextlib.suppress(QcseError):
                array(file, name)
        return True if len(seen) == TRIAL_ITEMS else None  # which ends the visit

    file.visititems(look)


def _system_error(path: Path, error: OSError) -> Exception:
    if "lock file" in str(error):
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return DatasetError(
                f"dataset: {path} is in use by another program, which has it open for writing; wait until that has "
                "closed it"
            )
        return DatasetError(
            f"dataset: {path} cannot be locked, as the file system that it lies on has no locks "
            f"({os.strerror(error.errno or 0)}); set HDF5_USE_FILE_LOCKING=FALSE to read it without, or copy it to "
            "another disk"
        )
    if isinstance(error, PermissionError):
        return DatasetError(f"dataset: {path} may not be read by this user; check its permissions")
    return OSError(error.errno, os.strerror(error.errno or 0), str(path))


def _unreadable(path: Path, error: Exception) -> str:
    size, text = path.stat().st_size, " ".join(str(error).split())[:300]
    if "truncated file" in text:
        return f"dataset: {path} is cut short: it holds {size:,} bytes, its header says more; copy or download it again"
    if "signature not found" in text:
        return f"dataset: {path} ({size:,} bytes) is not an HDF5 file; expected HDF5 in D4RL's layout"
    if "already open for write" in text:
        return (
            f"dataset: {path} is marked as open for writing: another program still writes it, or was killed while it "
            "did; wait, or take the mark away with `h5clear -s FILE` and look at what is in it with `qcse data info`"
        )
    return f"dataset: {path} is damaged and cannot be read ({text}); copy or download it again"


def find(root: h5py.Group, key: str) -> h5py.Group | h5py.Dataset | None:
    """What a file keeps under a name such as "infos/qpos", None where it has no such name.

    Raises:
        DatasetError: the way there leads out of the file, or to nothing.
    """
    here: Any = root
    names, followed = key.split("/"), 0
    while names:
        name = names.pop(0)
        if name in ("", "."):
            continue
        links = here.id.links if isinstance(here, h5py.Group) else None
        raw = os.fsencode(name)
        if links is None or not links.exists(raw):
            if followed:
                raise _refused(root, key, "a link to something that is not there", "the array itself")
            return None
        kind = links.get_info(raw).type
        if kind == h5py.h5l.TYPE_HARD:
            here = here[name]
        elif kind == h5py.h5l.TYPE_SOFT and followed < LINKS:
            followed += 1
            target = os.fsdecode(links.get_val(raw))
            here = root.file["/"] if target.startswith("/") else here
            names = target.split("/") + names
        elif kind == h5py.h5l.TYPE_SOFT:
            raise _refused(root, key, "a link that leads in a circle", "the array itself")
        else:
            raise _refused(root, key, "a link to another file", "the array itself: copy it into this file")
    return here if isinstance(here, h5py.Group | h5py.Dataset) else None


def names(file: h5py.Group) -> str:
    """The names in a file, for a message."""
    found = sorted(map(str, file.keys()))
    return ", ".join(found[:30]) + (f" and {len(found) - 30:,} more" if len(found) > 30 else "") or "none"


def array(root: h5py.Group, key: str) -> h5py.Dataset:
    """The array of numbers that a file keeps under a name, all of it written and in the file itself; nothing is read.

    Raises:
        DatasetError: it is something else, lies in other files, needs filters that are not built in, or is declared
            larger than what was written.
    """
    source = find(root, key)
    if not isinstance(source, h5py.Dataset):
        raise _refused(root, key, "a group" if source is not None else "missing", "an array")
    _check_place(root, key, source)
    if source.shape is None or source.dtype.kind not in "fiub":
        raise DatasetError(f"dataset: {root.file.filename}: {key} has type {source.dtype}; expected numbers")
    _check_storage(root, key, source)
    return source


def declared(source: h5py.Dataset) -> int:
    """Bytes that an array is declared to have."""
    return math.prod(map(int, source.shape or (0,))) * int(source.dtype.itemsize)


def check_memory(path: Path, sources: Mapping[str, h5py.Dataset] | list[h5py.Dataset], needed: int) -> None:
    """DatasetError where arrays are compressed beyond belief, or more memory is needed than there is.

    Args:
        path: their file, for the message.
        sources: what is to be read.
        needed: bytes of memory that they will take.
    """
    sources = list(sources.values()) if isinstance(sources, Mapping) else sources
    size = sum(map(declared, sources))
    stored = sum(int(source.id.get_storage_size()) for source in sources)
    if size > RATIO_FROM and size > RATIO * stored:
        raise DatasetError(
            f"dataset: {path} unpacks {stored:,} bytes to {size:,}, as no recording does; if it is yours, store it "
            "without compression (h5repack -f NONE)"
        )
    available = available_memory()
    if available is not None and needed > available:
        raise DatasetError(
            f"dataset: {path} needs {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available; take a "
            "part of it, or a machine with more memory"
        )


def available_memory() -> int | None:
    """Bytes that this process may still take; None where the system does not tell."""
    found = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found += [int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        for limit, used in (
            (group / "memory.max", group / "memory.current"),
            (group / "memory/memory.limit_in_bytes", group / "memory/memory.usage_in_bytes"),
        ):
            if limit.exists() and (text := limit.read_text().strip()) != "max":
                found.append(int(text) - int(used.read_text()))
        if resource is not None:
            allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            if allowed != resource.RLIM_INFINITY:
                found.append(allowed - pages * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError) as error:  # not Linux, or not told in full
        _log.debug("available memory: %s", error)
    return max(0, min(found)) if found else None


def scalars(file: h5py.File) -> dict[str, str | int | float]:
    """Scalars under metadata/ and among the file's attributes. Arrays (D4RL stores policies' weights) are left out, and
    so is what is not in the file itself, or larger than any text."""
    found: dict[str, str | int | float] = {}
    for name in file.attrs:
        if len(found) < SCALARS:
            attribute = h5py.h5a.open(file.id, os.fsencode(name))
            if attribute.shape == () and _is_plain(attribute.dtype):
                _keep(found, str(name), file.attrs[name])
    group = find(file, "metadata") if file.id.links.exists(b"metadata") else None
    waiting, seen = [("", group)] if isinstance(group, h5py.Group) else [], set[int]()
    while waiting:
        prefix, group = waiting.pop()
        place = h5py.h5o.get_info(group.id).addr
        if place in seen or len(seen) == GROUPS:  # groups may hold themselves
            continue
        seen.add(place)
        for name in group:
            if group.id.links.get_info(os.fsencode(name)).type != h5py.h5l.TYPE_HARD or len(found) == SCALARS:
                continue
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((f"{prefix}{name}/", item))
            elif isinstance(item, h5py.Dataset) and item.shape == () and _is_plain(item.dtype):
                _check_place(file, f"metadata/{prefix}{name}", item)
                _keep(found, prefix + name, item[()])
    return found


def _is_plain(kind: np.dtype[Any]) -> bool:
    """Whether a scalar of this type is a number or a text of reasonable size."""
    return kind.itemsize <= SCALAR_BYTES and (kind.kind in "fiubS" or h5py.check_string_dtype(kind) is not None)


def _keep(found: dict[str, str | int | float], name: str, value: Any) -> None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        found[name] = value[:METADATA_TEXT]
    elif isinstance(value, bool | np.bool_ | int | np.integer):
        found[name] = int(value)
    elif isinstance(value, float | np.floating):
        found[name] = float(value)


def _refused(root: h5py.Group, key: str, got: str, expected: str) -> DatasetError:
    return DatasetError(f"dataset: {root.file.filename}: {key} is {got}; expected {expected}")


def _check_place(root: h5py.Group, key: str, source: h5py.Dataset) -> None:
    """DatasetError where an array's values are in another file, or behind a filter that would have to be loaded."""
    plan = source.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        raise _refused(root, key, "put together from other arrays (a virtual dataset)", "the array itself: copy it")
    if plan.get_external_count() > 0:
        raise _refused(root, key, "stored in another file (external storage)", "the array itself: copy it")
    filters = [plan.get_filter(i) for i in range(plan.get_nfilters())]
    codes = [filter[0] for filter in filters]
    compressors = [code for code in codes if code in COMPRESSORS]
    unknown = [code for code in codes if code not in (SHUFFLE, FLETCHER32, *COMPRESSORS)]
    twice = len(set(codes)) < len(codes) or len(compressors) > 1
    if unknown or twice or (SHUFFLE in codes and compressors and codes.index(SHUFFLE) > codes.index(compressors[0])):
        expected = "none, or gzip or LZF with or without shuffle and checksum: rewrite it with `h5repack -f GZIP=4`"
        raise _refused(root, key, f"stored with the filters {codes}", expected)


def _check_storage(root: h5py.Group, key: str, source: h5py.Dataset) -> None:
    """DatasetError where an array was not written whole, or is declared larger than what is in the file."""
    size, stored = declared(source), int(source.id.get_storage_size())
    file_size = os.stat(root.file.filename).st_size
    if size == 0:
        return
    if stored > file_size:
        raise _refused(root, key, f"said to take {stored:,} bytes of a file of {file_size:,}", "a whole file")
    plan = source.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.CHUNKED:
        _check_chunks(root, key, source, file_size)
    elif stored == 0:
        raise _never_written(root, key, source, len(source) if source.shape else 1)
    elif stored < size or (source.id.get_offset() or 0) + stored > file_size:
        raise _refused(root, key, f"said to have {size:,} bytes, of which {stored:,} are stored", "a whole file")


def _check_chunks(root: h5py.Group, key: str, source: h5py.Dataset, file_size: int) -> None:
    plan = source.id.get_create_plist()
    shape, chunk = tuple(map(int, source.shape)), tuple(map(int, plan.get_chunk()))
    chunk_bytes = math.prod(chunk) * int(source.dtype.itemsize)
    codes = {plan.get_filter(i)[0]: plan.get_filter(i)[2] for i in range(plan.get_nfilters())}
    largest = LZF_CHUNK_BYTES if h5py.h5z.FILTER_LZF in codes else max(CHUNK_BYTES, 2 * declared(source))
    lzf = codes.get(h5py.h5z.FILTER_LZF, ())
    if chunk_bytes > largest or (len(lzf) > 2 and lzf[2] > 2 * chunk_bytes):
        raise _refused(root, key, f"stored in chunks of {chunk_bytes:,} bytes", f"up to {largest:,}; rewrite it")
    grid = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
    expected = math.prod(grid)
    # Each chunk takes at least eight bytes in an index, so that counting takes no longer than reading the file would.
    if expected > CHUNKS or 8 * expected > file_size or source.id.get_num_chunks() < expected:
        blocks = np.zeros(grid[0] if expected <= CHUNKS else 0, np.int64)
        if len(blocks) and 8 * source.id.get_num_chunks() <= file_size:
            source.id.chunk_iter(lambda info: _count(blocks, info.chunk_offset[0] // chunk[0]))
        whole = np.flatnonzero(blocks == expected // grid[0])
        written = sum(min((i + 1) * chunk[0], shape[0]) - i * chunk[0] for i in whole.tolist())
        raise _never_written(root, key, source, shape[0] - written)
    if not codes:
        return
    sizes: list[tuple[int, tuple[int, ...]]] = []
    source.id.chunk_iter(lambda info: sizes.append((int(info.size), info.chunk_offset)))
    if max(size for size, _ in sizes) > chunk_bytes + chunk_bytes // 4 + 4096:
        raise _refused(root, key, "stored in chunks larger than what they hold", "a compressed array: copy it again")
    if h5py.h5z.FILTER_DEFLATE in codes:
        for size, offset in sizes:
            if size > INFLATED_UNCHECKED:
                _check_inflated(root, key, source, offset, chunk_bytes)


def _count(blocks: np.ndarray, block: int) -> None:
    if block < len(blocks):
        blocks[block] += 1


def _check_inflated(root: h5py.Group, key: str, source: h5py.Dataset, offset: Any, chunk_bytes: int) -> None:
    """DatasetError where a chunk unpacks to more than it is declared to hold: the library would let it."""
    mask, packed = source.id.read_direct_chunk(offset)
    if mask:  # a filter was left out for this chunk
        return
    stream, size, data = zlib.decompressobj(), 0, packed
    try:
        while data and not stream.eof and size <= chunk_bytes + 4:
            size += len(stream.decompress(data, MIB))
            data = stream.unconsumed_tail
    except zlib.error as error:
        raise _refused(root, key, f"damaged ({error})", "a whole file: copy or download it again") from error
    if size > chunk_bytes + 4:  # a checksum may be inside
        raise _refused(root, key, "stored in chunks that unpack to more than they hold", "an array's own size")


def _never_written(root: h5py.Group, key: str, source: h5py.Dataset, rows: int) -> DatasetError:
    return DatasetError(
        f"dataset: {root.file.filename}: {key} has {(source.shape or (1,))[0]:,} rows, of which {rows:,} were never "
        "written; its writer was stopped before it was done: record it again, or cut the arrays to what was written"
    )

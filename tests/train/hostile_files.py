"""HDF5 files in D4RL's layout that are not what they seem, for tests."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

N = 40
TERABYTES = 10**12


def good(path: Path, n: int = N) -> Path:
    """Nothing is wrong with it: states of 3 numbers, actions of 2."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = rng.normal(size=(2, n, 3)).astype("f4")
        file["actions"], file["rewards"] = rng.uniform(-1, 1, (n, 2)).astype("f4"), rng.normal(size=n).astype("f4")
        file["terminals"], file["timeouts"] = np.zeros(n, bool), np.arange(n) % 10 == 9
        file["infos/qpos"] = file["infos/qvel"] = rng.normal(size=(n, 3))
        file.attrs["env_id"] = "Hopper-v5"
    return path


def _edited(path: Path, change: Callable[[h5py.File], object], drop: str = "rewards") -> Path:
    good(path)
    with h5py.File(path, "r+") as file:
        if drop in file:
            del file[drop]
        change(file)
    return path


def _pipe(path: Path) -> str:
    """A named pipe without a writer beside `path`: whoever opens it hangs."""
    name = path.with_name("outside.pipe")
    if not name.exists():
        os.mkfifo(name)
    return str(name)


def _raw(
    file: h5py.File,
    key: str,
    shape: tuple[int, ...],
    chunk: tuple[int, ...] | None = None,
    filters: tuple[tuple[int, tuple[int, ...]], ...] = (),
    early: bool = False,
) -> h5py.Dataset:
    """A float32 array as the library's own functions make it, without h5py's checks."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if chunk is not None:
        plan.set_chunk(chunk)
    for code, values in filters:
        plan.set_filter(code, h5py.h5z.FLAG_OPTIONAL, values)
    if early:
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    limits = shape if chunk is None else (h5py.h5s.UNLIMITED,) * len(shape)
    h5py.h5d.create(file.id, key.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape, limits), plan)
    return file[key]


def zeros_packed(size: int) -> bytes:
    """Deflated data that unpack to `size` zeros, made without packing so many."""
    packer, block = zlib.compressobj(9), 16 << 20
    first = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (size // block - 1) + packer.flush()


def external_link(path: Path) -> Path:
    return _edited(path, lambda f: f.__setitem__("rewards", h5py.ExternalLink(_pipe(path), "/rewards")))


def external_group(path: Path) -> Path:
    return _edited(path, lambda f: f.__setitem__("infos", h5py.ExternalLink(_pipe(path), "/infos")), drop="infos")


def soft_link_out(path: Path) -> Path:
    def change(file: h5py.File) -> None:
        file["away"] = h5py.ExternalLink(_pipe(path), "/")
        file["rewards"] = h5py.SoftLink("/away/rewards")

    return _edited(path, change)


def dangling_link(path: Path) -> Path:
    return _edited(path, lambda f: f.__setitem__("rewards", h5py.SoftLink("/nowhere")))


def circular_links(path: Path) -> Path:
    def change(file: h5py.File) -> None:
        file["rewards"], file["other"] = h5py.SoftLink("/other"), h5py.SoftLink("/rewards")

    return _edited(path, change)


def external_storage(path: Path) -> Path:
    return _edited(path, lambda f: f.create_dataset("rewards", (N,), "f4", external=[(_pipe(path), 0, 4 * N)]))


def external_metadata(path: Path) -> Path:
    def change(file: h5py.File) -> None:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_external(_pipe(path).encode(), 0, 4)
        group = file.create_group("metadata")
        h5py.h5d.create(group.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create(h5py.h5s.SCALAR), plan)

    return _edited(path, change, drop="nothing")


def virtual(path: Path) -> Path:
    def change(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((N,), "f4")
        layout[:] = h5py.VirtualSource(_pipe(path), "rewards", (N,))
        file.create_virtual_dataset("rewards", layout)

    return _edited(path, change)


def declared_chunked(path: Path) -> Path:
    """All arrays have a million million rows, of which none was written."""

    def change(file: h5py.File) -> None:
        for key, width in (("observations", 3), ("next_observations", 3), ("actions", 2), ("rewards", 0)):
            if key in file:
                del file[key]
            tail = (width,) if width else ()
            _raw(file, key, (TERABYTES, *tail), (1000, *tail))

    return _edited(path, change)


def declared_contiguous(path: Path) -> Path:
    return _edited(path, lambda f: _raw(f, "rewards", (TERABYTES,)))


def half_written(path: Path) -> Path:
    def change(file: h5py.File) -> None:
        file.create_dataset("rewards", (N,), "f4", chunks=(10,))[: N // 2] = 1.0

    return _edited(path, change)


def zeros_at_the_end(path: Path) -> Path:
    """Half of the rows was written, into arrays that have their whole place in the file."""

    def change(file: h5py.File) -> None:
        for key in ("observations", "next_observations", "actions"):
            file[key][N // 2 :] = 0.0
        file["rewards"] = np.repeat(np.float32([1.0, 0.0]), N // 2)

    return _edited(path, change)


def sparse(path: Path) -> Path:
    """Two terabytes that the file system says are there."""

    def change(file: h5py.File) -> None:
        n = TERABYTES // 24
        for key, width in (("observations", 3), ("next_observations", 3), ("actions", 2), ("rewards", 0)):
            if key in file:
                del file[key]
            _raw(file, key, (n, width) if width else (n,), early=True)
        for key in ("terminals", "timeouts"):
            del file[key]
            _raw(file, key, (n,), early=True)

    return _edited(path, change)


def bomb(path: Path) -> Path:
    """Three gigabytes of zeros in three megabytes."""

    def change(file: h5py.File) -> None:
        rows, blocks = (64 << 20) // 12, 24
        deflate = ((h5py.h5z.FILTER_DEFLATE, (9,)),)
        widths = {"observations": 3, "next_observations": 3, "actions": 2, "rewards": 0, "terminals": 0, "timeouts": 0}
        for key, width in widths.items():
            if key in file:
                del file[key]
            tail = (width,) if width else ()
            source = _raw(file, key, (rows * blocks, *tail), (rows, *tail), deflate)
            packed = zlib.compress(bytes(rows * max(width, 1) * 4), 1)
            for block in range(blocks):
                source.id.write_direct_chunk((block * rows, *(0 for _ in tail)), packed)

    return _edited(path, change)


def bomb_in_a_chunk(path: Path, rows: int = 1_000_000) -> Path:
    """A chunk of four megabytes that unpacks to four gigabytes."""

    def change(file: h5py.File) -> None:
        source = _raw(file, "rewards", (N,), (rows,), ((h5py.h5z.FILTER_DEFLATE, (9,)),))
        source.id.write_direct_chunk((0,), zeros_packed(4 << 30))

    return _edited(path, change)


def bomb_in_a_small_chunk(path: Path) -> Path:
    return bomb_in_a_chunk(path, N)


def chunk_beyond_its_array(path: Path) -> Path:
    def change(file: h5py.File) -> None:
        source = _raw(file, "rewards", (N,), (900_000_000,), ((h5py.h5z.FILTER_DEFLATE, (9,)),))
        source.id.write_direct_chunk((0,), zlib.compress(bytes(4 * N)))

    return _edited(path, change)


def plugin(path: Path) -> Path:
    def change(file: h5py.File) -> None:
        _raw(file, "rewards", (N,), (N,), ((32013, (1, 2)),)).id.write_direct_chunk((0,), bytes(4 * N))

    return _edited(path, change)


def packed_twice(path: Path) -> Path:
    def change(file: h5py.File) -> None:
        twice = ((h5py.h5z.FILTER_DEFLATE, (9,)), (h5py.h5z.FILTER_DEFLATE, (9,)))
        source = _raw(file, "rewards", (N,), (N,), twice)
        source.id.write_direct_chunk((0,), zlib.compress(zlib.compress(bytes(4 * N))))

    return _edited(path, change)


def references(path: Path) -> Path:
    def change(file: h5py.File) -> None:
        file.create_dataset("rewards", (N,), h5py.ref_dtype)[:] = [file["actions"].ref] * N

    return _edited(path, change)


def texts(path: Path) -> Path:
    return _edited(path, lambda f: f.create_dataset("rewards", (N,), h5py.string_dtype(), data=["os.system"] * N))


def large_metadata(path: Path) -> Path:
    """A text of two gigabytes, and one of a thousand million references to one place; the file is good otherwise."""

    def change(file: h5py.File) -> None:
        file.create_dataset("metadata/text", (), "S2000000000")
        text = file.create_dataset("metadata/many", (1000, 1000), h5py.string_dtype())
        text[0, 0] = "x" * 1000
        file.attrs["many"] = np.zeros((200, 4))
        file.attrs.create("refs", [file["actions"].ref] * 100, dtype=h5py.ref_dtype)

    return _edited(path, change, drop="nothing")


def deep_metadata(path: Path) -> Path:
    """Groups that hold themselves, a hundred times."""

    def change(file: h5py.File) -> None:
        group = file.create_group("metadata")
        for i in range(100):
            group[f"again{i}"] = group
        group["out"] = h5py.ExternalLink(_pipe(path), "/")
        group["algorithm"] = "none"

    return _edited(path, change, drop="nothing")

"""HDF5 files that point elsewhere, declare what is not there, or are locked: refused before memory is taken."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import hostile_files
import numpy as np
import pytest

from qcse.data import hdf5
from qcse.data.d4rl import load_d4rl
from qcse.data.facts import describe
from qcse.data.physics import check_physics
from qcse.errors import DatasetError

REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (hostile_files.external_link, "rewards is a link to another file"),
    (hostile_files.soft_link_out, "rewards is a link to another file"),
    (hostile_files.dangling_link, "rewards is a link to something that is not there"),
    (hostile_files.circular_links, "rewards is a link that leads in a circle"),
    (hostile_files.external_storage, r"rewards is stored in another file \(external storage\)"),
    (hostile_files.external_metadata, r"metadata/x is stored in another file"),
    (hostile_files.virtual, r"rewards is put together from other arrays"),
    (hostile_files.declared_chunked, r"observations has 1,000,000,000,000 rows, of which 1,000,000,000,000 were never"),
    (hostile_files.declared_contiguous, r"rewards has 1,000,000,000,000 rows, of which 1,000,000,000,000 were never"),
    (hostile_files.half_written, r"rewards has 40 rows, of which 20 were never written"),
    (hostile_files.zeros_at_the_end, r"40 rows, of which the last 20 are zeros in state, action and reward"),
    (hostile_files.sparse, r"needs [\d.]+ GB of memory, [\d.]+ GB are available"),
    (hostile_files.bomb, r"unpacks [\d,]+ bytes to [\d,]+, as no recording does"),
    (hostile_files.bomb_in_a_chunk, "rewards is stored in chunks that unpack to more than they hold"),
    (hostile_files.bomb_in_a_small_chunk, "rewards is stored in chunks larger than what they hold"),
    (hostile_files.chunk_beyond_its_array, r"rewards is stored in chunks of 3,600,000,000 bytes"),
    (hostile_files.plugin, r"rewards is stored with the filters \[32013\].*h5repack"),
    (hostile_files.packed_twice, r"rewards is stored with the filters \[1, 1\]"),
    (hostile_files.references, "rewards has type object; expected numbers"),
    (hostile_files.texts, "rewards has type object; expected numbers"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[make.__name__ for make, _ in REFUSED])
def test_what_is_not_in_the_file_is_refused(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    path = make(tmp_path / "data.hdf5")
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=message):
            load_d4rl(path, progress=False)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


def test_states_in_another_file_are_refused(tmp_path: Path) -> None:
    path = hostile_files.external_group(tmp_path / "data.hdf5")
    assert len(load_d4rl(path, progress=False)) == hostile_files.N  # which needs nothing of it
    with pytest.raises(DatasetError, match="infos/qpos is a link to another file"):
        check_physics(path, progress=False)


@pytest.mark.parametrize("make", [hostile_files.large_metadata, hostile_files.deep_metadata])
def test_metadata_beyond_reason_are_left_out(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "data.hdf5")
    metadata = load_d4rl(path, progress=False).metadata
    assert metadata.pop("algorithm", "none") == "none" and metadata == {"env_id": "Hopper-v5"}
    assert describe(str(path))[0].rows == hostile_files.N


def test_links_inside_a_file_are_followed(tmp_path: Path) -> None:
    path = hostile_files.good(tmp_path / "data.hdf5")
    before = load_d4rl(path)
    with h5py.File(path, "r+") as file:
        file.create_group("group")
        file.move("rewards", "group/rewards")
        file["second"] = h5py.SoftLink("group/rewards")
        file["rewards"] = h5py.SoftLink("/second")
    assert load_d4rl(path).fingerprint() == before.fingerprint()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (7000, 2)},
        {"compression": "lzf", "chunks": True},
        {"chunks": (100_000, 3), "maxshape": (None, 3)},
        {"compression": "gzip", "chunks": (400_000, 3)},
    ],
)
def test_every_storage_that_is_built_in_is_read(options: dict[str, object], tmp_path: Path) -> None:
    path = hostile_files.good(tmp_path / "data.hdf5", 400_000)
    before = load_d4rl(path, progress=False).fingerprint()
    with h5py.File(path, "r+") as file:
        values = file["observations"][()]
        del file["observations"]
        file.create_dataset("observations", data=values, **options)
    assert load_d4rl(path, progress=False).fingerprint() == before


def test_pipes_devices_and_odd_names_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(DatasetError, match=f"is {kind}, not a file"):
            load_d4rl(path)
    with pytest.raises(DatasetError, match="cannot be a file's name"):
        load_d4rl("a\0b")
    if Path("/proc/kmsg").exists():
        with pytest.raises(DatasetError, match=r"is empty|may not be read"):
            load_d4rl("/proc/kmsg")


def test_a_file_in_use_is_said_to_be_so(tmp_path: Path) -> None:
    path = hostile_files.good(tmp_path / "data.hdf5")
    code = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"open\n"
        with pytest.raises(DatasetError, match=r"is in use by another program, .*wait until that has closed it"):
            load_d4rl(path)
    assert len(load_d4rl(path)) == hostile_files.N


def raising(error: OSError) -> Callable[..., object]:
    def raise_it(*_: object, **__: object) -> object:
        raise error

    return raise_it


def test_what_the_system_says_passes_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile_files.good(tmp_path / "data.hdf5")
    # The texts are h5py's.
    cases = [
        (OSError(errno.ENOLCK, "Unable to open file (unable to lock file, errno = 37)"), "no locks .*USE_FILE_LOCKING"),
        (PermissionError(errno.EACCES, "Unable to open file"), "may not be read by this user"),
    ]
    for error, message in cases:
        monkeypatch.setattr(hdf5.h5py, "File", raising(error))
        with pytest.raises(DatasetError, match=message):
            load_d4rl(path)
    for number in (errno.EIO, errno.ESTALE, errno.EMFILE):
        monkeypatch.setattr(hdf5.h5py, "File", raising(OSError(number, "Unable to open file (something)")))
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            load_d4rl(path)
        assert caught.value.filename == str(path) and not isinstance(caught.value, DatasetError)


def test_a_file_whose_writer_was_killed_says_so(tmp_path: Path) -> None:
    code = (
        "import h5py, os, sys; f = h5py.File(sys.argv[1], 'w', libver='latest'); f['x'] = [1]; f.flush(); os._exit(0)"
    )
    path = tmp_path / "data.hdf5"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    with pytest.raises(DatasetError, match=r"marked as open for writing.*h5clear"):
        load_d4rl(path)


def test_the_memory_that_is_needed_is_compared_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hostile_files.good(tmp_path / "data.hdf5", 400_000)
    assert (hdf5.available_memory() or 1) > 0
    monkeypatch.setattr(hdf5, "available_memory", lambda: 10_000_000)
    with pytest.raises(DatasetError, match=r"needs 0\.0 GB of memory, 0\.0 GB are available"):
        load_d4rl(path)
    monkeypatch.setattr(hdf5, "available_memory", lambda: None)
    assert len(load_d4rl(path)) == 400_000
    assert np.isfinite(load_d4rl(path).rewards).all()


@pytest.mark.parametrize(
    ("walk", "message"),
    [
        (lambda file: time.sleep(60), "does not come to an end"),
        (lambda file: os.kill(os.getpid(), signal.SIGSEGV), "crashes"),
    ],
)
def test_a_library_that_hangs_or_crashes_does_so_elsewhere(walk, message: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "data.hdf5"
    hostile_files.good(path)
    assert len(load_d4rl(path, progress=False)) > 0
    monkeypatch.setattr(hdf5, "TRIAL_SECONDS", 1)
    monkeypatch.setattr(hdf5, "_walk", walk)
    with pytest.raises(DatasetError, match=f"HDF5's library {message}"):
        load_d4rl(path, progress=False)

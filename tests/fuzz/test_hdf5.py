"""HDF5 files in D4RL's layout, hurt in their bytes or put together wrongly: transitions, or a DatasetError."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from qcse.data import hdf5
from qcse.data.d4rl import load_d4rl
from qcse.data.transitions import Transitions
from qcse.errors import DatasetError

KINDS = ("plain", "chunked", "packed", "latest")
N = 60
FILTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"chunks": True},
    "packed": {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True},
    "latest": {"chunks": True, "compression": "lzf"},
}


@functools.cache
def good(kind: str) -> bytes:
    """A small file with nothing wrong in it."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.hdf5"
        with h5py.File(path, "w", libver="latest" if kind == "latest" else None) as file:
            states = rng.normal(size=(N + 1, 3)).astype("f4")
            arrays = {
                "observations": states[:-1], "next_observations": states[1:], "rewards": rng.normal(size=N),
                "actions": rng.uniform(-1, 1, (N, 2)).astype("f4"), "terminals": np.zeros(N, bool),
                "timeouts": np.arange(N) % 20 == 19,
            }  # fmt: skip
            for key, values in arrays.items():
                file.create_dataset(key, data=values, **FILTERS[kind])
            file.attrs["env_id"] = "Hopper-v5"
            file["metadata/steps"] = 7
        return path.read_bytes()


def read(content: bytes) -> Transitions | None:
    """What becomes of a file with this content: transitions that are sound, or None where it is refused by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.hdf5"
        path.write_bytes(content)
        with mock.patch.object(hdf5, "TRIAL_SECONDS", 2):  # files that hang the library are told so early enough
            return check(path)


def check(path: Path) -> Transitions | None:
    try:
        data = load_d4rl(path, progress=False)
    except DatasetError as error:
        assert str(error).startswith("dataset: ") and "\n" not in str(error)
        return None
    n = len(data)
    assert n > 0 and data.observations.shape == data.next_observations.shape == (n, data.observation_dim)
    assert data.actions.shape == (n, data.action_dim) and data.bootstrap.shape == data.episode_end.shape == (n,)
    for values in (data.observations, data.next_observations, data.actions, data.rewards):
        assert values.dtype == np.float32 and np.isfinite(values).all()
    assert np.isin(data.bootstrap, (0.0, 1.0)).all() and data.episode_end[-1]
    assert all(isinstance(value, str | int | float) for value in data.metadata.values())
    return data


# Most bytes are numbers, in which a change goes unnoticed; the structure lies around them.
PLACES = st.one_of(st.integers(0, 4095), st.integers(0, 200_000))


@given(st.sampled_from(KINDS), st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=8))
@example("plain", [(0, 0)])
@example("plain", [(1835, 255), (6680, 1), (16206, 0)])  # HDF5's library runs in circles
def test_bytes(kind: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(good(kind))
    for place, value in changes:
        content[place % len(content)] = value
    read(bytes(content))


@given(st.sampled_from(KINDS), PLACES, st.integers(0, 3000), st.binary(max_size=64))
def test_cuts(kind: str, place: int, size: int, instead: bytes) -> None:
    content = good(kind)
    place %= len(content)
    read(content[:place] + instead + content[place + size :])


KEYS = ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts")
SHAPES = st.lists(st.integers(0, 6), max_size=3).map(tuple)
TYPES = st.sampled_from(["f2", "f4", ">f4", "f8", "i1", "u8", "?", "S3", "c8", "V5", "O", "f4,i4"])
VALUES = st.sampled_from([0.0, 1.0, -1.0, 1e300, np.nan, np.inf])


@st.composite
def array(draw: st.DrawFn) -> dict[str, Any]:
    """How one array is stored."""
    return {
        "shape": draw(st.one_of(st.sampled_from([(4,), (4, 1), (4, 3), (4, 2)]), SHAPES)),
        "type": draw(st.one_of(st.just("f4"), TYPES)),
        "value": draw(VALUES),
        "chunks": draw(st.sampled_from([None, True])),
        "compression": draw(st.sampled_from([None, "gzip", "lzf"])),
        "written": draw(st.sampled_from(["whole", "half", "nothing"])),
        "kind": draw(st.sampled_from(["array", "array", "array", "group", "soft", "external", "missing"])),
    }


def store(file: h5py.File, key: str, what: dict[str, Any]) -> None:
    if what["kind"] == "group":
        file.create_group(key)
    elif what["kind"] == "soft":
        file[key] = h5py.SoftLink("/actions")
    elif what["kind"] == "external":
        file[key] = h5py.ExternalLink("/dev/zero", "/actions")
    elif what["kind"] == "array":
        shape, packed = what["shape"], what["compression"] if what["shape"] else None
        kind = h5py.string_dtype() if what["type"] == "O" else np.dtype(what["type"])
        chunks = what["chunks"] if shape and 0 not in shape else None
        source = file.create_dataset(key, shape, kind, chunks=chunks, compression=packed if chunks else None)
        if source.dtype.kind in "fiub" and shape and what["written"] != "nothing":
            rows = shape[0] if what["written"] == "whole" else shape[0] // 2
            with np.errstate(all="ignore"):
                source[:rows] = np.full((rows, *shape[1:]), what["value"]).astype(source.dtype)


@given(st.fixed_dictionaries({key: array() for key in KEYS}), st.dictionaries(st.text(max_size=5), st.text(max_size=9)))
def test_structures(arrays: dict[str, dict[str, Any]], attributes: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.hdf5"
        with h5py.File(path, "w") as file:
            for key, what in arrays.items():
                store(file, key, what)
            for name, value in attributes.items():
                if "\0" not in name + value and name.isprintable() and value.isprintable():
                    file.attrs[name or "empty"] = value
        check(path)


def test_the_files_that_are_hurt_are_good() -> None:
    for kind in KINDS:
        data = read(good(kind))
        assert data is not None and len(data) == N and data.metadata == {"env_id": "Hopper-v5", "steps": 7}

"""config.json of any content is a configuration or a ConfigError of one line."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from qcse.config import TrainConfig, differences, from_dict, preset, read_config, to_dict, validate
from qcse.config.options import ADDED
from qcse.errors import ConfigError

STORED = to_dict(preset("cal_ql", "Hopper-v5", bonus="qcse"))

numbers = st.integers() | st.integers(-(10**30), 10**30) | st.floats()
texts = st.text(st.characters(codec=None), max_size=8) | st.sampled_from(["", ".", "../..", "sac", "qcse", "\0", "nan"])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


def refused(content: bytes) -> TrainConfig | None:
    """What a file of this content holds; None where it is refused as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_bytes(content)
        try:
            return read_config(path)
        except ConfigError as error:
            message = str(error)
            assert message.startswith(str(path)) and len(message.splitlines()) == 1 and len(message) < 2000, message
            message.encode("utf-8", "backslashreplace")
            return None


def is_sound(config: TrainConfig) -> None:
    """Read back it is the same; its ranges are judged without a crash."""
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config and differences(config, again) == []
    try:
        validate(config)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


@given(content=st.binary(max_size=200))
@example(content=b"\xff")
@example(content=b"[" * 200_000)
@example(content=b'{"a":' * 3000 + b"1" + b"}" * 3000)
@example(content=b'{"seed": ' + b"9" * 5000 + b"}")
def test_bytes(content: bytes) -> None:
    assert refused(content) is None


@given(value=values)
def test_structures(value: Any) -> None:
    assert refused(json.dumps(value).encode()) is None


@given(place=st.integers(0, 10**6), value=values, remove=st.booleans())
def test_changed_options(place: int, value: Any, remove: bool) -> None:
    data = copy.deepcopy(STORED)
    places = [(data, name) for name in data] + [(part, name) for part in data.values() if isinstance(part, dict)
                                                 for name in part]  # fmt: skip
    owner, name = places[place % len(places)]
    if remove:
        del owner[name]
    else:
        owner[name] = value
    config = refused(json.dumps(data).encode())
    assert config is None or not remove or name in ADDED
    if config is not None:
        is_sound(config)


@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_files(flips: list[tuple[int, int]]) -> None:
    content = bytearray(json.dumps(STORED).encode())
    for place, byte in flips:
        content[place % len(content)] = byte
    config = refused(bytes(content))
    if config is not None:
        is_sound(config)

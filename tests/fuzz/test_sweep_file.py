"""A sweep's TOML file of any content gives options of the right types, or a ConfigError of one line."""

from __future__ import annotations

import tempfile
import types
import typing
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from qcse.config.commands import RANGES, SweepArgs
from qcse.config.ranges import check_ranges
from qcse.errors import ConfigError
from qcse.runs.grid import combinations, words_of
from qcse.runs.sweep import OPTIONS, read_file

grids = ("grid", "grid.discount", "grid.bonus.k", "grid.'bonus.k'", "grid.net.policy_hidden")
names = st.sampled_from([*OPTIONS, *grids, "workers", "extra", "out", "file", "a", "'b c'"])
scalars = st.sampled_from(
    ["1", "0", "-3", "true", "nan", "-inf", "1e9", "0x10", "1979-05-27", "07:32:00", "9" * 40, "9" * 5000, "''"]
    + [f"'{word}'" for word in ("cql", "qcse", "none", "../..", "Hopper-v5", "a.hdf5", "minari:a/b-v0", "--log-every")]
)
terms = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(lambda v: f"[{', '.join(v)}]") | inner.map(lambda v: f"{{a = {v}}}"),
    max_leaves=6,
)


def options_of(content: bytes) -> dict[str, Any] | None:
    """What a file of this content says; None where it is refused as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.toml"
        path.write_bytes(content)
        try:
            found, extra, grid = read_file(path)
        except ConfigError as error:
            message = str(error)
            assert message.startswith(str(path)) and len(message.splitlines()) == 1 and len(message) < 2000, message
            return None
    assert all(isinstance(word, str) for word in extra)
    assert all(words_of(settings) for settings in combinations(grid, "cql", "qcse") if settings)
    hints = typing.get_type_hints(SweepArgs)
    for name, value in found.items():
        hint = hints[name]
        if isinstance(hint, types.UnionType):  # TOML has no none
            hint = typing.get_args(hint)[0]
        kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
        assert type(value) is kind
        for item in value if kind is tuple else ():
            allowed = typing.get_args(arguments[0])
            assert item in allowed if allowed else isinstance(item, arguments[0])
    try:
        check_ranges(SweepArgs(**found), RANGES)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    return found


@given(content=st.binary(max_size=100))
@example(content=b"\xff")
@example(content=b"a = " + b"[" * 60_000)
@example(content=b"a" + b".a" * 20_000 + b" = 1")
@example(content=b"[" + b"a." * 20_000 + b"a]")
def test_bytes(content: bytes) -> None:
    options_of(content)


@given(lines=st.lists(st.tuples(names, terms), max_size=5))
@example(lines=[("algos", "'cql'")])
@example(lines=[("bonuses", "['../..']")])
@example(lines=[("seeds", "9" * 5000)])
@example(lines=[("grid.bonus.k", "[5, 10]"), ("grid.'bonus.k'", "[3]")])
@example(lines=[("grid.net.policy_hidden", "[[64, 64], [256]]")])
def test_options(lines: list[tuple[str, str]]) -> None:
    options_of("\n".join(f"{name} = {term}" for name, term in lines).encode())


@given(text=st.text(st.sampled_from("algos=[]{}'\"#.,1e-_\n\\u0 "), max_size=60))
def test_syntax(text: str) -> None:
    options_of(text.encode())

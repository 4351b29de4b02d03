"""Options that a sweep varies: read from words or TOML, written as words for `qcse train`."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import TrainConfig, flat
from ..config.algorithms import ALGORITHMS
from ..config.bonuses import BONUSES
from ..config.plain import entries, shown
from ..config.typed import conform
from ..errors import ConfigError

# What a sweep has options of its own for.
NAMED = {
    "algo": "--algos", "bonus.kind": "--bonuses", "bonus": "--bonuses", "env": "--envs", "task": "--tasks",
    "dataset": "--datasets", "seed": "--first-seed", "seeds": "--seeds", "out": "--out",
    "init_from": "nothing for it: what several runs share is pre-trained once",
    "fresh_optimizers": "nothing for it: its runs go on with the moments of pre-training",
}  # fmt: skip

Grid = dict[str, list[Any]]  # option -> its values, as JSON has them
MOST = 10_000  # combinations


def from_words(words: Sequence[str]) -> Grid:
    """The grid that words such as "bonus.k=5,10" and "net.policy_hidden=64 64,256 256" describe.

    Raises:
        ConfigError: a word has another form, or names an unknown option or a value that is not of its type.
    """
    read: dict[str, Any] = {}
    for word in words:
        name, found, values = word.partition("=")
        if not found or not name or not values:
            raise ConfigError(f"grid: got {shown(word)}; expected an option and its values, such as bonus.k=5,10,25")
        name = name.replace("-", "_")
        if name in read:
            raise ConfigError(f"grid: {name} is there twice; expected it once, with all its values")
        read[name] = [_plain(value, _hint(name, "grid")) for value in values.split(",")]
    return _checked(read, "grid")


def from_table(table: object, source: str) -> Grid:
    """The grid of a TOML table: option -> list of values; options in groups may be tables in it.

    Raises:
        ConfigError: as `from_words`.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: grid is {shown(table)}; expected a table of options, each with a list of values")
    read: dict[str, Any] = {}
    for written, values in entries(table):
        name = written.replace("-", "_")
        if name in read:
            raise ConfigError(f"{source}: grid: {shown(name)} is there twice; expected it once, with all its values")
        read[name] = values
    return _checked(read, f"{source}: grid")


def _checked(read: Mapping[str, Any], where: str) -> Grid:
    grid: Grid = {}
    for name, values in sorted(read.items()):  # in one order, as the names of the runs have it
        hint = _hint(name, where)
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: {name} is {shown(values)}; expected a list of values")
        typed = [conform(value, hint, f"{where}: {name}") for value in values]
        grid[name] = [list(value) if isinstance(value, tuple) else value for value in typed]
        if any(value in grid[name][:i] for i, value in enumerate(grid[name])):
            raise ConfigError(f"{where}: {name} has a value twice; expected each once")
    return grid


def _hint(name: str, where: str) -> object:
    """The type of an option."""
    if name in NAMED:
        raise ConfigError(f"{where}: {name} is not varied by --grid; a sweep has {NAMED[name]}")
    cls: Any = TrainConfig
    *groups, last = name.split(".")
    for group in groups:
        cls = typing.get_type_hints(cls).get(group) if dataclasses.is_dataclass(cls) else None
    hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
    if last not in hints or dataclasses.is_dataclass(hints[last]):
        names = [option for option in flat(TrainConfig()) if option not in NAMED]
        near = difflib.get_close_matches(name[:80], names, n=3)
        hint = f" (near matches: {', '.join(near)})" if near else ""
        raise ConfigError(f"{where}: got the unknown option {shown(name)}{hint}; `qcse train --help` lists all")
    return hints[last]


def _plain(text: str, hint: object) -> Any:
    """A value in a word: numbers, true, false and none as JSON and Python write them, lists with blanks between."""
    if typing.get_origin(hint) is tuple:
        return [_plain(part, None) for part in text.split()]
    lowered = {"none": None, "true": True, "false": False}
    if text.lower() in lowered and hint is not str and text not in typing.get_args(hint):
        return lowered[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def combinations(grid: Grid, algo: str, bonus: str) -> list[dict[str, Any]]:
    """All settings of a grid for an algorithm with a bonus; options that they do not read are left out."""
    read = {name: values for name, values in grid.items() if _reads(algo, bonus, name)}
    count = math.prod(map(len, read.values()))
    if count > MOST:
        raise ConfigError(f"grid: got {count:,} combinations; expected at most {MOST:,}: vary fewer options at a time")
    return [dict(zip(read, values, strict=True)) for values in itertools.product(*read.values())]


def _reads(algo: str, bonus: str, name: str) -> bool:
    group, _, option = name.rpartition(".")
    if group == "bonus":
        return bonus != "none" and option in {field.name for field in dataclasses.fields(BONUSES[bonus].options)}
    return group.partition(".")[0] in {"", *(field.name for field in dataclasses.fields(ALGORITHMS[algo].options))}


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Options as the words that `qcse train` has for them."""
    words: list[str] = []
    for name, value in settings.items():
        *groups, last = name.replace("_", "-").split(".")
        if isinstance(value, bool):
            words.append("--" + ".".join([*groups, last if value else f"no-{last}"]))
        else:
            words += ["--" + ".".join([*groups, last]), *map(str, value if isinstance(value, list) else [value])]
    return words


def label_of(settings: Mapping[str, Any]) -> str:
    """Settings in the name of a folder."""
    told = (f"-{name}={'x'.join(map(str, v)) if isinstance(v, list) else v}" for name, v in settings.items())
    return "".join(told).replace("/", "-")

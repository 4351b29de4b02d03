"""What is read from files, checked against the dataclasses that it is to become, in one place.

Files come from editors, other versions and other people. Whatever is wrong with one is a ConfigError of one line that
names the file, the option, what was got and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError

LARGEST_FILE = 1 << 20  # bytes; a configuration has a few thousand
LARGEST_TOML = 1 << 16  # tomllib's time grows with the square of what some files hold
DEEPEST = 50  # objects in objects; a configuration has two
INT64 = 2**63
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path (a text)"}


def shown(value: object) -> str:
    """A value for a message, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


# Files.


def read_bytes(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """A small file's content.

    Raises:
        ConfigError: it is larger than `largest`, or not a file.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():  # a named pipe would hang, a device might never end
        raise ConfigError(f"{path} is not a file; expected a text file")
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ConfigError(f"{path} has more than {largest >> 10} KiB; expected a configuration of some kilobytes")
    return content


def read_json(path: Path, lenient: bool = False, largest: int = LARGEST_FILE) -> dict[str, Any]:
    """The object in a JSON file; see `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, largest), str(path), lenient)


def parse_json(content: object, source: str, lenient: bool = False) -> dict[str, Any]:
    """The object that a JSON text holds.

    Args:
        content: text, or bytes in UTF-8.
        source: where it comes from, for messages.
        lenient: read NaN and Infinity, which Python writes but JSON does not have, as None instead of refusing them.

    Raises:
        ConfigError: it is not UTF-8, not JSON or not an object, names a key twice, or is nested too deep.
    """

    def constant(word: str) -> None:
        if not lenient:
            raise ConfigError(f"{source}: got {word}, which is not JSON; expected a finite number or null")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"{source}: the key {shown(twice)} is there twice; expected it once")
        return found

    if not isinstance(content, str | bytes):
        raise ConfigError(f"{source}: got {shown(content)}, expected a JSON text")
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=constant, object_pairs_hook=unique)
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not UTF-8 text (byte {error.start}); expected JSON") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deep; expected JSON of at most {DEEPEST} levels") from None
    except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
        raise ConfigError(f"{source} is not valid JSON ({error})") from None
    return _as_object(value, source)


def read_toml(path: Path) -> dict[str, Any]:
    """The table that a TOML file holds; ConfigError where it is none, OSError where it cannot be read."""
    content = read_bytes(path, LARGEST_TOML)
    try:
        text = content.decode("utf-8")
        if any(part.count(".") > 1000 for line in text.split("\n") for part in line.split("=")[:-1]):
            raise RecursionError  # a key of so many parts: a table in a table in a table
        value = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); expected a TOML file") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deep; expected TOML of at most {DEEPEST} levels") from None
    except ValueError as error:  # a TOMLDecodeError, a number of thousands of digits, or a date that there is not
        raise ConfigError(f"{path} is not valid TOML ({error})") from None
    return _as_object(value, str(path))


def _as_object(value: object, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{source} holds {shown(value)}, expected an object")
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [item for part in level if isinstance(part, dict | list) for item in children(part)]
    if level:
        raise ConfigError(f"{source} is nested too deep; expected at most {DEEPEST} levels")
    return value


def children(part: dict[str, Any] | list[Any]) -> Collection[Any]:
    return part.values() if isinstance(part, dict) else part


# Types.


def path_text(path: Path) -> str:
    """A path for a file: the same text whatever the locale is. Bytes that are not UTF-8 become lone surrogates."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def conform(value: object, hint: object, where: str) -> Any:
    """A value as JSON or TOML has it, as a value of the type that a hint names: lists become tuples, whole numbers
    floats where floats are expected, texts paths.

    Args:
        where: the file and the option, for the message.

    Raises:
        ConfigError: the value is not of that type. Numbers are finite, integers fit in 64 bits, texts hold no NUL.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return conform(value, arguments[0], where)
    if origin in (types.UnionType, typing.Union):
        members = [member for member in arguments if member is not type(None)]
        if value is None and len(members) < len(arguments):
            return None
        for member in members:
            try:
                return conform(value, member, where)
            except ConfigError as error:
                if len(members) == 1:
                    raise ConfigError(f"{error} or none") from None
        raise _refusal(where, value, expected_of(hint))
    if origin is typing.Literal:
        if any(type(value) is type(member) and value == member for member in arguments):
            return value
        raise _refusal(where, value, expected_of(hint))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _refusal(where, value, expected_of(hint))
        assert len(arguments) == 2 and arguments[1] is Ellipsis, f"{hint}: only tuples of any length are known here"
        return tuple(conform(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and not -INT64 <= value < INT64:
            raise _refusal(where, value, f"{KINDS[typing.cast(type, hint)]} of at most 64 bits")
        if not math.isfinite(value):
            raise _refusal(where, value, "a finite number")
        if hint is float:
            return float(value)
        if isinstance(value, int):
            return value
    if hint in (str, Path) and isinstance(value, str):
        try:
            bytes_of = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise _refusal(where, value, f"{KINDS[typing.cast(type, hint)]} in Unicode") from None
        if "\0" in value:
            raise _refusal(where, value, f"{KINDS[typing.cast(type, hint)]} without NUL")
        if hint is Path and not value:
            raise ConfigError(f"{where}: got an empty name, expected a path")
        return Path(os.fsdecode(bytes_of)) if hint is Path else value
    raise _refusal(where, value, expected_of(hint))


def expected_of(hint: object) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a list, each {expected_of(arguments[0])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join("none" if member is type(None) else expected_of(member) for member in arguments)
    return KINDS.get(typing.cast(type, hint), str(hint))


def _refusal(where: str, value: object, expected: str) -> ConfigError:
    got = "none" if value is None else f"the text {shown(value)}" if isinstance(value, str) else shown(value)
    return ConfigError(f"{where}: got {got}, expected {expected}")


def build(cls: type, data: object, source: str, whole: bool = True, prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass, nested ones built, from an object of a file.

    Args:
        whole: every field must be there, and no others. False: the fields that are there are returned.
        source: where the object comes from, for messages; "" where that is plain.

    Raises:
        ConfigError: an unknown or missing option, or a value of another type than its field's.
    """
    lead = f"{source}: " if source else ""
    if not isinstance(data, dict):
        name = prefix.removesuffix(".") or "the configuration"
        raise ConfigError(f"{lead}{name} is {shown(data)}, expected a group of options")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = [f"{prefix}{name}{_near(name, names)}" for name in data if name not in names]
    missing = [f"{prefix}{name}" for name in names if name not in data]
    if whole and (unknown or missing):
        told = [f"{what} option{'s' * (len(odd) > 1)}: {_listed(odd)}"
                for what, odd in (("unknown", unknown), ("missing", missing)) if odd]  # fmt: skip
        raise ConfigError(f"{lead}{'; '.join(told)}; was it written by another version, or edited?")
    values: dict[str, Any] = {}
    for name in names:
        if name not in data:
            continue
        if dataclasses.is_dataclass(hints[name]):
            group = typing.cast(type, hints[name])
            values[name] = group(**build(group, data[name], source, whole, f"{prefix}{name}."))
        else:
            values[name] = conform(data[name], hints[name], f"{lead}{prefix}{name}")
    return values


def _near(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:80], names, n=2)
    return f" (near matches: {', '.join(near)})" if near else ""


def _listed(names: list[str]) -> str:
    short = [name if len(name) <= 80 else f"{name[:60]}..." for name in names[:8]]
    return ascii(", ".join(short))[1:-1] + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# Ranges.


@dataclasses.dataclass(frozen=True)
class Range:
    """From `low` to `high`; a parenthesis in `ends` leaves that end out, as in [0, 1)."""

    low: float
    high: float
    ends: str = "[]"

    def holds(self, number: float) -> bool:
        above = number > self.low or (number == self.low and self.ends[0] == "[")
        below = number < self.high or (number == self.high and self.ends[1] == "]")
        return above and below

    def expected(self, number: float) -> str:
        """What a number outside should have been."""
        if not math.isfinite(number):
            return "a finite number"
        if number <= self.low:
            return f"{self.low:,} or more" if self.ends[0] == "[" else f"more than {self.low:,}"
        return f"{self.high:,} or less" if self.ends[1] == "]" else f"less than {self.high:,}"


LONGEST = 100  # entries of a list of numbers, such as widths


def numbers_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Names of all fields that hold numbers, also in lists and in nested groups: "bonus.k"."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from numbers_of(typing.cast(type, hint), f"{prefix}{name}.")
        elif {int, float} & set(_leaves(hint)):
            yield prefix + name


def _leaves(hint: object) -> list[object]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return []
    return [leaf for member in arguments for leaf in _leaves(member)] if arguments else [hint]


def check_ranges(config: Any, ranges: Mapping[str, Range]) -> None:
    """ConfigError where a number of a dataclass is not finite or outside its range. Every field that holds numbers
    needs one, so that a new option cannot be forgotten; None passes."""
    for name in numbers_of(type(config)):
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        numbers = value if isinstance(value, tuple | list) else () if value is None else (value,)
        if len(numbers) > LONGEST:
            raise ConfigError(f"{name}: got {len(numbers):,} numbers, expected at most {LONGEST}")
        for number in numbers:
            if not ranges[name].holds(number):
                raise ConfigError(f"{name}: got {shown(number)}, expected {ranges[name].expected(number)}")

"""Plain data checked against the dataclasses that it is to become, in one place.

Files come from editors, other versions and other people. Whatever is wrong with one is a ConfigError of one line that
names the file, the option, what was got and what was expected."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .plain import shown

INT64 = 2**63
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path (a text)"}


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

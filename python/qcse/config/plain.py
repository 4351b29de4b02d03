"""Plain data and files: JSON and TOML of unknown origin read as plain data, and plain data written as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..files import atomic_path

LARGEST_FILE = 1 << 20  # bytes; a configuration has a few thousand
LARGEST_TOML = 1 << 16  # tomllib's time grows with the square of what some files hold
DEEPEST = 50  # objects in objects; a configuration has two


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


def entries(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of all that nested objects hold, names joined by dots: "bonus.k"."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from entries(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def children(part: dict[str, Any] | list[Any]) -> Collection[Any]:
    return part.values() if isinstance(part, dict) else part


# Types.


def path_text(path: Path) -> str:
    """A path for a file: the same text whatever the locale is. Bytes that are not UTF-8 become lone surrogates."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which has no NaN and no infinity: they become null. Paths become text; numpy and torch scalars
    and arrays become numbers and lists.

    Raises:
        TypeError: something else is in it.
    """

    def plain(part: Any) -> Any:
        if part is None or isinstance(part, bool | int | str):
            return part
        if isinstance(part, float):
            return part if math.isfinite(part) else None
        if isinstance(part, Mapping):
            return {str(name): plain(item) for name, item in part.items()}
        if isinstance(part, list | tuple):
            return [plain(item) for item in part]
        if isinstance(part, os.PathLike):
            return path_text(Path(part))
        if isinstance(part, np.ndarray):
            return plain(part.tolist())
        if hasattr(part, "item"):
            return plain(part.item())
        raise TypeError(f"json_text: got a {type(part).__name__}, expected numbers, text, lists, dicts, None or paths")

    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write a value as `json_text` has it, indented, atomically; OSError where that fails."""
    text = json_text(value, indent=2) + "\n"
    with atomic_path(path) as temporary:
        # A lone surrogate, of a path whose bytes are not UTF-8, becomes the escape that JSON has for it.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def to_dict(config: object) -> dict[str, Any]:
    """A dataclass tree as JSON-ready nested dicts."""

    def plain(value: object) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Path):
            return path_text(value)
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return value

    made: dict[str, Any] = plain(config)
    return made

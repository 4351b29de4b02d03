"""What numbers may be: every option that is a number has a range, and one helper checks them all."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError
from .plain import shown


@dataclasses.dataclass(frozen=True)
class Range:
    """From `low` to `high`; a parenthesis in `ends` leaves that end out, as in [0, 1).

    `unit`: what they are numbers of.
    """

    low: float
    high: float
    ends: str = "[]"
    unit: str = "numbers"

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


GREATEST = 1e30  # of a float option: its square is still a float32
NUMBER = Range(-GREATEST, GREATEST)
NOT_NEGATIVE = Range(0, GREATEST)
POSITIVE = Range(1e-30, GREATEST)
STEPS = Range(0, 10**15)
COUNT = Range(1, 10**15)
WIDTH = Range(1, 1_000_000, unit="widths")
THREADS = Range(1, 1024)
SEED = Range(0, 2**32 - 1)
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


def check_least(options: Any, least: int, *names: str) -> None:
    """ConfigError where one of these fields is below a number, or not finite; None passes. For what a shared range
    allows and one command does not."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{name}: got {value}, expected {least} or more")


def check_ranges(config: Any, ranges: Mapping[str, Range]) -> None:
    """ConfigError where a number of a dataclass is not finite or outside its range. Every field that holds numbers
    needs one, so that a new option cannot be forgotten; None passes."""
    for name in numbers_of(type(config)):
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        numbers = value if isinstance(value, tuple | list) else () if value is None else (value,)
        if isinstance(value, tuple | list) and not numbers:
            raise ConfigError(f"{name}: got {value}, expected one or more {ranges[name].unit}")
        if len(numbers) > LONGEST:
            raise ConfigError(f"{name}: got {len(numbers):,} numbers, expected at most {LONGEST}")
        for number in numbers:
            if not ranges[name].holds(number):
                raise ConfigError(f"{name}: got {shown(number)}, expected {ranges[name].expected(number)}")

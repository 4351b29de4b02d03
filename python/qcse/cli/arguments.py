"""Parsing of options."""

from __future__ import annotations

from typing import Any, TypeVar

import tyro

from ..config.commands import RANGES
from ..config.ranges import check_ranges

Arguments = TypeVar("Arguments")


def parse(kind: type[Arguments], command: str, argv: list[str], default: Arguments | None = None) -> Arguments:
    """A command's options; ConfigError where a number is not finite or out of range."""
    given: dict[str, Any] = {} if default is None else {"default": default}
    args: Arguments = tyro.cli(kind, args=argv, prog=f"qcse {command}", **given)
    check_ranges(args, RANGES)
    return args

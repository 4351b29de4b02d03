"""`qcse status`: a table of runs, once or again and again."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

from ..config.commands import StatusArgs
from ..config.plain import json_text
from ..errors import printable
from ..runs.status import STATES, Overview, Row, overview
from .arguments import parse

COLUMNS = ("run", "state", "phase", "step", "of", "steps_per_second", "score", "return_mean", "time_left")
LEFT = ("run", "state", "phase")  # columns of words


def status(argv: list[str]) -> int:
    """Entry point of `qcse status`; returns the exit code."""
    args = parse(StatusArgs, "status", argv)
    redraw = args.watch is not None and not args.json and sys.stdout.isatty()
    try:
        while True:
            found = overview(args.folders)
            lines = [json_text(dataclasses.asdict(row)) for row in found.rows] if args.json else table(found)
            print(("\x1b[H\x1b[J" if redraw else "") + "\n".join(lines), flush=True)
            if args.watch is None or not found.active:
                return 0
            time.sleep(args.watch)
    except KeyboardInterrupt:
        if args.watch is None:
            raise
        return 0  # how one ends watching


def table(found: Overview) -> list[str]:
    """Lines with a row for each run, the last words of those that failed, and a summary. Empty columns are left out."""
    cells = [[_cell(row, name) for name in COLUMNS] for row in found.rows]
    titles = [name.replace("_", " ") for name in COLUMNS]
    used = [i for i in range(len(COLUMNS)) if any(row[i] for row in cells)]
    # The reason why a run cannot be read runs over the columns behind it, which are empty then.
    widths = [
        max([len(titles[i]), *(len(row[i]) for row in cells if not row[1].startswith("unreadable") or i == 0)])
        for i in range(len(COLUMNS))
    ]

    def line(row: Sequence[str]) -> str:
        aligned = (row[i].ljust(widths[i]) if COLUMNS[i] in LEFT else row[i].rjust(widths[i]) for i in used)
        return "  ".join(aligned).rstrip()

    errors = [f"{printable(row.run)}: {row.error}" for row in found.rows if row.error is not None]
    return [line(titles), *map(line, cells), *errors, _summary(found)]


def _cell(row: Row, name: str) -> str:
    value = getattr(row, name)
    if value is None:
        return ""
    if name == "time_left":
        return str(timedelta(seconds=round(value)))
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else printable(value)


def _summary(found: Overview) -> str:
    kinds = [row.kind for row in found.rows]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in STATES if kind in kinds)
    again = ", ".join(printable(str(folder)) for folder in found.resumable)
    return counts + (f"; {again}: the same qcse sweep command goes on" if again else "")

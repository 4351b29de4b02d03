"""Standard output and standard error that may be closed, full, or of an encoding that lacks what is printed."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

# Commands whose results are files: what they print may be lost, as when a terminal is closed, without harm.
WRITE_FILES = ("train", "sweep", "collect", "demo", "report")


class _Raw(io.FileIO):
    """A file descriptor; where it is `forgiving`, what cannot be written is dropped."""

    def __init__(self, number: int, name: str, forgiving: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.title, self.forgiving = name, forgiving

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if not self.forgiving:
                self.forgiving = True  # the error is told once, not again when Python ends
                raise OSError(error.errno, error.strerror, self.title) from None
            return memoryview(data).nbytes


def prepare(command: str | None) -> None:
    """Replace sys.stdout and sys.stderr by streams that print any text, and, for standard error always and for standard
    output where the command's results are files, go on where nobody reads or the disk is full. Those that were closed
    lead nowhere."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get this number, and what is printed with it
            os.set_inheritable(os.open(os.devnull, mode), True)
    for name, number, title in (("stdout", 1, "standard output"), ("stderr", 2, "standard error")):
        before = getattr(sys, name)  # None where it was closed
        forgiving = number == 2 or command in WRITE_FILES
        stream = io.TextIOWrapper(
            io.BufferedWriter(_Raw(number, title, forgiving)),
            before.encoding if before else "utf-8",
            "backslashreplace",
            line_buffering=bool(before and before.line_buffering),
            write_through=bool(before and before.write_through),
        )
        if before:
            before.flush()
        setattr(sys, name, stream)

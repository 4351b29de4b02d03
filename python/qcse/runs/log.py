"""What a run writes down: CSV files first, TensorBoard second, the machine's facts once for each part of the run.

Rows are plain dicts. After a stop the files may hold rows that are newer than the checkpoint; a resumed run cuts them,
so that every row is there once.
"""

from __future__ import annotations

import csv
import errno
import io
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from ..errors import QcseError
from ..files import atomic_path

_log = logging.getLogger(__name__)

EVAL_COLUMNS = ("step", "phase", "return_mean", "return_std", "normalized_score", "episode_length", "wall_seconds")
SUCCESS_COLUMNS = ("step", "phase", "success_rate")
SUCCESS_FILE = "success.csv"
KINDS = ("train", "eval")


class LogError(QcseError):
    """A run's log files cannot be continued."""


class Log(Protocol):
    """Anything that rows can be written to."""

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        """Keep a row of kind "train" or "eval"; `row["step"]` is its place on the time axis."""
        ...

    def close(self) -> None: ...


def _plain(value: Any) -> Any:
    """A Python scalar of a numpy or torch scalar."""
    return value.item() if hasattr(value, "item") else value


def _cell(value: Any) -> str:
    value = _plain(value)
    if value is None:
        return ""
    # repr is the shortest text that reads back as the same number.
    text = repr(value) if isinstance(value, float) else str(value)
    if "\n" in text or "\r" in text:
        raise ValueError(f"CsvLog: got the text {text!r}, expected one line: a row is a line")
    return text


def _line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _lines_of(content: bytes, path: Path) -> list[str]:
    """A CSV file's lines, with their ends; LogError where it is no text."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LogError(f"log: {path} is not UTF-8 text (byte {error.start}), so it is damaged; restore it") from None
    if "\0" in text:
        raise LogError(f"log: {path} holds a NUL, so it is damaged; restore it")
    return [line + "\n" for line in text.split("\n")[:-1]]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError that names no file, such as that of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


class CsvLog:
    """A CSV file that rows are appended to, each flushed as it is written.

    Args:
        path: the file. An existing one is continued; a last line that a kill left unfinished is cut.
        columns: its columns, in order. None: those of the existing file.

    Raises:
        LogError: the existing file has other columns, or is no CSV file.
        OSError: it cannot be read or written; so do all the methods that write, and the error names the file.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self.path = Path(path)
        existing = self.path.read_bytes() if self.path.exists() else b""
        whole = existing[: existing.rfind(b"\n") + 1]
        lines = _lines_of(whole, self.path)
        try:
            header = next(csv.reader(lines[:1]), None) or None
        except csv.Error as error:
            raise LogError(f"log: {self.path} has no header that can be read ({error}); restore the file") from None
        if header is None and columns is None:
            raise LogError(f"log: {self.path} has no header, so its columns are not known; delete it")
        if header is not None and columns is not None and list(columns) != header:
            raise LogError(f"log: {self.path} has the columns {header}, expected {list(columns)}; use another folder")
        if header is not None and (len(set(header)) < len(header) or not all(n and n.isprintable() for n in header)):
            raise LogError(f"log: {self.path} has the columns {header}, expected names that differ; restore the file")
        self.columns = tuple(header if header is not None else columns or ())
        self.rows = len(lines) - 1 if header else 0
        if header is None:
            self._replace([_line(self.columns)])
        elif existing != whole:
            self._replace(lines)
        self._file = open(self.path, "a", encoding="utf-8", newline="")

    def _replace(self, lines: Sequence[str]) -> None:
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", newline="")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row. A column that the row lacks stays empty; None is empty, too.

        Raises:
            ValueError: a name that is no column.
        """
        unknown = [name for name in row if name not in self.columns]
        if unknown:
            raise ValueError(f"CsvLog: {self.path} has no columns {unknown}; its columns are {list(self.columns)}")
        line = _line([_cell(row.get(name)) for name in self.columns])
        with _named(self.path):
            self._file.write(line)
            self._file.flush()
        self.rows += 1

    def _lines(self) -> list[str]:
        return _lines_of(self.path.read_bytes(), self.path)

    def truncate(self, rows: int) -> None:
        """Keep the first `rows` rows, atomically.

        Raises:
            LogError: the file has fewer.
        """
        if rows > self.rows:
            raise LogError(
                f"log: {self.path} has {self.rows} rows, the checkpoint says {rows}; restore the rows that were deleted"
            )
        if rows < self.rows:
            self._rewrite(self._lines()[: rows + 1])
            self.rows = rows

    def extend(self, columns: Sequence[str]) -> None:
        """Add columns behind the present ones; they are empty in the rows so far. Atomic."""
        added = tuple(name for name in columns if name not in self.columns)
        if added:
            self.columns += added
            tail = "," * len(added) + "\n"
            self._rewrite([_line(self.columns), *(line[:-1] + tail for line in self._lines()[1:])])

    def _rewrite(self, lines: Sequence[str]) -> None:
        self._file.close()
        self._replace(lines)
        self._file = open(self.path, "a", encoding="utf-8", newline="")

    def sync(self) -> None:
        """Make sure that every row has reached the disk."""
        with _named(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with _named(self.path):
            self._file.close()


TAIL = 1 << 16  # bytes; a row has about a thousand


def last_row(path: Path) -> dict[str, str] | None:
    """The last whole row of a CSV log that may be being written, read from its end; None where there is none yet.

    Raises:
        LogError: it is no CSV file, or the row does not fit the header.
        OSError: it cannot be read.
    """
    if not path.exists():
        return None
    if not path.is_file():  # a named pipe would hang
        raise LogError(f"log: {path} is not a file; expected a run's log")
    with open(path, "rb") as file:
        header = file.readline(TAIL)
        file.seek(max(len(header), os.fstat(file.fileno()).st_size - TAIL))
        end = file.read(TAIL)
    whole = end[: end.rfind(b"\n") + 1]  # what is left is still being written
    if not whole and len(end) < TAIL and (header == b"" or header.endswith(b"\n")):
        return None
    lines = [header, whole[:-1].rpartition(b"\n")[2]]
    try:
        table = list(csv.reader((line.decode("utf-8", "replace") for line in lines), strict=True))
    except csv.Error as error:
        raise LogError(f"log: {path} cannot be read as CSV ({error}), so it is damaged; restore it") from None
    if len(table) != 2 or len(table[0]) != len(table[1]):
        raise LogError(f"log: the last row of {path} does not fit its header, so it is damaged; restore it")
    return dict(zip(*table, strict=True))


class TensorBoardLog:
    """TensorBoard events in `directory`, one subfolder per kind; numbers only.

    Args:
        directory: made if missing.
        last_steps: kind -> the last step that is to be kept when a run is resumed; events after it are hidden. (One
            folder a kind, as TensorBoard hides per folder, and kinds are written at different steps.)

    Raises:
        ImportError: tensorboard is not installed. Whatever else fails in it, then or later, raises what it raises.
    """

    def __init__(self, directory: Path, last_steps: Mapping[str, int] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        _silence_tensorboard()
        self._writers = {
            kind: SummaryWriter(
                str(directory / kind), purge_step=None if last_steps is None else last_steps.get(kind, -1) + 1
            )
            for kind in KINDS
        }

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        writer, step = self._writers[kind], int(row["step"])
        for name, value in row.items():
            value = _plain(value)
            if name == "step" or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if not math.isnan(value):
                writer.add_scalar(name if "/" in name else f"{kind}/{name}", value, step)
        if kind == "eval":
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


@cache
def _silence_tensorboard() -> None:
    """No tracebacks from its threads: what ends them is raised at the next row, too."""
    others = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard"):
            others(args)

    threading.excepthook = hook


class RunLog:
    """The logs of one run folder: train.csv, eval.csv, success.csv and TensorBoard events.

    train.csv takes its columns from its first row, and new ones at its end where a later row brings them; eval.csv has
    EVAL_COLUMNS exactly. success.csv is there where evaluations have a success_rate, and has SUCCESS_COLUMNS.
    TensorBoard comes second: where it fails, at whatever time, a warning says so, and the CSV files go on.

    Args:
        directory: the run folder; made if missing.
        resume_rows: `state()` as the checkpoint kept it: newer rows are cut. None: a new run.
        tensorboard: write events as well, if tensorboard is installed.

    Raises:
        LogError: a new run in a folder that has logs, or a resumed one whose logs are shorter than its checkpoint says.
    """

    def __init__(self, directory: Path, resume_rows: Mapping[str, int] | None = None, tensorboard: bool = True) -> None:
        self.directory = Path(directory)
        self._train: CsvLog | None = None
        train, evaluation = self.directory / "train.csv", self.directory / "eval.csv"
        if resume_rows is None:
            for path in (train, evaluation):
                if path.exists():
                    raise LogError(f"log: {path} exists, expected a folder without a run; resume it or choose another")
        elif train.exists() and resume_rows["train_rows"] == 0:
            train.unlink()  # its columns are its first row's, which is yet to come
        elif train.exists() or resume_rows["train_rows"] > 0:
            self._train = self._continued(train, resume_rows["train_rows"])
        if resume_rows is not None and resume_rows["eval_rows"] > 0:
            self._eval = self._continued(evaluation, resume_rows["eval_rows"], EVAL_COLUMNS)
        else:
            self._eval = CsvLog(evaluation, EVAL_COLUMNS)
            self._eval.truncate(0)
        self._success: CsvLog | None = None
        kept = 0 if resume_rows is None else resume_rows.get("success_rows", 0)
        if kept > 0:
            self._success = self._continued(self.directory / SUCCESS_FILE, kept, SUCCESS_COLUMNS)
        else:
            (self.directory / SUCCESS_FILE).unlink(missing_ok=True)
        self._others: list[Log] = []
        if tensorboard:
            try:
                last_steps = (
                    None if resume_rows is None else {"train": _last_step(self._train), "eval": _last_step(self._eval)}
                )
                self._others.append(TensorBoardLog(self.directory / "tensorboard", last_steps))
            except Exception as error:
                self._warn("TensorBoardLog", error)

    def _warn(self, name: str, error: Exception) -> None:
        remedy = " (`pip install tensorboard`)" if isinstance(error, ImportError) else ""
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        _log.warning("%s: no more rows for %s, %s%s; the CSV files hold it all", self.directory, name, reason, remedy)

    @staticmethod
    def _continued(path: Path, rows: int, columns: Sequence[str] | None = None) -> CsvLog:
        if not path.exists():
            raise LogError(f"log: {path} is missing, the checkpoint says that it has {rows} rows; restore the file")
        log = CsvLog(path, columns)
        log.truncate(rows)
        return log

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        """Keep a row of kind "train" or "eval".

        Raises:
            ValueError: another kind, no step, or an eval row whose names are not EVAL_COLUMNS, and success_rate
                where the environment tells of success.
        """
        if kind not in KINDS or "step" not in row:
            raise ValueError(
                f"RunLog.write: got kind {kind!r} and names {list(row)}, expected kind train or eval and a step"
            )
        if kind == "eval":
            measured = {name: value for name, value in row.items() if name != "success_rate"}
            if set(measured) != set(EVAL_COLUMNS):
                raise ValueError(f"RunLog.write: an eval row has {list(row)}, expected {list(EVAL_COLUMNS)}")
            self._eval.append(measured)
            if "success_rate" in row:
                if self._success is None:
                    self._success = CsvLog(self.directory / SUCCESS_FILE, SUCCESS_COLUMNS)
                self._success.append({name: row[name] for name in SUCCESS_COLUMNS})
        else:
            if self._train is None:
                self._train = CsvLog(self.directory / "train.csv", tuple(row))
            self._train.extend(tuple(row))
            self._train.append(row)
        for other in list(self._others):
            try:
                other.write(kind, row)
            except Exception as error:  # a second copy of what the CSV files hold must not end the run
                self._others.remove(other)
                self._warn(type(other).__name__, error)

    def state(self) -> dict[str, int]:
        """Numbers of rows for the checkpoint, made sure to be on the disk before it is."""
        self._eval.sync()
        if self._train is not None:
            self._train.sync()
        if self._success is not None:
            self._success.sync()
        rows = {"train_rows": self._train.rows if self._train else 0, "eval_rows": self._eval.rows}
        return rows if self._success is None else rows | {"success_rows": self._success.rows}

    def close(self) -> None:
        for log in (self._eval, self._train, self._success):
            if log is not None:
                log.close()
        for other in self._others:
            try:
                other.close()
            except Exception as error:
                self._warn(type(other).__name__, error)


def _last_step(log: CsvLog | None) -> int:
    """The step of the last row, -1 where there is none."""
    if log is None or log.rows == 0:
        return -1
    with open(log.path, encoding="utf-8", newline="") as file:
        return max(int(row["step"]) for row in csv.DictReader(file))

"""What a run writes down: CSV files first, TensorBoard second, the machine's facts once.

Rows are plain dicts. After a stop the files may hold rows that are newer than the checkpoint; a resumed run cuts them,
so that every row is there once.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .errors import QcseError
from .files import atomic_path

_log = logging.getLogger(__name__)

EVAL_COLUMNS = ("step", "phase", "return_mean", "return_std", "normalized_score", "episode_length", "wall_seconds")
SUCCESS_COLUMNS = ("step", "phase", "success_rate")
SUCCESS_FILE = "success.csv"
KINDS = ("train", "eval")


class LogError(QcseError):
    """A run's log files cannot be written or continued."""


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


class CsvLog:
    """A CSV file that rows are appended to, each flushed as it is written.

    Args:
        path: the file. An existing one is continued; a last line that a kill left unfinished is cut.
        columns: its columns, in order. None: those of the existing file.

    Raises:
        LogError: the existing file has other columns, or cannot be opened.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self.path = Path(path)
        try:
            existing = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            lines = [line for line in existing.splitlines(keepends=True) if line.endswith("\n")]
            header = next(csv.reader(lines[:1]), None)
            if header is None and columns is None:
                raise LogError(f"log: {self.path} has no header, so its columns are not known; delete it")
            if header is not None and columns is not None and list(columns) != header:
                raise LogError(
                    f"log: {self.path} has the columns {header}, expected {list(columns)}; use another folder"
                )
            self.columns = tuple(header if header is not None else columns or ())
            self.rows = max(0, len(lines) - 1)
            if header is None:
                self._replace([_line(self.columns)])
            elif existing != "".join(lines):
                self._replace(lines)
            self._file = open(self.path, "a", encoding="utf-8", newline="")
        except OSError as error:
            raise LogError(f"log: {self.path} cannot be written ({error}); choose another folder") from error

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
        self._file.write(_line([_cell(row.get(name)) for name in self.columns]))
        self._file.flush()
        self.rows += 1

    def _lines(self) -> list[str]:
        self._file.flush()
        return self.path.read_text(encoding="utf-8").splitlines(keepends=True)

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
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorBoardLog:
    """TensorBoard events in `directory`, one subfolder per kind; numbers only.

    Args:
        directory: made if missing.
        last_steps: kind -> the last step that is to be kept when a run is resumed; events after it are hidden. (One
            folder a kind, as TensorBoard hides per folder, and kinds are written at different steps.)

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, directory: Path, last_steps: Mapping[str, int] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

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


class RunLog:
    """The logs of one run folder: train.csv, eval.csv, success.csv and TensorBoard events.

    train.csv takes its columns from its first row, and new ones at its end where a later row brings them; eval.csv has
    EVAL_COLUMNS exactly. success.csv is there where evaluations have a success_rate, and has SUCCESS_COLUMNS.

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
            last_steps = (
                None if resume_rows is None else {"train": _last_step(self._train), "eval": _last_step(self._eval)}
            )
            try:
                self._others.append(TensorBoardLog(self.directory / "tensorboard", last_steps))
            except ImportError as error:
                _log.warning("no TensorBoard events: %s (`pip install tensorboard`); the CSV files hold it all", error)

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
        for log in self._others:
            log.write(kind, row)

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
            other.close()


def _last_step(log: CsvLog | None) -> int:
    """The step of the last row, -1 where there is none."""
    if log is None or log.rows == 0:
        return -1
    with open(log.path, encoding="utf-8", newline="") as file:
        return max(int(row["step"]) for row in csv.DictReader(file))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. Paths become text; numpy and torch scalars become numbers."""

    def convert(odd: Any) -> Any:
        if isinstance(odd, os.PathLike):
            return str(odd)
        if isinstance(odd, np.ndarray):
            return odd.tolist()
        if hasattr(odd, "item"):
            return odd.item()
        raise TypeError(f"write_json: got a {type(odd).__name__}, expected numbers, text, lists, dicts, None or paths")

    text = json.dumps(value, indent=2, default=convert, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def machine_facts() -> dict[str, Any]:
    """Hardware, versions and commit: what someone needs to know to judge or repeat a number. None: not known."""
    import torch

    gpus = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # the widest vectors: many processors share a name
        "cores": os.cpu_count(),
        "usable_cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": gpus,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "numpy": _version("numpy"),
        "gymnasium": _version("gymnasium"),
        "mujoco": _version("mujoco"),
        "qcse": _qcse_version(),
        "commit": _commit(Path(__file__).resolve().parent),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _qcse_version() -> str:
    from . import __version__

    return __version__


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None


def _commit(folder: Path) -> str | None:
    """Commit of the checkout that this package lies in, "+changes" added where tracked files differ from it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):  # no git, no checkout
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    # A virtual environment may lie in some other project's checkout, whose commit says nothing of this package.
    if not top or not (Path(top) / "python" / "qcse" / "log.py").is_file():
        return None
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit

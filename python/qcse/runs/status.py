"""`qcse status`: in which state the runs in a folder are. It reads, and changes nothing; torch is not imported."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import RANGES
from ..config.plain import read_json, shown
from ..config.ranges import check_ranges
from ..config.typed import build
from ..errors import ConfigError, QcseError, printable
from ..files import owner_of
from .layout import log_of, seed_folders
from .log import LogError, last_row

PLAN, SWEEP = "plan.json", "sweep.json"  # in a sweep's folder
STATES = ("running", "complete", "stopped", "failed", "waiting", "unreadable")
GREATEST = 1e100  # of a number in a log that means anything
LONGEST_WAIT = 1e9  # seconds; a time left beyond that says nothing
LOG_TAIL = 1 << 14  # bytes of what a process said that are looked at

# Where a process's output tells of an error, and where, behind that, it tells that a later one got on.
_ERROR = re.compile(r"qcse train: (?!interrupted)|Traceback \(most recent call last\):")
_NO_ERROR = re.compile(
    r"qcse train: interrupted|step +\d+ |stopped at step |run complete: |.* is complete \(\d+ steps\)"
)


@dataclass
class Row:
    """One run, or one group of seeds that are trained together, as it is now. None: not known, or there is none."""

    run: str
    state: str  # one of STATES; "waiting for NAME" and "unreadable: REASON" say more
    phase: str | None = None  # of the step that was logged last
    step: int | None = None  # that all seeds have logged; of a run that waits, where it will begin
    of: int | None = None
    steps_per_second: float | None = None
    score: float | None = None  # the latest normalised score, the seeds' mean
    return_mean: float | None = None  # the latest return, where there is no reference for a score
    time_left: float | None = None  # seconds, of a run that runs, at the speed that it has
    owner: str | None = None  # who runs it
    error: str | None = None  # with which it failed

    @property
    def kind(self) -> str:
        """The state's first word, one of STATES."""
        return re.split("[ :]", self.state)[0]


@dataclass
class Overview:
    """The state of all runs in some folders.

    Attributes:
        rows: sorted by path.
        resumable: folders of sweeps that nobody runs and that are not complete.
        active: whether something runs, or waits for its turn.
    """

    rows: list[Row] = field(default_factory=list)
    resumable: list[Path] = field(default_factory=list)
    active: bool = False


@dataclass
class _Steps:
    """What of a run's configuration counts here, so that runs of other versions of qcse are understood, too."""

    offline_steps: int
    online_steps: int
    seed: int = 0
    seeds: int = 1


@dataclass
class _Planned:
    """A run in a sweep's plan: where it begins and ends, and which run it starts from."""

    first: int
    last: int
    after: str | None


def overview(folders: Sequence[Path]) -> Overview:
    """Look at all runs in these folders, at any depth; links to folders are not followed.

    Raises:
        QcseError: one of them does not exist, or holds no run.
    """
    rows: dict[Path, Row] = {}
    found = Overview()
    for top in folders:
        here, sweeps = _look(top)
        if not here:
            raise QcseError(
                f"folders: {top} holds no run (no config.json at any depth); expected the --out of a `qcse train` or "
                "`qcse sweep`, or a folder that holds some; name it: qcse status FOLDER"
            )
        for path, row in here.items():
            row.run = str(path if len(folders) > 1 or path == top else path.relative_to(top))
            rows.setdefault(path.resolve(), row)
        for sweep in sweeps:
            kinds = {row.kind for path, row in here.items() if sweep in path.parents}
            owned = _owned(sweep)
            found.active |= owned  # between two runs, for example
            if not owned and "running" not in kinds and kinds - {"complete"} and sweep not in found.resumable:
                found.resumable.append(sweep)
    found.rows = [rows[path] for path in sorted(rows)]
    found.active |= any(row.kind in ("running", "waiting") for row in found.rows)
    return found


def _look(top: Path) -> tuple[dict[Path, Row], list[Path]]:
    """The runs in a folder, and the folders of sweeps."""
    if not top.is_dir():
        what = "is not a folder" if top.exists() else "does not exist"
        raise QcseError(f"folders: {top} {what}; expected a folder that holds runs; name it: qcse status FOLDER")
    rows: dict[Path, Row] = {}
    sweeps, plans, pending = list[Path](), list[Path](), [top]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                inner = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except FileNotFoundError:  # it has just been removed
            continue
        except OSError as error:
            rows[folder] = _unreadable(error, folder)
            continue
        seeds: set[Path] = set()
        if "config.json" in inner:
            rows[folder], seeds = _run(folder, inner)
        if PLAN in inner:
            plans.append(folder)
        if SWEEP in inner:
            sweeps.append(folder)
        pending += [folder / name for name, is_folder in inner.items() if is_folder and folder / name not in seeds]
    for folder in plans:
        try:
            plan = _plan(folder / PLAN)
        except (QcseError, OSError) as error:
            rows[folder / PLAN] = _unreadable(error, folder)
        else:
            for name, planned in plan.items():
                if folder / name not in rows:
                    rows[folder / name] = _not_begun(folder, name, planned, rows)
                elif (row := rows[folder / name]).of is not None and row.of < planned.last:  # it is to be extended
                    row.of, row.time_left = planned.last, None
                    row.state = "waiting" if row.state == "complete" else row.state
    return rows, sweeps


def _unreadable(error: Exception, folder: Path) -> Row:
    """A row that says why there is nothing else in it; files of the folder are named without it."""
    message = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    reason = message.removeprefix("log: ").replace(f"{folder}{os.sep}", "")
    return Row("", f"unreadable: {printable(reason)[:300]}")


def _owned(folder: Path) -> bool:
    try:
        return owner_of(folder) is not None
    except OSError:
        return False


# What has begun.


def _run(folder: Path, inner: Iterable[str]) -> tuple[Row, set[Path]]:
    """A run folder's row, and the folders of its seeds, which have none.

    Args:
        inner: names of what is in it.
    """
    seeds = {folder / name for name in inner if re.fullmatch(r"seed\d+", name)}
    try:
        owner = owner_of(folder)  # before the logs: they have got all rows of a run that was seen to have ended
        config = _config(folder / "config.json")
        folders = seed_folders(folder, range(config.seed, config.seed + config.seeds))
        seeds = set(folders) - {folder}
        row = _progress(folders, config)
        if owner is not None:
            row.state, row.owner = "running", owner
        elif row.state != "complete":
            row.time_left, row.error = None, _error(folder)
            row.state = "stopped" if row.error is None else "failed"
    except (QcseError, OSError) as error:
        row = _unreadable(error, folder)
    return row, seeds


def _config(path: Path) -> _Steps:
    data = read_json(path)
    values = build(_Steps, data, str(path), whole=False)
    missing = [name for name in ("offline_steps", "online_steps") if name not in values]
    if missing:
        raise ConfigError(f"{path} has no {', '.join(missing)}; expected one by `qcse train`")
    config = _Steps(**values)
    try:
        check_ranges(config, RANGES)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def _progress(folders: Sequence[Path], config: _Steps) -> Row:
    """What the logs of a run's seeds tell; its state is "complete", or "" where that is not for them to say."""
    train = [_numbers(folder / "train.csv", "steps_per_second") for folder in folders]
    evaluations = [_numbers(folder / "eval.csv", "normalized_score", "return_mean") for folder in folders]
    total = config.offline_steps + config.online_steps
    step = min(max(_step(a), _step(b)) for a, b in zip(train, evaluations, strict=True))
    complete = min(map(_step, evaluations)) >= total  # the last row of train.csv comes before the last evaluation
    row = Row("", "complete" if complete else "", of=total)
    if step >= 0:
        row.step = step
        row.phase = "offline" if step <= config.offline_steps and config.offline_steps > 0 else "online"
    speeds = [speed for logged in train if logged is not None and (speed := logged["steps_per_second"]) > 0]
    if speeds:
        row.steps_per_second = speeds[0]  # that of all seeds
        left = (total - step) / speeds[0]
        row.time_left = left if not complete and step >= 0 and left < LONGEST_WAIT else None
    latest = [evaluation for evaluation in evaluations if evaluation is not None]
    row.score = _mean([evaluation["normalized_score"] for evaluation in latest])
    if row.score is None:
        row.return_mean = _mean([evaluation["return_mean"] for evaluation in latest])
    return row


def _numbers(path: Path, *names: str) -> dict[str, float] | None:
    """The step and other numbers of a log's last row; NaN where a cell is empty, infinite or absurd."""
    row = last_row(path)
    if row is None:
        return None
    numbers = {}
    for name in ("step", *names):
        if name not in row:
            raise LogError(f"log: {path} has no column {name}; was it edited?")
        try:
            number = float(row[name] or "nan")
        except ValueError:
            raise LogError(f"log: {path}: {name}: got {shown(row[name])}, expected a number; restore it") from None
        numbers[name] = number if abs(number) < GREATEST else math.nan
    if not (numbers["step"].is_integer() and RANGES["online_steps"].holds(numbers["step"])):
        raise LogError(f"log: {path}: step: got {shown(row['step'])}, expected a whole number; restore it")
    return numbers


def _step(numbers: Mapping[str, float] | None) -> int:
    """-1 where there is no row."""
    return -1 if numbers is None else int(numbers["step"])


def _mean(numbers: Sequence[float]) -> float | None:
    mean = sum(numbers) / len(numbers) if numbers else math.nan
    return mean if math.isfinite(mean) else None


def _error(folder: Path) -> str | None:
    """The last line of what a run's processes said, where an error ended the last of them."""
    path, failed, line = log_of(folder), False, ""
    if not path.is_file():  # a named pipe would hang
        return None
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
        text = file.read(LOG_TAIL).decode("utf-8", "replace")
    for line in filter(None, map(str.rstrip, text.splitlines())):
        failed = bool(_ERROR.match(line)) or (failed and not _NO_ERROR.match(line))
    return printable(line)[:500] if failed else None


# What is planned.


def _plan(path: Path) -> dict[str, _Planned]:
    """The runs that a sweep is to train; a name is a run folder's, seen from the sweep's."""
    runs = read_json(path).get("runs")
    if not isinstance(runs, dict):
        raise ConfigError(f"{path}: runs: got {shown(runs)}, expected an object; delete the file")
    plan = {}
    for name, entry in runs.items():
        parts = Path(name).parts
        if not parts or "\0" in name or ".." in parts or Path(name).is_absolute():
            raise ConfigError(f"{path}: got the run {shown(name)}, expected a folder's name; delete the file")
        values = build(_Planned, entry, f"{path}: {shown(name)}")
        for step in ("first", "last"):
            if not RANGES["online_steps"].holds(values[step]):
                expected = RANGES["online_steps"].expected(values[step])
                raise ConfigError(f"{path}: {step}: got {values[step]}, expected {expected}")
        plan[name] = _Planned(**values)
    return plan


def _not_begun(sweep: Path, name: str, planned: _Planned, rows: Mapping[Path, Row]) -> Row:
    """The row of a run that is planned and has no run folder yet.

    Args:
        rows: of the runs that have begun.
    """
    folder = sweep / name
    row = Row("", "waiting", step=planned.first, of=planned.last)
    try:
        row.owner = owner_of(folder)  # one that begins
        row.error = None if row.owner else _error(folder)
    except OSError as error:
        return _unreadable(error, folder)
    if row.owner is not None:
        row.state = "running"
    elif row.error is not None:
        row.state = "failed"
    elif planned.after is not None:
        before = rows.get(sweep / planned.after)
        if before is None or before.state != "complete":
            row.state = f"waiting for {printable(planned.after)}"
    return row

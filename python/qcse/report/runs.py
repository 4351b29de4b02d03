"""Finished and unfinished runs as a report sees them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import RANGES, TrainConfig
from ..config.options import ADDED
from ..config.plain import entries, read_json, shown
from ..config.typed import build
from ..envs.scores import REFERENCE_SCORES, task_family
from ..errors import QcseError
from ..runs.checkpoint import run_of
from ..runs.machine import read_machine_facts
from .stats import steps_to

# Okabe and Ito's colours, which stay apart for colour-blind readers; grey is left to what has no bonus.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#8C564B")
BASELINE_COLOUR = "#6B7280"

# Options in which runs may differ and still be repetitions of one experiment.
REPETITION = frozenset({
    "seed", "out", "init_from", "device", "threads", "checkpoint_seconds", "keep_checkpoints", "log_every",
})  # fmt: skip


# Columns of train.csv that are shown, with their titles.
DIAGNOSTICS = {
    "bonus/mean": "mean of the bonus",
    "bonus/std": "spread of the bonus",
    "bonus/novelty": "before the squash (qcse: entropy h(s | Q))",
    "bonus/saturated": "share of saturated bonuses",
    "bonus/zero_radius": "share of zero radii",
    "bonus/neighbour_share": "mean count / N (1: Q conditions nothing)",
}
LOSSES = {
    "loss/critic": "critics' loss",
    "loss/bellman": "squared Bellman error",
    "q/data": "Q of the data's actions",
    "loss/policy": "policy's loss",
    "cql/gap": "conservative gap",
    "policy/entropy": "policy's entropy",
}


class ReportError(QcseError):
    """A folder cannot be reported on, or the report cannot be written."""


@dataclass(eq=False)
class Run:
    """One run folder, read.

    `steps`, `values`, `spread` and `online` are [T], one entry per evaluation: step (updates offline, then environment
    steps on top of them), mean and standard deviation over the episodes, and whether it belongs to the online phase.
    `values` and `spread` are normalised scores where `unit` says so, returns otherwise.
    """

    path: Path
    config: dict[str, Any]  # flat: "bonus.kind"
    machine: dict[str, Any]
    unit: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    spread: NDArray[np.float64]
    online: NDArray[np.bool_]
    wall_seconds: float  # NaN where it is not known
    train: dict[str, NDArray[np.float64]]
    notes: list[str] = field(default_factory=list)  # what could not be read

    @property
    def env(self) -> str:
        return str(self.config["env"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def offline_steps(self) -> int:
        return int(self.config["offline_steps"])

    @property
    def total_steps(self) -> int:
        return self.offline_steps + int(self.config["online_steps"])

    @property
    def finished(self) -> bool:
        return int(self.steps[-1]) >= self.total_steps

    @property
    def offline_end(self) -> float:
        """Value at the end of the offline phase, NaN where there was none."""
        offline = self.values[~self.online]
        return float(offline[-1]) if len(offline) else math.nan

    @property
    def last(self) -> float:
        return float(self.values[-1])

    @property
    def best(self) -> float:
        """Best evaluation of the online phase, or of all where nothing was online."""
        return float((self.values[self.online] if self.online.any() else self.values).max())

    @property
    def area(self) -> float:
        """Area under the online curve over its length: the mean value while learning online (trapezoid rule).

        The curve starts at the end of the offline phase. NaN where it has fewer than two points.
        """
        first = int(np.argmax(self.online)) if self.online.any() else len(self.steps)
        start = max(0, first - 1)
        steps, values = self.steps[start:].astype(np.float64), self.values[start:]
        if first == len(self.steps) or len(steps) < 2:
            return math.nan
        return float(((values[1:] + values[:-1]) / 2.0 * np.diff(steps)).sum() / (steps[-1] - steps[0]))

    def online_steps_to(self, threshold: float) -> float:
        """Online steps until the value reaches the threshold: 0 at the end of the offline phase, infinity: never."""
        curve = self.steps >= self.offline_steps
        return steps_to(self.steps[curve] - self.offline_steps, self.values[curve], threshold)

    @property
    def last_error(self) -> float:
        """Standard error of `last` over the episodes of its evaluation, NaN where their number is not known."""
        return float(self.errors[-1])

    @property
    def errors(self) -> NDArray[np.float64]:
        """Standard error of each evaluation, [T]."""
        episodes = self.config.get("eval_episodes")
        return (
            self.spread / math.sqrt(episodes) if isinstance(episodes, int) and episodes > 1 else self.spread * math.nan
        )


@dataclass(eq=False)
class Group:
    """Runs of one experiment that differ in nothing but seed and machine."""

    label: str
    colour: str
    runs: list[Run]

    @property
    def env(self) -> str:
        return self.runs[0].env

    def shared(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps [T] at which every run was evaluated, and the values there [runs, T]."""
        steps = self.runs[0].steps
        for run in self.runs[1:]:
            steps = np.intersect1d(steps, run.steps)
        return steps, np.stack([run.values[np.searchsorted(run.steps, steps)] for run in self.runs])


def read_run(path: Path) -> Run:
    """Read a run folder: config.json and eval.csv must be there, train.csv and machine.json may be.

    The run may be under way: a row that is not whole, or holds something else than numbers, is left out, and so are
    machine.json and train.csv where they cannot be read; the run's notes say so.

    Raises:
        ReportError: the folder is not a run, or holds no evaluation yet; it is named.
    """
    path = Path(path)
    if not (path / "config.json").is_file() or not (path / "eval.csv").is_file():
        missing = "config.json" if not (path / "config.json").is_file() else "eval.csv"
        what = f"it has no {missing}" if path.is_dir() else "there is no such folder"
        raise ReportError(f"report: {path} is not a run folder: {what}; expected one made by `qcse train`")
    config = _read_config(path / "config.json")
    names = ("return_mean", "return_std", "normalized_score", "wall_seconds")
    rows, left_out = _read_rows(path / "eval.csv", ("step", *names), phase=True)
    notes = [f"{path.name}: {left_out} of the rows of eval.csv cannot be read and are left out."] if left_out else []
    # Sorted and unique: a curve is a function of the step.
    by_step = {row["step"]: row for row in rows if math.isfinite(row["return_mean"])}
    if len(by_step) < len({row["step"] for row in rows}):
        notes.append(f"{path.name}: evaluations whose return is not finite are left out.")
    if not by_step:
        which = "no evaluation that can be read" if left_out or rows else "no evaluation yet"
        raise ReportError(f"report: {path} holds {which}; let the run go on (`qcse train --resume {path}`)")
    machine: dict[str, Any] = {}
    try:
        if (path / "machine.json").is_file():
            machine = read_machine_facts(path / "machine.json")
    except (QcseError, OSError) as error:
        notes.append(f"Left out: {error if isinstance(error, QcseError) else _told(error, path)}")
    wall_before = 0.0
    try:
        wall_before = _prepend(by_step, config, machine, names)
    except ReportError as error:
        notes.append(f"Left out: {str(error).removeprefix('report: ')}")
    steps = sorted(by_step)
    columns = {name: np.array([by_step[step][name] for step in steps]) for name in names}
    reference = REFERENCE_SCORES.get(task_family(str(config["env"])))
    values, spread, unit = columns["return_mean"], columns["return_std"], "return"
    if reference is not None and np.isfinite(columns["normalized_score"]).all():
        values, unit = columns["normalized_score"], "normalised score"
        spread = spread * 100.0 / (reference[1] - reference[0])
    train: dict[str, NDArray[np.float64]] = {}
    try:
        if (path / "train.csv").is_file():
            table, left_out = _read_rows(path / "train.csv", ("step",), (*DIAGNOSTICS, *LOSSES))
            train = {name: np.array([row[name] for row in table], np.float64) for name in (table[0] if table else ())}
            if left_out:
                notes.append(f"{path.name}: {left_out} of the rows of train.csv cannot be read and are left out.")
    except ReportError as error:
        notes.append(f"Left out: {str(error).removeprefix('report: ')}")
    return Run(
        path=path,
        config=config,
        machine=machine,
        unit=unit,
        steps=np.array(steps, np.int64),
        values=values,
        spread=spread,
        online=np.array([by_step[step]["online"] for step in steps], np.bool_),
        wall_seconds=float(columns["wall_seconds"][-1]) + wall_before,
        train=train,
        notes=notes,
    )


def _prepend(
    by_step: dict[int, dict[str, Any]], config: Mapping[str, Any], machine: Mapping[str, Any], names: Sequence[str]
) -> float:
    """Put the evaluations of a run's pre-training before its own, where another run did it for this seed and its folder
    is there; returns how long that took, in seconds."""
    facts, source = machine.get("init_from"), config.get("init_from")
    seeds = facts.get("seeds") if isinstance(facts, dict) else None
    if not isinstance(source, str) or not isinstance(seeds, list) or config["seed"] not in seeds:
        return 0.0
    folder, first = run_of(Path(source)), min(by_step)
    for path in (folder / f"seed{config['seed']}" / "eval.csv", folder / "eval.csv"):
        if path.is_file():
            rows, _ = _read_rows(path, ("step", *names), phase=True)
            by_step |= {row["step"]: row | {"online": False} for row in rows
                        if row["step"] < first and math.isfinite(row["return_mean"])}  # fmt: skip
            return next((float(row["wall_seconds"]) for row in rows if row["step"] == first), 0.0)
    return 0.0


LARGEST, MOST_ROWS = 256 << 20, 500_000  # of a CSV file; a long run has some ten thousand rows
NEEDED = ("algo", "env", "bonus.kind", "seed", "offline_steps", "online_steps")


def _read_config(path: Path) -> dict[str, Any]:
    """Options by their full names. Those that this version knows are of its types; others may be there, and most of its
    own may be missing, as the run may be another version's."""
    try:
        data = read_json(path)
        build(TrainConfig, data, str(path), whole=False)
    except (QcseError, OSError) as error:
        raise ReportError(f"report: {error if isinstance(error, QcseError) else _told(error, path)}") from error
    config = dict(entries(ADDED | data))
    missing = [name for name in NEEDED if not isinstance(config.get(name), str | int)]
    if missing:
        raise ReportError(f"report: {path} has no {', '.join(missing)}; expected one by `qcse train`")
    for name in NEEDED[3:]:
        if not RANGES[name].holds(config[name]):
            expected = RANGES[name].expected(config[name])
            raise ReportError(f"report: {path}: {name}: got {shown(config[name])}, expected {expected}")
    return {name: _printable(value) if isinstance(value, str) else value for name, value in config.items()}


def _told(error: OSError, path: Path) -> str:
    return f"{path}: {error.strerror or error}"


def _printable(text: str) -> str:
    """Text from a file as it can be printed and drawn; a name is not long."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def _read_rows(
    path: Path, needed: Sequence[str], others: Sequence[str] = (), phase: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """Rows of a CSV file as numbers, and the number of those that cannot be read: cells are missing or no numbers, or
    the last line is still being written.

    Args:
        needed: columns that must be there. "step" is a whole number, others are floats; NaN where a cell is empty.
        others: columns that may be there.
        phase: read the column of this name as well: row["online"] is whether it says so.

    Raises:
        ReportError: the file cannot be read, or lacks a column.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ReportError(f"report: {_told(error, path)}") from error
    if len(content) > LARGEST or content.count(b"\n") > MOST_ROWS:
        raise ReportError(
            f"report: {path} has more than {MOST_ROWS:,} rows or {LARGEST >> 20} MiB; expected a run's log"
        )
    first, *lines = content.split(b"\n")[:-1] or [b""]
    header = _cells(first)
    place = {name: header.index(name) for name in (*needed, *others, *(("phase",) if phase else ())) if name in header}
    missing = [name for name in (*needed, *(("phase",) if phase else ())) if name not in place]
    if missing and (first or lines):
        raise ReportError(f"report: {path} has no columns {', '.join(missing)}; was it edited?")
    rows: list[dict[str, Any]] = []
    left_out = int(not content.endswith(b"\n") and content != b"")
    for cells in map(_cells, filter(None, lines)):
        try:
            if len(cells) != len(header):
                raise ValueError("cells are missing")
            numbers = place.keys() - {"step", "phase"}
            row: dict[str, Any] = {name: _number(cells[place[name]]) for name in numbers}
            row["step"] = int(cells[place["step"]])
            if not RANGES["online_steps"].holds(row["step"]):
                raise ValueError("not a step")
            if phase:
                row["online"] = ("offline", "online").index(cells[place["phase"]]) == 1
        except ValueError:
            left_out += 1
        else:
            rows.append(row)
    return rows, left_out


def _cells(line: bytes) -> list[str]:
    """What a line of a CSV file holds; nothing where it is damaged. (A row is a line, whatever it quotes.)"""
    try:
        return next(csv.reader([line.decode("utf-8")]), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _number(text: str) -> float:
    """A cell's number; NaN where it is empty, infinite or too large to be drawn."""
    number = float(text) if text != "" else math.nan
    return number if abs(number) < 1e100 else math.nan


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs by environment, algorithm and bonus, and by every other option in which they differ but for the seed.

    Where one method was run with several settings, each label names those that differ: averages never mix them.
    """
    methods: dict[tuple[str, str, str], dict[str, list[Run]]] = {}
    for run in runs:
        method = (run.env, str(run.config["algo"]), str(run.config["bonus.kind"]))
        methods.setdefault(method, {}).setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    labelled: list[tuple[str, bool, list[Run]]] = []
    for (_, algo, bonus), variants in sorted(
        methods.items(), key=lambda item: (item[0][:2], item[0][2] != "none", item[0])
    ):
        settings = [_settings(members[0]) for members in variants.values()]
        names = sorted({name for s in settings for name in s})
        differing = [name for name in names if len({json.dumps(s.get(name)) for s in settings}) > 1]
        for members, setting in zip(variants.values(), settings, strict=True):
            label = algo if bonus == "none" else f"{algo} + {bonus}"
            if differing:
                told = ", ".join(_printable(f"{name}={setting.get(name)}") for name in differing)
                label += f" ({told if len(told) <= 300 else told[:300] + '...'})"
            labelled.append((label, bonus == "none", sorted(members, key=lambda run: run.seed)))
    # A label has one colour in every picture; the first one without a bonus is the grey baseline.
    colours: dict[str, str] = {}
    for label, plain, _ in labelled:
        if label not in colours:
            grey = plain and BASELINE_COLOUR not in colours.values()
            coloured = sum(colour != BASELINE_COLOUR for colour in colours.values())
            colours[label] = BASELINE_COLOUR if grey else COLOURS[coloured % len(COLOURS)]
    return [Group(label, colours[label], members) for label, _, members in labelled]


def _source(run: Run) -> dict[str, Any]:
    """What a run that has another one's networks says of them."""
    found = run.machine.get("init_from")
    return found if isinstance(found, dict) else {}


def borrowed(run: Run) -> bool:
    """Whether a run began with networks that were pre-trained for another seed."""
    seeds = _source(run).get("seeds")
    return isinstance(seeds, list) and run.seed not in seeds


def _settings(run: Run) -> dict[str, Any]:
    """The options that make the experiment. A dataset counts by its file's name, wherever it lies."""
    kept = {name: value for name, value in run.config.items() if name not in REPETITION}
    if kept.get("dataset"):
        kept["dataset"] = Path(str(kept["dataset"])).name
    if isinstance(otherwise := _source(run).get("otherwise"), dict):  # what was pre-trained otherwise
        kept |= {f"init_from.{name}": value for name, value in otherwise.items()}
    if run.config["bonus.kind"] == "none":  # options of a bonus that is not there
        kept = {name: value for name, value in kept.items() if not name.startswith("bonus.")}
    return kept

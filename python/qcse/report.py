"""Compare runs: a table, learning curves with intervals, the bonus's diagnostics, and one page that holds it all."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from .config import RANGES, TrainConfig
from .datasets import REFERENCE_SCORES, task_family
from .errors import QcseError
from .files import atomic_path, own
from .log import read_machine_facts
from .stats import improvement_interval, interquartile_mean, probability_of_improvement, steps_to
from .typed import build, read_json, shown
from .visits import Visits, draw_visits, read_visits

# Okabe and Ito's colours, which stay apart for colour-blind readers; grey is left to what has no bonus.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#8C564B")
BASELINE_COLOUR = "#6B7280"

# Options in which runs may differ and still be repetitions of one experiment.
REPETITION = frozenset({"seed", "out", "device", "threads", "checkpoint_seconds", "log_every"})

DIAGNOSTICS = {
    "bonus/mean": "mean of the bonus",
    "bonus/std": "spread of the bonus",
    "bonus/novelty": "before the squash (qcse: entropy h(s | Q))",
    "bonus/saturated": "share of saturated bonuses",
    "bonus/zero_radius": "share of zero radii",
    "bonus/neighbour_share": "mean count / N (1: Q conditions nothing)",
}

SHARES = frozenset({"bonus/saturated", "bonus/zero_radius", "bonus/neighbour_share"})  # between 0 and 1

LOSSES = {
    "loss/critic": "critics' loss",
    "loss/bellman": "squared Bellman error",
    "q/data": "Q of the data's actions",
    "loss/policy": "policy's loss",
    "cql/gap": "conservative gap",
    "policy/entropy": "policy's entropy",
}

BOOTSTRAP_SAMPLES = 2000


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


def stratified_bootstrap(
    strata: Sequence[NDArray[np.float64]],
    statistic: Callable[[NDArray[np.float64]], Any] = lambda values: values.mean(axis=0),
    level: float = 0.95,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile interval of a statistic over runs, drawn anew with replacement within each stratum (arXiv 2108.13264).

    Args:
        strata: one array [runs, ...] per task; trailing dimensions are equal.
        statistic: [all runs, ...] -> any shape; the mean over runs by default.
        level: coverage.
        samples: bootstrap samples.
        seed: of their generator, so that a report is the same each time.

    Returns:
        Lower and upper bound, shaped as the statistic.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        np.asarray(statistic(np.concatenate([values[rng.integers(0, len(values), len(values))] for values in strata])))
        for _ in range(samples)
    ]
    low, high = np.quantile(np.stack(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


# Reading.


def run_folders(path: Path) -> list[Path]:
    """The run folders in a folder, at any depth: itself, or those below it; itself if there are none (an error)."""
    if (path / "eval.csv").exists():
        return [path]
    return sorted(found.parent for found in path.rglob("eval.csv")) or [path]


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
    steps = sorted(by_step)
    columns = {name: np.array([by_step[step][name] for step in steps]) for name in names}
    reference = REFERENCE_SCORES.get(task_family(str(config["env"])))
    values, spread, unit = columns["return_mean"], columns["return_std"], "return"
    if reference is not None and np.isfinite(columns["normalized_score"]).all():
        values, unit = columns["normalized_score"], "normalised score"
        spread = spread * 100.0 / (reference[1] - reference[0])
    train: dict[str, NDArray[np.float64]] = {}
    machine: dict[str, Any] = {}
    try:
        if (path / "train.csv").is_file():
            table, left_out = _read_rows(path / "train.csv", ("step",), (*DIAGNOSTICS, *LOSSES))
            train = {name: np.array([row[name] for row in table], np.float64) for name in (table[0] if table else ())}
            if left_out:
                notes.append(f"{path.name}: {left_out} of the rows of train.csv cannot be read and are left out.")
    except ReportError as error:
        notes.append(f"Left out: {str(error).removeprefix('report: ')}")
    try:
        if (path / "machine.json").is_file():
            machine = read_machine_facts(path / "machine.json")
    except (QcseError, OSError) as error:
        notes.append(f"Left out: {error if isinstance(error, QcseError) else _told(error, path)}")
    return Run(
        path=path,
        config=config,
        machine=machine,
        unit=unit,
        steps=np.array(steps, np.int64),
        values=values,
        spread=spread,
        online=np.array([by_step[step]["online"] for step in steps], np.bool_),
        wall_seconds=float(columns["wall_seconds"][-1]),
        train=train,
        notes=notes,
    )


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
    config = _flat(data)
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


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, item in value.items():
        out.update(_flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item})
    return out


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


def _settings(run: Run) -> dict[str, Any]:
    """The options that make the experiment. A dataset counts by its file's name, wherever it lies."""
    kept = {name: value for name, value in run.config.items() if name not in REPETITION}
    if kept.get("dataset"):
        kept["dataset"] = Path(str(kept["dataset"])).name
    if run.config["bonus.kind"] == "none":  # options of a bonus that is not there
        kept = {name: value for name, value in kept.items() if not name.startswith("bonus.")}
    return kept


# The table.

COLUMNS = ("environment", "method", "seeds", "offline end", "last", "best", "area", "regret", "steps to", "minutes")
ACROSS_COLUMNS = ("method", "runs", "environments", "IQM of last", "IQM of area", "better than without bonus")
THRESHOLD = 0.9  # 'steps to': this share of the way from the untrained policy to the best end


def threshold(runs: Sequence[Run], best_end: float) -> float:
    """The value that 'steps to' asks for in an environment: most of the way from its runs' first evaluations to the
    best mean that a method ends with. (A share of that end itself would lie above it where it is negative.)"""
    start = float(np.mean([run.values[0] for run in runs]))
    return min(best_end, start + THRESHOLD * (best_end - start))


def table_rows(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """One row per group, in the order of COLUMNS: means over seeds, with 95 % intervals where there are several."""
    rows: list[tuple[str, ...]] = []
    for group in groups:
        runs = group.runs
        seeds = ", ".join(str(run.seed) + ("" if run.finished else "*") for run in runs)
        error = runs[0].last_error if len(runs) == 1 else math.nan
        rivals = [g for g in groups if g.env == group.env]
        best_end = max(float(np.mean([run.last for run in g.runs])) for g in rivals)
        wanted = threshold([run for g in rivals for run in g.runs], best_end)
        reached = float(np.median([run.online_steps_to(wanted) for run in runs]))
        rows.append(
            (
                group.env,
                group.label,
                seeds,
                _spell([run.offline_end for run in runs]),
                _spell([run.last for run in runs], error),
                _spell([run.best for run in runs]),
                _spell([run.area for run in runs]),
                _spell([1.0 - run.area / 100.0 for run in runs if run.unit == "normalised score"], digits=3),
                f"{reached:,.0f}" if math.isfinite(reached) else "never",
                _mean([run.wall_seconds / 60.0 for run in runs]),
            )
        )
    return rows


def _mean(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{np.mean(known):.1f}" if known else "-"


def across_rows(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """One row per method that has several runs, in the order of ACROSS_COLUMNS: statistics over seeds and environments.

    Environments are strata. 'Better than without bonus' is the probability that a run of this method ends higher than
    one of the same algorithm without a bonus, over the environments that have both.
    """
    methods: dict[str, dict[str, list[Run]]] = {}
    for group in groups:
        methods.setdefault(group.label, {}).setdefault(group.env, []).extend(group.runs)
    rows: list[tuple[str, ...]] = []
    for label, by_env in methods.items():
        runs = [run for members in by_env.values() for run in members]
        if len(runs) < 2:
            continue
        last = [np.array([run.last for run in members]) for members in by_env.values()]
        area = [np.array([run.area for run in members]) for members in by_env.values()]
        cells = []
        for strata in (last, area):
            low, high = stratified_bootstrap(strata, lambda values: interquartile_mean(values))
            cells.append(f"{interquartile_mean(np.concatenate(strata)):.1f} [{low:.1f}, {high:.1f}]")
        plain = methods.get(str(runs[0].config["algo"]), {}) if runs[0].config["bonus.kind"] != "none" else {}
        shared = [env for env in by_env if env in plain]
        improvement = "-"
        if shared:
            ours, theirs = ([[run.last for run in side[env]] for env in shared] for side in (by_env, plain))
            low, high = improvement_interval(ours, theirs)
            improvement = f"{probability_of_improvement(ours, theirs):.2f} [{low:.2f}, {high:.2f}]"
        rows.append((label, str(len(runs)), str(len(by_env)), *cells, improvement))
    return rows


def _spell(values: Sequence[float], error: float = math.nan, digits: int = 1) -> str:
    known = np.array([value for value in values if not math.isnan(value)])
    if len(known) == 0:
        return "-"
    text = f"{known.mean():.{digits}f}"
    if len(known) > 1:
        low, high = stratified_bootstrap([known])
        return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
    return text if math.isnan(error) else f"{text} ± {error:.{digits}f}"


def _notes(groups: Sequence[Group], left_out: Sequence[str]) -> list[str]:
    """What a reader must know to read the table right; only what applies to these runs, and to what was left out."""
    runs = [run for group in groups for run in group.runs]
    units = {run.env: run.unit for run in runs}
    notes = []
    if "normalised score" in units.values():
        notes.append("Normalised score: 100 (R - random) / (expert - random) with D4RL's constants.")
    plain = [env for env, unit in units.items() if unit == "return"]
    if plain:
        notes.append(f"{', '.join(plain)}: no reference score, so undiscounted returns.")
    notes.append(
        "Offline end: the last evaluation before the first online step. Last: the last one of all. Best: the best of "
        "the online phase. Area: mean along the online curve from the offline end on (trapezoid). Regret: 1 - area / "
        f"100. Steps to: online steps until {THRESHOLD:.0%} of the way from the first evaluation (mean over all runs "
        "there) to the best mean score that a method ends with (median over seeds)."
    )
    if across_rows(groups):
        notes.append(
            "IQM: mean of the middle half of all runs. Better than without bonus: probability that a run ends higher "
            "than one of the same algorithm without a bonus. Intervals: 95 %, stratified bootstrap (arXiv 2108.13264)."
        )
    if any(len(group.runs) > 1 for group in groups):
        notes.append(
            f"[low, high]: 95 % bootstrap interval over seeds ({BOOTSTRAP_SAMPLES} samples); with fewer than five "
            "seeds it is too narrow."
        )
    if any(len(group.runs) == 1 for group in groups):
        notes.append("± and bands of a single run: standard error over an evaluation's episodes, not over seeds.")
    for group in groups:
        repeated = sorted({run.seed for run in group.runs if sum(r.seed == run.seed for r in group.runs) > 1})
        if repeated:
            notes.append(
                f"{group.label}: seed {', '.join(map(str, repeated))} is there more than once; it is no new sample."
            )
    for run in runs:
        if not run.finished:
            notes.append(
                f"* {run.path.name}: evaluated up to step {run.steps[-1]:,} of {run.total_steps:,}, not finished."
            )
        notes += run.notes
    return notes + [f"Left out: {reason}" for reason in left_out]


def _text_table(rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS, words: int = 3) -> str:
    """Aligned text; the first `words` columns hold words, the others numbers."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(cells[:words], widths[:words], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[words:], widths[words:], strict=True)]
        return "  ".join(left + right).rstrip()

    return "\n".join([line(columns), "  ".join("-" * width for width in widths), *(line(row) for row in rows)])


# The pictures.


def _style(axes: Axes, xlabel: str, ylabel: str, ticks: int) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, color="#E5E7EB", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9CA3AF")
    axes.tick_params(colors="#4B5563", labelsize=9)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=(1, 2, 5, 10)))


def draw_curves(groups: Sequence[Group]) -> Figure:
    """Learning curves, one panel per environment: mean over seeds, 95 % band, single seeds as thin lines."""
    names = list(dict.fromkeys(group.env for group in groups))
    columns = min(2, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(8.6 if columns == 1 else 13.2, 4.6 * lines), layout="constrained", dpi=150)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, env in zip(panels, names, strict=False):
        members = [group for group in groups if group.env == env]
        unit = members[0].runs[0].unit
        for group in members:
            steps, values = group.shared()
            if len(group.runs) > 1:
                for run in group.runs:
                    axes.plot(run.steps, run.values, color=group.colour, linewidth=0.8, alpha=0.35)
                if len(steps):
                    low, high = stratified_bootstrap([values])
            else:
                error = group.runs[0].errors
                low, high = values[0] - error, values[0] + error
            if len(steps):
                axes.fill_between(steps, low, high, color=group.colour, alpha=0.18, linewidth=0)
                seeds = f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""
                axes.plot(steps, values.mean(axis=0), color=group.colour, linewidth=2.0, label=group.label + seeds)
        _style(axes, "updates offline, then environment steps", unit, ticks=9)
        axes.set_title(env, loc="left", fontsize=12, fontweight="bold", color="#111827", pad=20)
        _mark_phases(axes, [run for group in members for run in group.runs])
        axes.legend(frameon=False, fontsize=9, loc="best")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return figure


def _mark_phases(axes: Axes, runs: Sequence[Run]) -> None:
    """Shade the offline phase, where all runs of a panel have the same and an online one follows."""
    offline = {run.offline_steps for run in runs}
    if len(offline) != 1 or 0 in offline or not any(run.online.any() for run in runs):
        return
    border = offline.pop()
    end = max(int(run.steps[-1]) for run in runs)
    axes.set_xlim(0, end * 1.015)
    axes.axvspan(0, border, color="#F3F4F6", zorder=0)
    axes.axvline(border, color="#9CA3AF", linewidth=1.0, linestyle=(0, (4, 3)))
    for x, text in ((border / 2, "offline"), ((border + end) / 2, "online")):
        axes.annotate(
            text,
            (x, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color="#6B7280",
        )


def draw_bonus(groups: Sequence[Group]) -> Figure | None:
    """The bonus's diagnostics of one environment's groups over time; None where no run has any."""
    return _draw_training(groups, DIAGNOSTICS)


def draw_losses(groups: Sequence[Group]) -> Figure | None:
    """Losses and Q of one environment's groups over time; None where no run has any."""
    return _draw_training(groups, LOSSES)


def _draw_training(groups: Sequence[Group], titles: dict[str, str]) -> Figure | None:
    """Columns of train.csv, those of `titles` that there are, a panel each with a line for each run."""
    shown = [
        name
        for name in titles
        if any(np.isfinite(run.train[name]).any() for group in groups for run in group.runs if name in run.train)
    ]
    if not shown:
        return None
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.1 * lines), layout="constrained", dpi=150)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for axes, name in zip(panels, shown, strict=False):
        for index, group in enumerate(groups):
            dashes = (0, (4, 2)) if index % 2 else "-"  # curves that coincide are both seen
            for run in group.runs:
                known = np.isfinite(run.train[name]) if name in run.train else np.zeros(0, np.bool_)
                if known.any():
                    steps, values = run.train["step"][known], run.train[name][known]
                    # A line through a single point would not be seen.
                    marker = "o" if len(steps) == 1 else ""
                    (handles[group.label],) = axes.plot(
                        steps, values, color=group.colour, linewidth=1.4, linestyle=dashes, alpha=0.85, marker=marker,
                        label=group.label,
                    )  # fmt: skip
        _style(axes, "step", "", ticks=5)
        axes.set_title(titles[name], loc="left", fontsize=10, color="#111827")
        if name in SHARES:
            axes.set_ylim(-0.03, 1.03)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    title = f"{groups[0].env}: one line per run"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color="#111827")
    figure.legend(handles.values(), handles.keys(), loc="upper right", frameon=False, fontsize=9, ncols=len(handles))
    return figure


# The page.

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; color: #1f2937; background: #f9fafb;
       margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 64px; background: #fff; }
h1 { font-size: 28px; margin: 0 0 4px; color: #111827; }
h2 { font-size: 19px; margin: 40px 0 10px; color: #111827; border-bottom: 1px solid #e5e7eb; padding-bottom: 6px; }
p.lead { margin: 0; color: #6b7280; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 10px; border-bottom: 1px solid #e5e7eb; text-align: left; vertical-align: top; }
th { color: #6b7280; font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.value { overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px; }
img { max-width: 100%; height: auto; display: block; margin: 8px auto; }
ul.notes { color: #6b7280; font-size: 13.5px; padding-left: 18px; }
details { margin: 8px 0; border: 1px solid #e5e7eb; border-radius: 8px; padding: 8px 14px; }
summary { cursor: pointer; font-weight: 600; }
""".strip()


def _html(
    groups: Sequence[Group],
    rows: Sequence[Sequence[str]],
    pictures: Sequence[tuple[str, str, Path]],
    notes: Sequence[str],
) -> str:
    runs = [run for group in groups for run in group.runs]
    envs = list(dict.fromkeys(run.env for run in runs))
    count = f"{len(runs)} run{'s' if len(runs) != 1 else ''}"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>qcse: {escape(', '.join(envs))}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>",
        f"<h1>Offline-to-online runs</h1>\n<p class='lead'>{count} on {escape(', '.join(envs))}</p>",
        "<h2>Results</h2>\n<div class='wide'><table>\n<tr>"
        + "".join(f"<th{_numeric(i)}>{escape(name)}</th>" for i, name in enumerate(COLUMNS))
        + "</tr>",
    ]
    for group, row in zip(groups, rows, strict=True):
        swatch = f"<span class='swatch' style='background:{group.colour}'></span>"
        cells = [f"<td{_numeric(i)}>{swatch if i == 1 else ''}{escape(cell)}</td>" for i, cell in enumerate(row)]
        parts.append(f"<tr>{''.join(cells)}</tr>")
    parts.append("</table></div>")
    across = across_rows(groups)
    if across:
        head = "".join(f"<th{_numeric(i + 2)}>{escape(name)}</th>" for i, name in enumerate(ACROSS_COLUMNS))
        parts.append(f"<h2>Across seeds and environments</h2>\n<div class='wide'><table>\n<tr>{head}</tr>")
        for row in across:
            cells = [f"<td{_numeric(i + 2)}>{escape(cell)}</td>" for i, cell in enumerate(row)]
            parts.append(f"<tr>{''.join(cells)}</tr>")
        parts.append("</table></div>")
    parts.append("<ul class='notes'>")
    parts += [f"<li>{escape(note)}</li>" for note in notes]
    parts.append("</ul>")
    for heading, alternative, path in pictures:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        parts.append(f"<h2>{escape(heading)}</h2>")
        parts.append(f"<img alt='{escape(alternative, quote=True)}' src='data:image/png;base64,{data}'>")
    parts.append("<h2>Data</h2>")
    parts.append(_pairs(_data_facts(runs)))
    parts.append("<h2>Machine and versions</h2>")
    parts += _folded(
        [(run.path.name, _machine(run)) for run in runs],
        "machine.json is missing",
    )
    parts.append("<h2>Configuration</h2>")
    parts.append(_configurations(groups))
    parts.append("</main>\n</body>\n</html>\n")
    return "\n".join(parts)


def _numeric(column: int) -> str:
    return " class='number'" if column >= 3 else ""


def _plain_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain_text, value)) or "none"
    return "not set" if value is None else str(value)


def _pairs(facts: dict[str, Any]) -> str:
    lines = [
        f"<tr><td>{escape(str(name))}</td><td class='value'>{escape(_plain_text(value))}</td></tr>"
        for name, value in facts.items()
    ]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _configurations(groups: Sequence[Group]) -> str:
    """Every option, one column a group; first those in which groups differ, the rest folded away."""
    names = [name for name in dict.fromkeys(n for g in groups for n in g.runs[0].config) if name not in ("seed", "out")]

    def cell(group: Group, name: str) -> str:
        return " / ".join(dict.fromkeys(_plain_text(run.config.get(name)) for run in group.runs))

    def table(chosen: Sequence[str]) -> str:
        heads = "".join(f"<th>{escape(group.env)}<br>{escape(group.label)}</th>" for group in groups)
        lines = [
            f"<tr><td>{escape(name)}</td>"
            + "".join(f"<td class='value'>{escape(cell(group, name))}</td>" for group in groups)
            + "</tr>"
            for name in chosen
        ]
        return f"<div class='wide'><table>\n<tr><th>option</th>{heads}</tr>\n" + "\n".join(lines) + "\n</table></div>"

    differing = [name for name in names if len({cell(group, name) for group in groups}) > 1]
    common = [name for name in names if name not in differing]
    parts = [table(differing)] if differing else []
    if common:
        summary = f"{len(common)} options that are equal in all" if len(groups) > 1 else f"all {len(common)} options"
        parts.append(f"<details><summary>{summary}</summary>\n{table(common)}\n</details>")
    return "\n".join(parts)


def _data_facts(runs: Sequence[Run]) -> dict[str, Any]:
    """Dataset file -> what its runs noted down about it."""
    facts: dict[str, Any] = {}
    for run in runs:
        dataset = run.config.get("dataset")
        noted = run.machine.get("data")
        facts[str(dataset) if dataset else "no dataset"] = noted if noted else "no details were kept"
    return facts


def _machine(run: Run) -> dict[str, Any]:
    """The facts of the run's latest part, and what was otherwise in the parts before."""
    facts = {name: value for name, value in run.machine.items() if name not in ("data", "earlier")}
    earlier = run.machine.get("earlier")
    for number, part in enumerate(earlier if isinstance(earlier, list) else [], 1):
        if isinstance(part, dict):
            other = {name: value for name, value in part.items() if name != "data" and facts.get(name) != value}
            facts[f"part {number} of the run"] = other or "the same"
    return facts


def _folded(tables: Sequence[tuple[str, dict[str, Any]]], absent: str) -> list[str]:
    """Tables that fold away; runs with equal ones share them."""
    shared: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name, facts in tables:
        shared.setdefault(json.dumps(facts, sort_keys=True), (facts, []))[1].append(name)
    opened = " open" if len(shared) == 1 else ""
    out = []
    for facts, names in shared.values():
        body = _pairs(facts) if facts else f"<p>{escape(absent)}</p>"
        out.append(f"<details{opened}><summary>{escape(', '.join(names))}</summary>\n{body}\n</details>")
    return out


def report(dirs: Sequence[Path], out: Path) -> str:
    """Write report.html, curves.png and, for each environment, losses-, visits- and, where a bonus was used, bonus-
    followed by its name and .png.

    Args:
        dirs: run folders, or folders that hold some; one named twice counts once. One that cannot be read is left out,
            and a note says why.
        out: folder for the report and its pictures; made if missing, files of an earlier report are replaced.

    Returns:
        The table as text, with its notes and the paths of what was written.

    Raises:
        ReportError: no folders, one that does not exist, none that can be read, or an `out` that cannot be written.
        InUseError: another process writes a report there.
    """
    if not dirs:
        raise ReportError("report: got no run folders, expected at least one made by `qcse train`")
    for given in dirs:
        if not Path(given).resolve().exists():
            raise ReportError(f"report: {given} is not a run folder: there is no such folder")
    runs, left_out = [], []
    for path in {path.resolve(): path for given in dirs for path in run_folders(Path(given))}.values():
        try:
            runs.append(read_run(path))
        except ReportError as error:
            left_out.append(str(error).removeprefix("report: "))
    if not runs:
        more = f" (and {len(left_out) - 1} more folders cannot be read)" if len(left_out) > 1 else ""
        raise ReportError(f"report: {left_out[0]}{more}")
    groups = group_runs(runs)
    rows = table_rows(groups)
    out = Path(out)
    try:
        with own(out):
            with matplotlib.rc_context({"text.parse_math": False}):  # a name may hold a dollar
                pictures, undrawn = _draw(groups, rows, out)
            notes = _notes(groups, left_out + undrawn)
            page = out / "report.html"
            with atomic_path(page) as temporary:
                temporary.write_bytes(_html(groups, rows, pictures, notes).encode("utf-8", "replace"))
    except OSError as error:
        raise ReportError(f"report: {out} cannot be written ({error}); choose another folder") from error
    written = [page, *(path for _, _, path in pictures)]
    tables = [_text_table(rows)]
    if across := across_rows(groups):
        tables += ["", _text_table(across, ACROSS_COLUMNS, words=1)]
    return "\n".join([*tables, "", *notes, "", *(f"wrote {path}" for path in written)])


def _draw(
    groups: Sequence[Group], rows: Sequence[Sequence[str]], out: Path
) -> tuple[list[tuple[str, str, Path]], list[str]]:
    """Draw the pictures; returns their headings, alternative texts and files, and what could not be drawn and why."""
    pictures = [("Learning curves", _text_table(rows), _save(draw_curves(groups), out / "curves.png"))]
    left_out: list[str] = []
    names = _file_names(group.env for group in groups)
    for env, name in names.items():
        members = [group for group in groups if group.env == env]
        for figure, kind, title, words in (
            (draw_bonus(members), "bonus", "The bonus", "Diagnostics of the bonus"),
            (draw_losses(members), "losses", "Losses", "Losses and Q of each run"),
        ):
            if figure is not None:
                pictures.append((f"{title}, {env}", f"{words} in {env}", _save(figure, out / f"{kind}-{name}.png")))
    for env, name in names.items():
        seen: list[tuple[str, str, Visits]] = []
        for group in (group for group in groups if group.env == env):
            try:
                visits = read_visits(group.runs[0].path)  # one run for each method: its first seed
            except (QcseError, OSError) as error:
                left_out.append(f"visited states of {group.runs[0].path.name}: {error}")
                continue
            if visits is not None and (not seen or visits.online.shape[1] == seen[0][2].online.shape[1]):
                seen.append((group.label, group.colour, visits))
        if seen:
            try:
                path = _save(draw_visits(seen), out / f"visits-{name}.png")
            except ValueError as error:  # numbers that no axis can hold
                left_out.append(f"visited states in {env}: {error}")
                continue
            pictures.append((f"Visited states, {env}", f"States of the dataset and of each method in {env}", path))
    return pictures, left_out


def _file_names(envs: Iterable[str]) -> dict[str, str]:
    """Environment -> its part of file names, which are short and differ."""
    names: dict[str, str] = {}
    for env in dict.fromkeys(envs):
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in env)
        if len(name) > 60 or name.lower() in (other.lower() for other in names.values()):
            name = f"{name[:50]}-{hashlib.sha256(env.encode()).hexdigest()[:8]}"
        names[env] = name
    return names


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")
    return path

"""A report's figures in tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .runs import Group, Run, borrowed
from .stats import improvement_interval, interquartile_mean, probability_of_improvement

BOOTSTRAP_SAMPLES = 2000


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
            interval = improvement_interval(ours, theirs)
            improvement = f"{probability_of_improvement(ours, theirs):.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
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


def notes_on(groups: Sequence[Group], left_out: Sequence[str]) -> list[str]:
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
        shared = sorted({run.seed for run in group.runs if borrowed(run)})
        if shared:
            notes.append(
                f"{group.label}: seed {', '.join(map(str, shared))} began with networks that were pre-trained for "
                "another seed; of pre-training it is no new sample."
            )
    for run in runs:
        if not run.finished:
            notes.append(
                f"* {run.path.name}: evaluated up to step {run.steps[-1]:,} of {run.total_steps:,}, not finished."
            )
        notes += run.notes
    return notes + [f"Left out: {reason}" for reason in left_out]


def text_table(rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS, words: int = 3) -> str:
    """Aligned text; the first `words` columns hold words, the others numbers."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(cells[:words], widths[:words], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[words:], widths[words:], strict=True)]
        return "  ".join(left + right).rstrip()

    return "\n".join([line(columns), "  ".join("-" * width for width in widths), *(line(row) for row in rows)])

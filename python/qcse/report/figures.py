"""A report's pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from .runs import DIAGNOSTICS, LOSSES, Group, Run
from .tables import stratified_bootstrap

SHARES = frozenset({"bonus/saturated", "bonus/zero_radius", "bonus/neighbour_share"})  # between 0 and 1


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

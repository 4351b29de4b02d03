"""A picture of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..envs.scores import normalized_score
from ..files import atomic_path
from .facts import DatasetFacts
from .transitions import Transitions

PICTURE_POINTS = 4000  # states in the picture's projection


def draw(data: Transitions, facts: DatasetFacts, path: Path) -> Path:
    """A picture: histogram of the episodes' returns, of their lengths, and the states in a plane.

    States are drawn by x and y in mazes, elsewhere by their first two principal components (standardised), each
    coloured by the return of its episode.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    histogram, lengths, plane = figure.subplots(1, 3)
    returns, sizes = data.episode_returns(), np.diff([0, *(np.flatnonzero(data.episode_end) + 1)])
    scores = facts.scores is not None
    shown = normalized_score(facts.family, returns) if scores else returns
    for axes, values, label in (
        (histogram, shown, "normalised score" if scores else "return"),
        (lengths, sizes, "steps"),
    ):
        axes.hist(values[np.isfinite(values)], bins=min(50, max(10, len(values) // 10)), color="#0072B2")
        axes.set_xlabel(f"{label} of an episode")
        axes.set_ylabel("episodes")
        axes.spines[["top", "right"]].set_visible(False)
    rows = np.linspace(0, len(data) - 1, min(len(data), PICTURE_POINTS)).astype(np.int64)
    rows = rows[np.isfinite(data.observations[rows]).all(1)]
    episode = np.searchsorted(np.flatnonzero(data.episode_end), rows)
    maze = facts.family.startswith(("antmaze", "maze2d", "pointmaze")) or data.observation_dim == 4
    points: NDArray[Any] = data.observations[rows]
    if not maze:
        mean, components = principal_components(points)
        points = (points - mean) @ components
    dots = plane.scatter(points[:, 0], points[:, 1], c=shown[episode], s=4, cmap="viridis", linewidths=0)
    if maze:
        plane.set_aspect("equal")
    plane.set_xlabel("x" if maze else "first principal component")
    plane.set_ylabel("y" if maze else "second principal component")
    plane.spines[["top", "right"]].set_visible(False)
    figure.colorbar(dots, ax=plane, label=f"{'normalised score' if scores else 'return'} of its episode")
    figure.suptitle(f"{Path(facts.path).name}: {facts.rows:,} transitions, {facts.episodes:,} episodes", fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="white")
    return path


def principal_components(states: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [D] and axes [D, 2] for which (states - mean) @ axes are the first two components of standardised states."""
    x = states.astype(np.float64)
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    _, _, rows = np.linalg.svd((x - mean) / scale, full_matrices=False)
    axes = np.zeros((x.shape[1], 2))
    axes[:, : len(rows[:2])] = rows[:2].T
    return mean, axes / scale[:, None]

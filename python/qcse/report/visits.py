"""Which states a run visited beside those of its dataset, and what its bonus made of them: state marginal matching to
look at. All of it is read from the run's last checkpoint; nothing is logged for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..config import TrainConfig, from_json, validate
from ..data.picture import principal_components
from ..data.sources import load_dataset
from ..envs.scores import task_family
from ..errors import CheckpointError, QcseError
from ..learn.agents import AGENTS
from ..learn.buffer import ReplayBuffer
from ..learn.reward import IntrinsicReward
from ..learn.streams import Streams
from ..runs import checkpoint
from ..runs.folder import group_of, stored_config

STATES = 20_000  # that are looked at, of a dataset or a run
PAIRS = 2_000  # transitions whose bonus is drawn against their Q
CELLS = 40  # of the plane, in each direction
NOTE = """Above: a cell's colour is the share of the panel's
states in it, on a logarithmic scale; what lies
outside is drawn at the border.

Right: transitions that the run collected, their Q
and their bonus among all of the run's own, by the
learner at its end. Training may compare with no
more than a batch, whose bonus is then higher."""

States = NDArray[np.float32]


@dataclass(frozen=True)
class Visits:
    """States in the environment's own units, and the bonus at the end of the run.

    Attributes:
        env: Gymnasium's name.
        offline: [M, D], of the dataset; None where it has none, or it is no longer there.
        online: [N, D], collected by the run, in order.
        q, bonus: [P] each, of a sample of the online transitions; empty without a bonus.
    """

    env: str
    offline: States | None
    online: States
    q: NDArray[np.float32]
    bonus: NDArray[np.float32]


def read_visits(folder: Path) -> Visits | None:
    """What a run folder's checkpoint tells; None where it has no checkpoint or no online transitions yet.

    Raises:
        QcseError: the checkpoint or the configuration beside it is damaged, or they do not fit each other.
        OSError: they cannot be read.
    """
    group = group_of(folder)
    home = folder if group is None else group
    if not (home / checkpoint.NAME).is_file():
        return None
    state = checkpoint.load_run(home)
    if state is None:
        return None
    try:
        return _visits(folder, home, state)
    except QcseError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"checkpoint: what {home} holds does not fit its configuration ({reason})") from error


def _visits(folder: Path, home: Path, state: Mapping[str, Any]) -> Visits | None:
    config = from_json(state["config"], f"{home / checkpoint.NAME}: config")
    validate(config)
    rows = state["buffer"]["rows"]
    if state["buffer"]["added"] == 0:
        return None
    seeds = list(range(config.seed, config.seed + config.seeds))
    state_dim, action_dim = (rows[name].shape[-1] for name in ("observations", "actions"))
    capacity = min(config.online_buffer, max(config.online_steps, 1))
    buffer = ReplayBuffer(None, len(seeds), capacity, state_dim, action_dim, torch.device("cpu"))
    checkpoint.load_buffer(home, buffer, dict(state))
    seed = stored_config(folder).seed - config.seed
    mean, spread = (part.numpy() for part in state["observation_scale"])
    chosen = torch.from_numpy(_spread(buffer.size, STATES))
    online = buffer.online["observations"][seed, chosen].numpy() * spread + mean
    q, bonus = _bonus(config, state, buffer, seeds, seed)
    online = online[np.isfinite(online).all(axis=1)]
    if len(online) == 0:
        return None
    offline = _dataset_states(config)
    if offline is not None and offline.shape[1] != online.shape[1]:  # another file lies there now
        offline = None
    return Visits(config.env, offline, online, q, bonus)


def _spread(rows: int, most: int) -> NDArray[np.int64]:
    """At most so many row numbers, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).astype(np.int64))


def _bonus(
    config: TrainConfig, state: Mapping[str, Any], buffer: ReplayBuffer, seeds: Sequence[int], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Q and unweighted bonus of online transitions, by the learner as it is in the checkpoint."""
    if config.bonus.kind == "none":
        return np.empty(0, np.float32), np.empty(0, np.float32)
    streams = Streams(seeds)
    state_dim, action_dim = (buffer.online[name].shape[-1] for name in ("observations", "actions"))
    agent = AGENTS[config.algo](state_dim, action_dim, config, streams)
    agent.load_state_dict(state["agent"])
    reward = IntrinsicReward(config.bonus, agent, buffer, streams, config.reward_scale)
    reward.load_state_dict(state["reward"])
    index = torch.from_numpy(_spread(buffer.size, PAIRS)).expand(len(seeds), -1)
    batch = buffer.gather(index)
    bonus = batch.bonus if config.bonus.when == "store" else reward.of_stored(index, learn=False)
    return agent.min_q(batch.observations, batch.actions)[seed].numpy(), bonus[seed].numpy()


def _dataset_states(config: TrainConfig) -> States | None:
    return None if config.dataset is None else _load_states(config.dataset)


@lru_cache(maxsize=4)
def _load_states(dataset: Path) -> States | None:
    try:
        data = load_dataset(dataset, progress=False)
    except (QcseError, OSError):  # the file has moved: the run's own states are still worth a look
        return None
    return data.observations[_spread(len(data), STATES)].copy()


@dataclass(frozen=True)
class Plane:
    """A plane in which states are drawn: x and y in mazes, elsewhere the first two principal components."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]  # [D, 2]
    names: tuple[str, str]

    @staticmethod
    def of(env: str, states: States) -> Plane:
        """The components are those of `states`, standardised."""
        dim = states.shape[1]
        if task_family(env).startswith(("antmaze", "maze2d", "pointmaze")):
            return Plane(np.zeros(dim), np.eye(dim, 2), ("x", "y"))
        mean, axes = principal_components(states)
        return Plane(mean, axes, ("first principal component", "second principal component"))

    def project(self, states: States) -> NDArray[np.float64]:
        """[N, D] -> [N, 2]"""
        return (states - self.mean) @ self.axes


def cells_of(points: NDArray[np.float64], limits: NDArray[np.float64]) -> set[int]:
    """The cells of a CELLS x CELLS grid over limits [2, (low, high)] that hold a point."""
    low, high = limits[:, 0], limits[:, 1]
    cell = np.clip((points - low) / (high - low) * CELLS, 0, CELLS - 1).astype(int)
    return set((cell[:, 0] * CELLS + cell[:, 1]).tolist())


def draw_visits(runs: Sequence[tuple[str, str, Visits]]) -> Figure:
    """One environment's runs side by side; each is (label, colour, visits).

    Above: where the dataset's states lie, then those that each run visited, in one plane and on one scale, with the
    share of the dataset's cells that the run entered and of its own that are new. Below: the bonus against Q.
    """
    offline = next((visits.offline for _, _, visits in runs if visits.offline is not None), None)
    plane = Plane.of(runs[0][2].env, offline if offline is not None else np.concatenate([v.online for _, _, v in runs]))
    panels = ([("dataset", "#111827", plane.project(offline))] if offline is not None else []) + [
        (label, colour, plane.project(visits.online)) for label, colour, visits in runs
    ]
    together = np.concatenate([points for _, _, points in panels])
    # The outermost states may lie far away; they are drawn at the border.
    limits = np.quantile(together, [0.001, 0.999], axis=0).T
    limits += np.maximum(np.ptp(limits, axis=1), 1e-6)[:, None] * np.array([-0.04, 0.04])
    with_bonus = any(len(visits.bonus) for _, _, visits in runs)
    size = (0.6 + 3.6 * len(panels), 7.2 if with_bonus else 3.9)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    grid = figure.subplots(2 if with_bonus else 1, len(panels), squeeze=False)
    data_cells = None if offline is None else cells_of(panels[0][2], limits)
    for axes, (label, colour, points) in zip(grid[0], panels, strict=True):
        title = f"{label}: {len(points):,} states"
        if data_cells is not None and label != "dataset":
            own = cells_of(points, limits)
            title = f"{label}\nenters {len(own & data_cells) / len(data_cells):.0%} of the dataset's cells\n"
            title += f"{len(own - data_cells) / len(own):.0%} of its own cells are new"
        _density(axes, points, limits, plane.names)
        axes.set_title(title, loc="left", fontsize=9.5, color=colour)
    if with_bonus:
        first = len(panels) - len(runs)
        for axes in grid[1][:first]:
            axes.set_axis_off()
            axes.text(0, 1, NOTE, transform=axes.transAxes, va="top", fontsize=9, color="#6B7280", linespacing=1.5)
        for axes, (label, colour, visits) in zip(grid[1][first:], runs, strict=True):
            _against_q(axes, label, colour, visits)
    figure.suptitle(
        f"{runs[0][2].env}: visited states" + (", and the bonus against Q" if with_bonus else ""),
        x=0.01, ha="left", fontsize=12, fontweight="bold", color="#111827",
    )  # fmt: skip
    return figure


def _density(axes: Axes, points: NDArray[np.float64], limits: NDArray[np.float64], names: tuple[str, str]) -> None:
    clipped = np.clip(points, limits[:, 0], limits[:, 1])
    weights = np.full(len(points), 1 / len(points))
    axes.hist2d(
        clipped[:, 0], clipped[:, 1], bins=CELLS, range=limits.tolist(), weights=weights,
        norm=LogNorm(1e-4, 0.05, clip=True), cmap="viridis", cmin=1e-12,
    )  # fmt: skip
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    if names == ("x", "y"):
        axes.set_aspect("equal")
    _tidy(axes, *names)


def _against_q(axes: Axes, label: str, colour: str, visits: Visits) -> None:
    if len(visits.bonus) == 0:
        axes.set_axis_off()
        return
    order = np.linspace(0, 1, len(visits.q))
    axes.scatter(visits.q, visits.bonus, c=order, cmap="cividis", s=5, linewidths=0, alpha=0.7)
    axes.set_title(f"{label}: dark is early, light is late", loc="left", fontsize=9.5, color=colour)
    _tidy(axes, "Q(s, a) at the end of the run", "bonus")


def _tidy(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(colors="#4B5563", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)

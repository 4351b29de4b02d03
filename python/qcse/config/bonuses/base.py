"""Options that all bonuses share, and what a bonus says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..ranges import COUNT, NUMBER, Range


@dataclass
class BonusOptions:
    """The intrinsic reward r' = r + weight * squash(novelty). An option that a bonus does not use is ignored."""

    kind: str = "none"
    weight: float = 1.0
    """lambda, the factor of the bonus at the first online update."""
    decay: float = 0.0
    """kappa: the weight of online update t is weight * (1 - decay)^t."""
    references: Literal["batch", "sample", "buffer"] = "batch"
    """qcse, vcse, se: among which transitions neighbours are sought: the batch's own; `reference_size` drawn anew from
    the online buffer for each update; the whole online buffer (exact, and its Q is computed anew for each update)."""
    reference_size: int = 4096
    """Transitions drawn where references is 'sample'."""
    transitions: Literal["online", "all"] = "online"
    """Which transitions get the bonus, and are candidates: those collected online, or the dataset's as well (then
    in the offline phase, too)."""
    squash: Literal["tanh", "standardised_tanh", "scaled", "none"] = "tanh"
    """tanh(h) as in the paper; tanh((h - mean) / spread) with running statistics, which cannot saturate; h / spread
    with running statistics, as RND; h itself as in VCSE."""
    when: Literal["sample", "store"] = "sample"
    """Computed for each sampled batch with the Q of the moment, or once, when a transition is stored (needs
    references 'sample' or 'buffer'; not for rnd)."""
    join: Literal["after", "before"] = "after"
    """Added after the task's reward transform (reward_scale, reward_bias) or before it."""
    statistics_horizon: int = 1000
    """Updates that the running statistics look back on: their rate is max(1 / updates so far, 1 / horizon)."""


RANGES = {
    "weight": NUMBER,
    "decay": Range(0, 1, "[)"),
    "reference_size": Range(1, 10**9),
    "statistics_horizon": COUNT,
}


class Run(Protocol):
    """What a bonus may ask of the run that it is for."""

    batch_size: int
    offline_fraction: float | None
    offline_steps: int
    online_steps: int
    online_buffer: int


def has_fixed_shapes(options: BonusOptions) -> bool:
    """Whether what a bonus computes for a batch has the same sizes at each update, as a captured graph needs."""
    return options.references != "buffer" or options.when != "sample"


@dataclass(frozen=True)
class BonusSpec:
    """What a bonus is before it is made.

    Attributes:
        summary: a line for --help.
        options: the options that it reads.
        implementation: "module:class" below `qcse.learn.bonuses`; None: there is nothing to compute.
        defaults: sets its defaults in its options, for an environment's family (None: for no family in particular).
        check: raises ConfigError where its options cannot work in a run.
        ranges: option -> range, for those that are numbers.
        capturable: whether updates with it can be captured in a CUDA graph.
    """

    summary: str
    options: type[BonusOptions]
    implementation: str | None
    defaults: Callable[[Any, str | None], None]
    check: Callable[[Any, Run], None]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    capturable: Callable[[Any], bool] = has_fixed_shapes

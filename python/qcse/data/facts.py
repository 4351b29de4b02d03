"""What is in a dataset."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..envs.scores import REFERENCE_SCORES, normalized_score, task_family
from ..errors import printable
from .sources import source_of
from .transitions import Transitions, recorded_env


@dataclass(frozen=True)
class Spread:
    """Smallest, mean and largest of something, and its median."""

    low: float
    median: float
    mean: float
    high: float

    @staticmethod
    def of(values: NDArray[Any]) -> Spread:
        v = np.asarray(values, np.float64)
        return Spread(float(v.min()), float(np.median(v)), float(v.mean()), float(v.max()))

    def __str__(self) -> str:
        return f"{self.low:.5g} to {self.high:.5g}, mean {self.mean:.5g}, median {self.median:.5g}"


@dataclass(frozen=True)
class DatasetFacts:
    """What `qcse data info` tells.

    Attributes:
        path, source: of the data.
        rows, episodes: how many.
        observation_dim, action_dim: sizes.
        lengths, returns: of the episodes.
        family: task family for the score, "other" where there is none.
        scores: normalised scores of the episodes, None without reference scores.
        ends: how the episodes end: in a terminal state, or cut (time limit, hidden end, end of the recording).
        flags: how often each flag is set in the file, and both at once; empty for Minari.
        not_finite: array -> NaN and infinite values.
        duplicates: rows whose state and action occurred in an earlier row.
        constant: columns of the observation that never change.
        action_range: smallest and largest component.
        saturated: share of action components at the bounds (beyond 0.999).
        metadata: scalars stored with the data.
    """

    path: str
    source: str
    rows: int
    episodes: int
    observation_dim: int
    action_dim: int
    lengths: Spread
    returns: Spread
    family: str
    scores: Spread | None
    ends: dict[str, int]
    flags: dict[str, int]
    not_finite: dict[str, int]
    duplicates: int
    constant: list[int]
    action_range: tuple[float, float]
    saturated: float
    metadata: dict[str, str | int | float]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        lines = {
            "source": f"{self.source}: {self.path}",
            "transitions": f"{self.rows:,} of {self.observation_dim} + {self.action_dim} numbers",
            "episodes": f"{self.episodes:,}, " + ", ".join(f"{n:,} {what}" for what, n in self.ends.items()),
            "length": str(self.lengths),
            "return": str(self.returns),
            "normalised score": str(self.scores) if self.scores else "no reference scores known; name the --task",
            "flags": ", ".join(f"{name} {n:,}" for name, n in self.flags.items()) or "none in the file",
            "not finite": ", ".join(f"{k} {n:,}" for k, n in self.not_finite.items() if n) or "nothing",
            "duplicates": f"{self.duplicates:,} rows repeat an earlier state and action",
            "constant": f"observation columns {self.constant}" if self.constant else "no observation column",
            "actions": f"{self.action_range[0]:.4g} to {self.action_range[1]:.4g}, {self.saturated:.1%} at the bounds",
        }
        lines |= {f"metadata {name}": str(value)[:80] for name, value in self.metadata.items()}
        return "\n".join(f"{printable(name):<18} {printable(text)}" for name, text in lines.items())


def describe(dataset: str, family: str | None = None) -> tuple[DatasetFacts, Transitions]:
    """Read a dataset and say what is in it; NaN and infinite values are counted, not refused.

    Args:
        dataset: a file in D4RL's layout, or "minari:ID".
        family: key of REFERENCE_SCORES for the score; None: from the metadata's env_id.
    """
    source = source_of(dataset)
    data = source.load(dataset, finite=False)
    family = family or task_family(recorded_env(data) or "")
    lengths = np.diff([0, *(np.flatnonzero(data.episode_end) + 1)])
    returns = data.episode_returns()
    terminal = int((data.bootstrap[data.episode_end] == 0).sum())
    bad = {
        key: int((~np.isfinite(getattr(data, key))).sum())
        for key in ("observations", "actions", "rewards", "next_observations")
    }
    pairs = np.concatenate([data.observations, data.actions], axis=1) + np.float32(0.0)  # -0 becomes 0
    keys = pairs.view(np.dtype((np.void, pairs.itemsize * pairs.shape[1]))).reshape(-1)
    distinct = len(np.unique(keys))
    facts = DatasetFacts(
        path=data.path,
        source=data.source,
        rows=len(data),
        episodes=len(lengths),
        observation_dim=data.observation_dim,
        action_dim=data.action_dim,
        lengths=Spread.of(lengths),
        returns=Spread.of(returns),
        family=family,
        scores=Spread.of(normalized_score(family, returns)) if family in REFERENCE_SCORES else None,
        ends={"end in a terminal state": terminal, "are cut": len(lengths) - terminal},
        flags=source.flags(dataset),
        not_finite=bad,
        duplicates=len(data) - distinct,
        constant=[int(i) for i in np.flatnonzero(data.observations.min(0) == data.observations.max(0))],
        action_range=(float(data.actions.min()), float(data.actions.max())),
        saturated=float((np.abs(data.actions) > 0.999).mean()),
        metadata=data.metadata,
    )
    return facts, data

"""Whether an answer is exact."""

from typing import Any

import torch
from torch import Tensor

import qcse_ext
from qcse_ext import _C
from qcse_ext.bench.records import Answer

__all__ = ["Judge"]

#: Rows whose answers are judged.
ROWS = 512
#: Factor by which a returned neighbour may be farther away than the exact k-th one, for the recall.
NEAR_ENOUGH = 1 + 1e-6


class Judge:
    """What the answers are compared with: some random rows, solved by the CPU operator looking at every pair.

    It shares neither the kernels of a GPU nor the pruning of the CPU's other paths with what is timed, and never holds
    more than these rows' share of the pairs.
    """

    def __init__(self, states: Tensor, values: Tensor, k: int, rows: int = ROWS) -> None:
        n = states.shape[0]
        self.k = k
        self.rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:rows].sort().values
        self._states, self._values = states.cpu(), values.cpu()
        self._exact: dict[str, tuple[Tensor, Tensor]] = {}
        self._near: tuple[Tensor, Tensor] | None = None  # points and how far the k nearest may be, for the recall

    def exact(self, metric: str) -> tuple[Tensor, Tensor]:
        """Radius and count of the judged rows, ``[rows]`` each; for the metric "states" with values of 0."""
        if metric not in self._exact:
            values = self._values if metric == "joint" else torch.zeros_like(self._values)
            self._exact[metric] = self._solve(self._states, values)
        return self._exact[metric]

    def compare(self, answer: Answer, metric: str) -> tuple[bool, float]:
        """Whether the answer is exact, and the largest relative error of its radius."""
        radius, count = self.exact(metric)
        error = _rel_error(self._judged(answer.radius), radius)
        same_count = answer.count is None or torch.equal(self._judged(answer.count).long(), count)
        return error == 0 and same_count, error

    def recall(self, indices: Any) -> float:
        """The share of the k nearest neighbours in the states that is found, over the judged rows.

        Of a row's indices those count that are another row's, each once, whose distance, in float64, is at most
        1 + 1e-6 times the exact k-th distance; at most k of them. Which of several neighbours at the same distance is
        returned does therefore not matter, nor which of two that float32 can't tell apart.
        """
        chosen = self._judged(indices).long().sort(dim=1).values
        if self._near is None:
            points = self._states.double()
            radius, _ = self._solve(points, torch.zeros(len(points), dtype=torch.float64))
            self._near = points, radius * NEAR_ENOUGH
        points, limit = self._near
        counts = (chosen >= 0) & (chosen < len(points)) & (chosen != self.rows[:, None])
        counts[:, 1:] &= chosen[:, 1:] != chosen[:, :-1]
        difference = points[chosen.clamp(0, len(points) - 1)] - points[self.rows, None]
        counts &= torch.linalg.vector_norm(difference, dim=-1) <= limit[:, None]
        return float(counts.sum(1).clamp(max=self.k).sum()) / (self.k * len(self.rows))

    def _judged(self, x: Any) -> Tensor:
        everything: Tensor = torch.as_tensor(x)
        return everything[self.rows.to(everything.device)].cpu()

    def _solve(self, states: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        _C.set_search_path("all")
        try:
            return qcse_ext.knn(states[self.rows], values[self.rows], self.k, states, values, self.rows)
        finally:
            _C.set_search_path("auto")


def _rel_error(got: Tensor, exact: Tensor) -> float:
    radius, exact = got.to(torch.float64), exact.to(torch.float64)
    error = (radius - exact).abs() / exact.clamp(min=torch.finfo(torch.float32).tiny)
    return float(torch.where(radius == exact, 0.0, error).max())


# --- Measuring --------------------------------------------------------------------------------------------------------

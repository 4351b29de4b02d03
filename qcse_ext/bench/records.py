"""What an implementation answers, what is recorded about it, and why one takes no part."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

__all__ = ["Answer", "NotCaptured", "Record", "Solver", "Unavailable", "plain", "reason"]


class Unavailable(Exception):
    """Why an implementation takes no part."""


class NotCaptured(Exception):
    """Why a call can't be timed in a CUDA graph."""


def reason(error: Exception) -> str:
    """Its first line: a foreign package may put a whole log into an error."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, NotCaptured):
        return f"can't be captured in a CUDA graph: {lines[0]}"
    known = isinstance(error, Unavailable | torch.OutOfMemoryError)
    return lines[0] if known else f"{type(error).__name__}: {lines[0]}"


class Answer(NamedTuple):
    """Of all rows, as arrays or tensors. `count` and `indices` (neighbours, which may include the row itself) only from
    implementations that give them."""

    radius: Any
    count: Any = None
    indices: Any = None


Solver = Callable[[], Answer]


@dataclass
class Record:
    """One line of results. What is said about the answer is said on 512 random rows, against the CPU's all-pairs search
    (on all rows where there are fewer)."""

    implementation: str
    device: str  # "cpu", or the GPU's name
    threads: int
    data: str
    n: int
    dim: int
    k: int
    dtype: str
    median_ms: float  # of one call
    spread_ms: float  # between the quartiles
    runs: int
    exact: bool  # max_rel_error is 0, and the count, of an implementation of ours, is the judge's
    max_rel_error: float  # of the radius, against the exact one of the same problem (joint or states alone)
    metric: str  # "joint" or "states"
    clock: str  # "wall", "cpu", or "events" on a GPU
    #: Memory that the first run added at most, in MB of 10^6 bytes: resident memory, None where the system does not
    #: tell; on a GPU what torch allocated there.
    peak_mb: float | None = None
    timing: str = "eager"  # or "graph": one call's share of the replay of a CUDA graph that holds several
    cache: str = "warm"  # or "cold": the inputs come from the GPU's memory
    commit: str | None = None
    recall: float | None = None  # see Judge.recall; None without indices


def plain(record: Record) -> dict[str, Any]:
    """For JSON, which has neither infinities nor NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(record).items()}

"""Where the parts of a run lie. It imports nothing that takes long, for commands that only look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def seed_folders(out: Path, seeds: Sequence[int]) -> list[Path]:
    """One run folder per seed: `out` itself, or its sub-folders where there are several."""
    return [out] if len(seeds) == 1 else [out / f"seed{seed}" for seed in seeds]


def log_of(out: Path) -> Path:
    """The file beside a run folder that gets what its process says, where another process started it."""
    return out.with_name(out.name + ".log")

"""Checkpoints: plain data, written atomically, read with `weights_only=True`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError

FORMAT = 1
NAME = "checkpoint.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) so that `path` holds the old or the new one whole,
    whenever the process or the machine stops."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; CheckpointError where there is none, or it is damaged or of another format."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint: {path} does not exist; expected the checkpoint of a qcse run folder")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds; all mean that this file is not a checkpoint
        raise CheckpointError(
            f"checkpoint: {path} cannot be read ({error}); expected a file written by qcse"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        got = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"checkpoint: {path} has format {got}, this version of qcse reads format {FORMAT}")
    return state

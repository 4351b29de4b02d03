"""Checkpoints: plain data, written atomically, read with `weights_only=True`.

A run's checkpoint is one file plus, for a long online phase, segments: files of SEGMENT transitions each that are
written once. Without them each checkpoint would write the whole online buffer again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .buffer import ReplayBuffer
from .errors import CheckpointError

FORMAT = 1
NAME = "checkpoint.pt"
SEGMENT = 16_384


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
    except Exception as error:  # torch raises many kinds; all mean that this file is not a checkpoint of ours
        # torch's own text would advise to load it as code.
        raise CheckpointError(
            f"checkpoint: {path} cannot be read ({type(error).__name__}); it is damaged or was not written by qcse. "
            "Restore it, or start a new run"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        got = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"checkpoint: {path} has format {got}, this version of qcse reads format {FORMAT}")
    return state


def save_buffer(folder: Path, buffer: ReplayBuffer, settled: int) -> dict[str, Any]:
    """The online buffer's part of a checkpoint.

    Args:
        folder: the run folder; segments go to its sub-folder buffer/.
        settled: transitions before this number will not change any more.
    """
    # A smaller ring could overwrite a segment's transitions before they are written.
    segments = range(_oldest(buffer) // SEGMENT, settled // SEGMENT) if buffer.capacity >= 4 * SEGMENT else range(0)
    for number in segments:
        path = _segment(folder, number)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            save(path, {"columns": buffer.rows_of(number * SEGMENT, (number + 1) * SEGMENT)})
    first = max(segments.stop * SEGMENT, _oldest(buffer))
    rows = buffer.rows_of(first, buffer.added)
    return {"added": buffer.added, "segments": [segments.start, segments.stop], "first": first, "rows": rows}


def load_buffer(folder: Path, buffer: ReplayBuffer, state: dict[str, Any]) -> None:
    """The inverse of `save_buffer`."""
    buffer.added = state["added"]
    for number in range(*state["segments"]):
        buffer.restore(number * SEGMENT, load(_segment(folder, number), buffer.device)["columns"])
    buffer.restore(state["first"], state["rows"])


def drop_segments(folder: Path, state: dict[str, Any]) -> None:
    """Remove the segments that a checkpoint does not need: overwritten by the ring, or written after it."""
    for path in (folder / "buffer").glob("*.pt"):
        if int(path.stem) not in range(*state["segments"]):
            path.unlink()


def _oldest(buffer: ReplayBuffer) -> int:
    """Number of the oldest transition that the ring still holds."""
    return buffer.added - buffer.size


def _segment(folder: Path, number: int) -> Path:
    return folder / "buffer" / f"{number:06d}.pt"

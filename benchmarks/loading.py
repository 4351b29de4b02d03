"""Seconds and memory from a file of two million rows to a training device, against the memory of its arrays.

    python benchmarks/loading.py [--rows N] [--device cuda]

Each kind of file is generated, and loaded in a process of its own as `qcse train --algo cal_ql` does: read, checked
against the environment, fingerprinted, rewards and Monte-Carlo returns computed, moved to the device.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from qcse.config import TrainConfig, preset
from qcse.runs.trainer import Trainer

ENV, D, A, LENGTH = "HalfCheetah-v5", 17, 6, 1000
KINDS = ("gzip", "plain", "gzip, no next_observations")


def write(path: Path, kind: str, rows: int) -> None:
    """A file in D4RL's layout: random states in episodes of LENGTH rows."""
    random, episodes = np.random.default_rng(0), rows // LENGTH
    states = random.standard_normal((episodes, LENGTH + 1, D), dtype=np.float32)
    arrays = {
        "observations": states[:, :-1].reshape(-1, D),
        "next_observations": states[:, 1:].reshape(-1, D),
        "actions": random.uniform(-1, 1, (episodes * LENGTH, A)).astype(np.float32),
        "rewards": random.standard_normal(episodes * LENGTH, dtype=np.float32),
        "terminals": np.zeros(episodes * LENGTH, bool),
        "timeouts": np.arange(episodes * LENGTH) % LENGTH == LENGTH - 1,
    }
    if "no next" in kind:
        del arrays["next_observations"]
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip" if "gzip" in kind else None)


def peak() -> int:
    """The most memory that this process has had resident, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure(path: Path, device: str) -> None:
    """Print seconds, the arrays' bytes and the bytes that loading had resident beyond what the process had before."""

    def config(algo: str, dataset: Path | None) -> TrainConfig:
        made = preset(algo, ENV)
        made.dataset, made.device, made.online_buffer = dataset, device, 1000
        return made

    Trainer(config("sac", None), path.parent / "none", quiet=True)  # imports, libraries and networks are not counted
    before, started = peak(), time.perf_counter()
    trainer = Trainer(config("cal_ql", path), path.parent / "none", quiet=True)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    size = sum(column.nbytes for column in trainer.buffer.dataset.values())
    print(f"{seconds:.2f} s, arrays {size / 1e6:.0f} MB, peak {(peak() - before) / size:.2f} times that")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.device)
        sys.exit(0)
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            file = Path(folder) / "data.hdf5"
            write(file, kind, options.rows)
            command = [sys.executable, __file__, "--measure", str(file), "--device", options.device]
            print(f"{options.rows:,} rows, {kind}: ", end="", flush=True)
            subprocess.run(command, check=True)

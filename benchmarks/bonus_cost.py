"""What each bonus costs per update, beside the batch and against the whole online buffer.

    python benchmarks/bonus_cost.py

One seed, batches of 256 of which half are online, random transitions of HalfCheetah's sizes, critics of 256-256, one
CPU thread. Prints the median processor time of `IntrinsicReward.add_to`, which includes drawing the references and
their Q.
"""

from __future__ import annotations

import statistics
import time

import torch

from qcse.config import preset
from qcse.learn.agents import AGENTS
from qcse.learn.buffer import COLUMNS, ReplayBuffer
from qcse.learn.reward import IntrinsicReward
from qcse.learn.streams import Streams

STATE_DIM, ACTION_DIM, DATASET_ROWS, REPEATS = 17, 6, 1000, 7
CASES = [("qcse", "batch"), ("vcse", "batch"), ("se", "batch"), ("rnd", "batch"), ("qcse", "buffer"), ("se", "buffer")]


def columns(rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    tail = {"observations": (STATE_DIM,), "next_observations": (STATE_DIM,), "actions": (ACTION_DIM,)}
    return {name: torch.randn(rows, *tail.get(name, ()), generator=generator) for name in COLUMNS}


def milliseconds(bonus: str, references: str, online_rows: int) -> float:
    config = preset("sac", "HalfCheetah-v5", bonus=bonus)
    config.bonus.references = references  # type: ignore[assignment]
    streams, generator = Streams([0]), torch.Generator().manual_seed(0)
    agent = AGENTS["sac"](STATE_DIM, ACTION_DIM, config, streams)
    dataset = columns(DATASET_ROWS, generator)
    buffer = ReplayBuffer(dataset, 1, online_rows, STATE_DIM, ACTION_DIM, torch.device("cpu"))
    for name, column in columns(online_rows, generator).items():
        buffer.online[name].copy_(column.unsqueeze(0))
    buffer.added = online_rows
    reward = IntrinsicReward(config.bonus, agent, buffer, streams)
    reward.start_online()
    times = []
    for _ in range(REPEATS):
        batch = buffer.sample(streams, 256, 0.5)
        start = time.process_time()
        reward.add_to(batch)
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'bonus':<8}{'references':<12}{'online rows':>12}{'ms':>10}")
    for bonus, references in CASES:
        for rows in (10_000,) if references == "batch" else (1_000, 10_000, 100_000):
            print(f"{bonus:<8}{references:<12}{rows:>12,}{milliseconds(bonus, references, rows):>10.2f}", flush=True)


if __name__ == "__main__":
    main()

"""Does every algorithm learn? Small networks, few steps, the embedded Hopper data: a check, not a benchmark.

python benchmarks/learn.py [--out runs/learn] [--algos cql iql ...] [--workers 2] [--json FILE]

Each algorithm trains three seeds in one process: updates on the dataset, then environment steps. The same command
continues what was stopped. The table stands beside the behaviour policy's mean score; an algorithm falls short in a
phase where its mean score is not above twice the untrained policy's. Falling short is named, and is no error.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from qcse.config.plain import write_json
from qcse.data.sources import load_dataset
from qcse.data.tasks import embedded
from qcse.envs.scores import normalized_score
from qcse.learn.agents import AGENTS
from qcse.runs.launch import rows, run_all
from qcse.runs.machine import machine_facts
from qcse.runs.resources import Job, Resources

SEEDS = 3
OFFLINE, ONLINE = 20_000, 5_000
COMMON = f"""
    --env Hopper-v5 --seeds {SEEDS} --offline-steps {OFFLINE} --online-steps {ONLINE} --bonus none
    --batch-size 128 --normalize-observations --policy-lr 3e-4 --net.policy-hidden 64 64 --net.critic-hidden 64 64
    --learning-starts 250 --random-steps 0 --threads 1
    --eval-every 5000 --eval-episodes 10 --log-every 1000
"""
OWN = {  # beside what the presets say, whose sizes and update ratios are for larger machines
    "cql": "--cql.actions 4 --offline-fraction 0.5",
    "cal_ql": "--cql.actions 4",
    "rlpd": "--updates-per-step 4",
    # Its updates cost most; its preset's warm-up would take all of the online steps.
    "wsrl": f"--cql.actions 2 --offline-steps {OFFLINE // 4} --learning-starts 1000",
}
PHASES = ("untrained", "offline", "online")


def options(algo: str) -> list[str]:
    """Of `qcse train`; a later word overrules an earlier one."""
    return [*COMMON.split(), "--algo", algo, *OWN.get(algo, "").split()]


def scores(folder: Path) -> dict[str, list[float]]:
    """Each seed's score untrained, and at the end of each phase."""
    found: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for seed in range(SEEDS):
        first, *later = rows(folder / f"seed{seed}" / "eval.csv")
        found["untrained"].append(float(first["normalized_score"]))
        for phase in PHASES[1:]:
            found[phase].append([float(row["normalized_score"]) for row in later if row["phase"] == phase][-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/learn"))
    parser.add_argument("--algos", nargs="+", choices=list(AGENTS), default=list(AGENTS))
    parser.add_argument("--workers", type=int, default=1, help="processes at a time, of one thread each")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = ["--dataset", str(embedded("hopper-replay.hdf5"))]
    jobs = [Job(arguments.out / algo, (*options(algo), *data), 0, OFFLINE + ONLINE) for algo in arguments.algos]
    run_all(jobs, Resources(arguments.workers, cores=arguments.workers))
    returns = load_dataset(embedded("hopper-replay.hdf5"), progress=False).episode_returns()
    behaviour = float(normalized_score("hopper", returns).mean())
    print(
        f"\nHopper-v5, normalised score: mean (least to greatest) of {SEEDS} seeds, untrained, after up to {OFFLINE} "
        f"updates offline, after {ONLINE} online steps\n"
        f"behaviour policy, mean over the data's episodes: {behaviour:.1f}"
    )
    print(f"{'algorithm':<11}{'untrained':>10}{'offline':>20}{'online':>20}  above twice the untrained policy?")
    records = []
    for algo in arguments.algos:
        found = scores(arguments.out / algo)
        mean = {phase: statistics.mean(values) for phase, values in found.items()}
        short = [phase for phase in PHASES[1:] if mean[phase] <= 2 * mean["untrained"]]
        cells = [f"{mean[phase]:.1f} ({min(found[phase]):.1f} to {max(found[phase]):.1f})" for phase in PHASES[1:]]
        figures = f"{mean['untrained']:>10.1f}" + "".join(f"{cell:>20}" for cell in cells)
        print(f"{algo:<11}{figures}  {'falls short ' + ' and '.join(short) if short else 'yes'}")
        record = {"algo": algo, "mean": mean, "seeds": found, "falls_short": short, "options": " ".join(options(algo))}
        records.append(record)
    if arguments.json:
        write_json(arguments.json, {"machine": machine_facts(), "behaviour": behaviour, "records": records})
        print(f"wrote {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

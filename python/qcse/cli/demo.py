"""`qcse demo`: offline-to-online on the embedded Hopper dataset, with and without the bonus, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ..config.commands import DemoArgs, SweepArgs
from ..config.ranges import check_least
from ..data.tasks import embedded
from ..report import report
from ..report.runs import read_run
from ..runs.folder import run_folders, stored_config
from ..runs.sweep import sweep
from .train import configuration

# Small enough for a few minutes on two cores: small networks, few sampled actions. A weak conservative term, because
# the data hold exploration of their own, and half of each online batch from the dataset.
OPTIONS = """
    --normalize-observations --batch-size 128 --offline-fraction 0.5 --policy-lr 3e-4
    --net.policy-hidden 128 128 --net.critic-hidden 128 128 --cql.actions 4 --cql.alpha 0.1
    --eval-episodes 10 --eval-every 1000 --log-every 250
"""


def demo(args: DemoArgs) -> None:
    """Pre-train once, fine-tune both arms side by side, then print the comparison and write the report."""
    check_least(args, 1, "offline_steps", "online_steps", "seeds")
    started = time.monotonic()
    print(
        f"Hopper-v5, {args.algo}, {args.seeds} seeds: {args.offline_steps} updates on the embedded dataset, then "
        f"{args.online_steps} environment steps, without and with the bonus.\n"
        "A small demonstration: small networks, few steps, few seeds. Its scores say that the pipeline learns, not "
        "which arm is better."
    )
    arms = SweepArgs(
        out=args.out,
        algos=(args.algo,),
        bonuses=("none", "qcse"),
        envs=("Hopper-v5",),
        datasets=(embedded("hopper-replay.hdf5"),),
        seeds=args.seeds,
        batch_seeds=args.seeds,
        offline_steps=args.offline_steps,
        online_steps=args.online_steps,
        workers=2,
        estimate=False,
    )

    def finish(runs: Sequence[Path], out: Path) -> None:
        _table(runs)
        print(report(runs, out))

    sweep(arms, OPTIONS.split(), {}, configuration, finish)
    print(
        f"\ndone in {time.monotonic() - started:.0f} s. The full protocol on your own data:\n"
        "  qcse train --algo cal_ql --env Hopper-v5 --dataset hopper-medium-replay.hdf5 --bonus qcse\n"
        "(250,000 updates offline and 250,000 steps online; several seeds; compare with --bonus none)"
    )


def _table(runs: Sequence[Path]) -> None:
    """Scores of the untrained, the offline and the fine-tuned policy of each run."""
    print("\nnormalised score (0: random policy, 100: expert; D4RL's constants)")
    print(f"{'bonus':<8}{'seed':>5}{'untrained':>12}{'offline':>10}{'fine-tuned':>12}{'best online':>13}")
    for run in runs:
        bonus = stored_config(run).bonus.kind
        for one in map(read_run, run_folders(run)):
            untrained = f"{one.values[0]:.1f}" if one.steps[0] == 0 else "-"  # where the pre-training is still there
            print(f"{bonus:<8}{one.seed:>5}{untrained:>12}{one.offline_end:>10.1f}{one.last:>12.1f}{one.best:>13.1f}")
    print()

"""`qcse demo`: offline-to-online on the embedded Hopper dataset, with and without the bonus, side by side."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..config.commands import DemoArgs
from ..config.ranges import check_least
from ..data.tasks import embedded
from ..files import own
from ..report import report
from ..runs.folder import check_folder, run_folders
from ..runs.launch import rows, run_all

# Small enough for a few minutes on two cores: small networks, few sampled actions. A weak conservative term, because
# the data hold exploration of their own, and half of each online batch from the dataset.
OPTIONS = """
    --env Hopper-v5 --normalize-observations --batch-size 128 --offline-fraction 0.5 --policy-lr 3e-4
    --net.policy-hidden 128 128 --net.critic-hidden 128 128 --cql.actions 4 --cql.alpha 0.1
    --eval-episodes 10 --eval-every 1000 --log-every 250 --threads 1
"""


def demo(args: DemoArgs) -> int:
    """Run both arms for each seed, two processes at a time, then print the comparison and write the report."""
    check_least(args, 1, "offline_steps", "online_steps", "seeds")
    check_folder(args.out)
    started = time.monotonic()
    print(
        f"Hopper-v5, {args.algo}, {args.seeds} seeds: {args.offline_steps} updates on the embedded dataset, then "
        f"{args.online_steps} environment steps, without and with the bonus.\n"
        "A small demonstration: small networks, few steps, few seeds. Its scores say that the pipeline learns, not "
        "which arm is better."
    )
    options = [
        *OPTIONS.split(),
        "--algo",
        args.algo,
        "--dataset",
        str(embedded("hopper-replay.hdf5")),
        "--seeds",
        str(args.seeds),
    ]
    options += ["--offline-steps", str(args.offline_steps), "--online-steps", str(args.online_steps)]
    arms = {args.out / f"{args.algo}-{bonus}": bonus for bonus in ("none", "qcse")}
    runs = {out: [*options, "--bonus", bonus] for out, bonus in arms.items()}
    with own(args.out):
        run_all(runs, args.offline_steps + args.online_steps, workers=min(2, os.cpu_count() or 1))
        _table(arms)
        print(report(list(arms), args.out))
    print(
        f"\ndone in {time.monotonic() - started:.0f} s. The full protocol on your own data:\n"
        "  qcse train --algo cal_ql --env Hopper-v5 --dataset hopper-medium-replay.hdf5 --bonus qcse\n"
        "(250,000 updates offline and 250,000 steps online; several seeds; compare with --bonus none)"
    )
    return 0


def _table(arms: dict[Path, str]) -> None:
    """Scores of the untrained, the offline and the fine-tuned policy of each run."""
    print("\nnormalised score (0: random policy, 100: expert; D4RL's constants)")
    print(f"{'bonus':<8}{'seed':>5}{'untrained':>12}{'offline':>10}{'fine-tuned':>12}{'best online':>13}")
    for out, bonus in arms.items():
        for folder in run_folders(out):
            scores = [(row["phase"], float(row["normalized_score"])) for row in rows(folder / "eval.csv")]
            offline = [score for phase, score in scores if phase == "offline"]
            online = [score for phase, score in scores if phase == "online"]
            figures = f"{offline[0]:>12.1f}{offline[-1]:>10.1f}{online[-1]:>12.1f}{max(online):>13.1f}"
            print(f"{bonus:<8}{folder.name.removeprefix('seed') if folder != out else 0:>5}{figures}")
    print()

"""The commands that need few words: eval, report, collect, demo, sweep, bench."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..config.commands import BenchArgs, CollectArgs, DemoArgs, EvalArgs, MazeCollectArgs, ReportArgs, SweepArgs
from ..envs import trust
from ..envs.names import is_maze
from ..errors import printable
from .arguments import parse


def evaluate(argv: list[str]) -> int:
    args = parse(EvalArgs, "eval", argv)
    trust.from_command_line(args.trust_env_spec)
    from ..config.plain import json_text
    from ..envs.scores import normalized_score
    from ..runs.policy import StoredPolicy

    policy = StoredPolicy(args.run, args.device, args.threads)
    result = policy.evaluate(args.episodes, args.seed)
    returns, family = result.returns, policy.experiment.task.family
    record = {
        "run": str(args.run),
        "env": policy.config.env,
        "step": policy.step,
        "episodes": args.episodes,
        "seed": args.seed,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "normalized_score": float(normalized_score(family, returns.mean())),
        "episode_length": float(result.lengths.mean()),
    }
    if result.successes is not None:
        record["success_rate"] = float(result.successes.mean())
    if args.json:
        print(json_text(record))
    else:
        print(
            f"{args.run} at step {record['step']}, {args.episodes} episodes of {record['env']}: return "
            f"{record['return_mean']:.1f} +- {record['return_std']:.1f}, normalised score "
            f"{record['normalized_score']:.1f}, length {record['episode_length']:.0f}"
            + (f", success {record['success_rate']:.0%}" if "success_rate" in record else "")
        )
    return 0


def report(argv: list[str]) -> int:
    args = parse(ReportArgs, "report", argv)
    from ..report import report

    print(report(list(args.runs), args.out))
    return 0


def collect(argv: list[str]) -> int:
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--env", default="")
    peek.add_argument("--resume", type=Path)
    known = peek.parse_known_args(argv)[0]
    env, folder = known.env, None
    if known.resume is not None:
        from ..collect.recording import stored_env, stored_options, unfinished

        folder = unfinished(known.resume)
        env = stored_env(folder)
    kind: type[MazeCollectArgs] | type[CollectArgs] = MazeCollectArgs if is_maze(env) else CollectArgs
    args = parse(kind, "collect", argv, None if folder is None else stored_options(folder, kind))
    trust.from_command_line(args.trust_env_spec, known.env or None)
    if folder is not None:
        trust.check_run(folder, args.env)
    from ..runs.trainer import RunInterrupted

    try:
        if isinstance(args, MazeCollectArgs):
            from ..collect.maze import collect_maze

            written = [collect_maze(args)]
        else:
            from ..collect.sac import collect

            written = collect(args)
    except RunInterrupted:
        return 130
    for path in written:
        print(f"wrote {path}")
    return 0


def demo(argv: list[str]) -> int:
    args = parse(DemoArgs, "demo", argv)
    from .demo import demo

    with _resumable("demo", argv):
        demo(args)
    return 0


@contextmanager
def _resumable(command: str, argv: Sequence[str]) -> Iterator[None]:
    """Say, where Ctrl-C or a signal ends the block, how it is continued."""
    try:
        yield
    except KeyboardInterrupt:
        again = printable(shlex.join(["qcse", command, *argv]))
        print(f"stopped; what was trained is saved. The same command goes on: {again}", file=sys.stderr)
        raise


def sweep(argv: list[str]) -> int:
    own, extra = argv, list[str]()
    if "--" in argv:
        own, extra = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    peek = argparse.ArgumentParser(prog="qcse sweep", add_help=False, allow_abbrev=False)
    peek.add_argument("--file", type=Path)
    path = peek.parse_known_args(own)[0].file
    given, grid = dict[str, Any](), dict[str, list[Any]]()
    if path is not None:
        from ..runs.sweep import read_file

        given, before, grid = read_file(path)
        extra = [*before, *extra]
    args = parse(SweepArgs, "sweep", own, SweepArgs(**given))
    from ..report import report
    from ..runs.grid import from_words
    from ..runs.sweep import sweep
    from .train import configuration

    def finish(runs: Sequence[Path], out: Path) -> None:
        print(report(runs, out / "report"))

    with nullcontext() if args.dry_run else _resumable("sweep", argv):
        sweep(args, extra, grid | from_words(args.grid), configuration, finish)
    return 0


def bench(argv: list[str]) -> int:
    args = parse(BenchArgs, "bench", argv)
    from ..bench import bench

    bench(args)
    return 0

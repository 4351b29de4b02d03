"""The command line: qcse train | eval | report | sweep | collect | demo | bench | doctor."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from . import trust
from .config import (
    COUNT,
    NOT_NEGATIVE,
    NUMBER,
    SEED,
    STEPS,
    THREADS,
    WIDTH,
    Algo,
    BonusKind,
    TrainConfig,
    from_dict,
    has_preset,
    preset,
    to_dict,
    validate,
)
from .errors import ConfigError, QcseError, printable
from .signals import end_with_parent
from .trust import TrustEnvSpec
from .typed import Range, check_ranges

SUMMARY = """usage: qcse COMMAND [OPTIONS]

Offline-to-online reinforcement learning with a Q-conditioned state entropy bonus.

commands:
  train     pre-train on a dataset, fine-tune online; --resume continues a run
  eval      evaluate the policy of a run
  report    compare runs: table, learning curves (PNG), one HTML page
  data      tasks and datasets: list, info, check, convert, fetch
  sweep     algorithms x bonuses x tasks x seeds, resumable, with a report
  collect   write datasets in D4RL's layout: train SAC, or lead a body through a maze
  demo      a small offline-to-online run with and without the bonus, and its report
  bench     updates per second of the training step, side by side with CORL's
  doctor    what is installed, which kernels are built, what is missing

`qcse COMMAND --help` lists a command's options."""


@dataclass
class TrainArgs(TrainConfig):
    """Pre-train on a dataset, then fine-tune online. Defaults shown are those of the algorithm's and environment's
    preset, and of the bonus: give --algo, --env and --bonus together with --help to see them."""

    resume: Path | None = None
    """Continue the run in this folder, with its stored options."""
    trust_env_spec: TrustEnvSpec = False


@dataclass
class EvalArgs:
    """Evaluate the deterministic policy of a run at its last checkpoint."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    episodes: int = 20
    """Episodes."""
    seed: int = 0
    """First episode's seed; episode i starts from seed + i."""
    device: str = "auto"
    """cpu, cuda or auto; it need not be the one that the run was trained on."""
    threads: int | None = None
    """torch's CPU threads. None: one per core."""
    trust_env_spec: TrustEnvSpec = False
    json: bool = False
    """Print one JSON object instead of a line."""


@dataclass
class ReportArgs:
    """Compare runs: a table, learning curves with intervals, one self-contained HTML page."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or folders that hold some."""
    out: Path = Path("runs/report")
    """Folder for report.html and the pictures."""


@dataclass
class CollectArgs:
    """Train SAC from scratch and write two datasets in D4RL's layout: NAME-replay.hdf5, everything it saw, and
    NAME-policy.hdf5, stochastic rollouts of its final policy. Both hold qpos and qvel of the state before each step.
    In the mazes of this package (--env qcse/pointmaze-umaze-v0, qcse/maze2d-..., qcse/antmaze-...) a body is led along
    waypoints instead; --help together with such an --env shows those options."""

    env: str = "Hopper-v5"
    """Gymnasium environment id."""
    out: Path = Path("data")
    """Folder for the datasets and, in a sub-folder, SAC's own run."""
    name: str | None = None
    """First part of the file names. None: the environment's family, such as hopper."""
    steps: int = 100_000
    """Environment steps of SAC."""
    stop_return: float | None = None
    """Stop SAC once an evaluation reaches this mean return."""
    replay_rows: int | None = None
    """Keep only the last so many transitions of the replay, from an episode's start. None: all."""
    policy_rows: int = 100_000
    """Transitions of the final policy. 0: no such file."""
    learning_starts: int = 5000
    """Random steps before the first update."""
    eval_every: int = 5000
    """Steps between evaluations."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    seed: int = 0
    """Seed of every random stream."""
    threads: int | None = None
    """torch's CPU threads. None: one per core."""
    resume: Path | None = None
    """Go on with the unfinished recording in this folder, with its stored options."""
    finish: bool = False
    """With --resume: make datasets of what there is, record nothing more."""
    trust_env_spec: TrustEnvSpec = False


@dataclass
class DemoArgs:
    """Pre-train CQL on the embedded Hopper dataset and fine-tune it online, once without and once with the bonus."""

    out: Path = Path("runs/demo")
    """Folder for the runs and the report; an earlier demonstration in it is continued."""
    algo: Algo = "cql"
    """Algorithm of both runs."""
    offline_steps: int = 3000
    """Updates on the dataset."""
    online_steps: int = 9000
    """Environment steps of fine-tuning."""
    seeds: int = 2
    """Runs with and as many without the bonus, trained together."""


@dataclass
class SweepArgs:
    """Train algorithms x bonuses x tasks x seeds, several seeds in each process, and report. The same command continues
    a sweep that was stopped. What follows -- goes to every `qcse train`, for example -- --batch-size 128."""

    out: Path = Path("runs/sweep")
    """Folder for the runs, sweep.json and the report."""
    file: Path | None = None
    """TOML file with options of the same names (and extra = [...]); options given here win."""
    algos: tuple[Algo, ...] = ("cql", "cal_ql")
    """Algorithms."""
    bonuses: tuple[BonusKind, ...] = ("none", "qcse")
    """Bonuses."""
    envs: tuple[str, ...] = ()
    """Gymnasium environments."""
    datasets: tuple[Path, ...] = ()
    """One HDF5 file for each environment."""
    tasks: tuple[str, ...] = ()
    """Tasks by name (`qcse data list`), in place of or beside envs."""
    seeds: int = 4
    """Seeds of each combination."""
    first_seed: int = 0
    """The smallest of them."""
    batch_seeds: int = 4
    """Seeds trained together in one process."""
    offline_steps: int = 250_000
    """Updates on the dataset."""
    online_steps: int = 250_000
    """Environment steps of fine-tuning."""
    workers: int = 1
    """Processes at a time."""


@dataclass
class BenchArgs:
    """Updates per second of one training step, with and without the bonus, for one or more seeds at once; with
    --corl side by side with CORL's own update, interleaved in one process."""

    corl: Path | None = None
    """A checkout of CORL."""
    algos: tuple[Algo, ...] = ("cal_ql",)
    """Algorithms, with their own ensembles; with --corl cql and cal_ql only."""
    seeds: tuple[int, ...] = (1,)
    """Numbers of seeds trained in one step."""
    state_dim: int = 17
    """D (HalfCheetah's)."""
    action_dim: int = 6
    """A (HalfCheetah's)."""
    batch_size: int = 256
    """Transitions in an update."""
    actions: int = 10
    """cql.actions."""
    policy_hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the policy's hidden layers."""
    critic_hidden: tuple[int, ...] = (256, 256)
    """Widths of the critics' hidden layers."""
    device: str = "auto"
    """cpu, cuda or auto."""
    threads: int | None = None
    """torch's CPU threads. None: one per core."""
    precisions: tuple[Literal["float32", "tf32", "bf16"], ...] = ("float32",)
    """Our update in each of these (train's precision)."""
    cuda_graph: Literal["auto", "off"] = "auto"
    """As train's."""
    env: str | None = None
    """Also count this environment's steps per second."""
    profile: bool = False
    """Also print where the time of each candidate goes."""
    rounds: int = 15
    """Interleaved rounds; medians over them are printed."""
    updates: int = 2
    """Updates of each candidate in a round; rlpd's policy moves at one of 20 only, wsrl's at one of 4."""
    warm_up: int = 3
    """Updates before the first round."""
    json: Path | None = None
    """File for the records and the machine's facts."""


# What the numbers of all commands but train may be; they say the rest themselves, such as which must not be 0.
RANGES = {
    **dict.fromkeys(("steps", "offline_steps", "online_steps", "policy_rows", "learning_starts", "warm_up"), STEPS),
    **dict.fromkeys(("replay_rows", "eval_every"), COUNT),
    **dict.fromkeys(("seed", "first_seed"), SEED),
    **dict.fromkeys(("seeds", "batch_seeds", "workers"), Range(1, 10_000)),
    **dict.fromkeys(("episodes", "actions", "rounds", "updates"), Range(1, 1_000_000)),
    **dict.fromkeys(("hidden", "policy_hidden", "critic_hidden", "state_dim", "action_dim"), WIDTH),
    "batch_size": Range(1, 10**8),
    "stop_return": NUMBER,
    "noise": NOT_NEGATIVE,
    **dict.fromkeys(("rows", "cells"), COUNT),
    "threads": THREADS,
}

Arguments = TypeVar("Arguments")


def parse(kind: type[Arguments], command: str, argv: list[str], default: Arguments | None = None) -> Arguments:
    """A command's options; ConfigError where a number is not finite or out of range."""
    args = tyro.cli(kind, args=argv, prog=f"qcse {command}", **({} if default is None else {"default": default}))
    check_ranges(args, RANGES)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(SUMMARY)
        return 0 if args else 2
    if args[0] == "--version":
        from . import __version__

        print(f"qcse {__version__}")
        return 0
    command = COMMANDS.get(args[0])
    if command is None:
        print(f"qcse: unknown command {args[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        _refuse_empty_words(args)
        code = command(args[1:])
        sys.stdout.flush()
        return code
    except QcseError as error:
        message = str(error)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno in BUGS and error.filename is None:
            raise
        message = _told(error)
    except MemoryError:
        message = OUT_OF_MEMORY
    except RuntimeError as error:
        if not any(words in str(error) for words in ("can't allocate memory", "out of memory")):  # torch's
            raise
        message = OUT_OF_MEMORY
    except KeyboardInterrupt:
        print(f"qcse {args[0]}: interrupted", file=sys.stderr)
        return 130
    print(f"qcse {args[0]}:", "\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    return 1


OUT_OF_MEMORY = (
    "memory is exhausted; expected less of it to be needed: a smaller --online-buffer, --batch-size, fewer seeds, or a "
    "smaller dataset"
)
# Errors of the system that no user can cause or mend, where no file is named.
BUGS = (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTTY, errno.ESPIPE, errno.ECHILD)
REMEDIES = {
    errno.ENOSPC: "make room, or name another folder",
    errno.EDQUOT: "make room, or name another folder",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "name another, or change its permissions",
    errno.EPERM: "name another, or change its permissions",
}


def _refuse_empty_words(args: Sequence[str]) -> None:
    """An empty word is a shell's variable that is not set. As a path it would be the folder we stand in."""
    for before, word in zip(["", *args], args, strict=False):
        if word == "" or (word.startswith("--") and word.endswith("=")):
            option = word.removesuffix("=") or (before if before.startswith("-") else "arguments")
            raise ConfigError(f"{option}: got an empty name, expected some text (is a variable of the shell not set?)")


def _told(error: OSError) -> str:
    """An error of the system in a line: the file, or what was being done, the reason, and what to do."""
    if error.filename is not None:
        where = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    else:
        codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        own = [code for code in codes if Path(code.co_filename).parent == Path(__file__).parent][1:]  # without main
        where = f"{Path(own[-1].co_filename).stem}, {own[-1].co_name}" if own else "a file"
    reason = error.strerror or (str(error) or type(error).__name__).splitlines()[0]
    remedy = REMEDIES.get(error.errno or 0)
    return f"{where}: {reason}" + (f"; {remedy}" if remedy else "")


def _train(argv: list[str]) -> int:
    end_with_parent()
    peek = argparse.ArgumentParser(prog="qcse train", add_help=False, allow_abbrev=False)
    peek.add_argument("--algo", default="cal_ql")
    peek.add_argument("--env")
    peek.add_argument("--task")
    peek.add_argument("--preset")
    peek.add_argument("--dataset", default="")
    peek.add_argument("--bonus", default="none")
    peek.add_argument("--resume", type=Path)
    peek.add_argument(trust.SWITCH, action="store_true", dest="trust")
    known, _ = peek.parse_known_args(argv)
    trust.from_command_line(known.trust, known.env)

    from . import checkpoint, train
    from .download import task_file
    from .files import own
    from .tasks import find_task

    task = None if known.task is None else find_task(known.task)
    of_task = task is not None and not known.env and has_preset(known.algo, task.env_id, task.preset)
    kind = known.preset or (task.preset if of_task else "default")
    recorded = known.dataset if known.dataset.startswith("minari:") else "Hopper-v5"
    defaults = preset(known.algo, known.env or (task.env_id if task else recorded), kind, known.bonus)
    if task is not None:
        defaults.task, defaults.dataset = task.name, task.path
    if known.resume is not None:
        defaults = train.stored_config(known.resume)
        trust.check_run(known.resume, defaults.env)
    values = {f.name: getattr(defaults, f.name) for f in dataclasses.fields(TrainConfig)}
    parsed = tyro.cli(TrainArgs, args=argv, prog="qcse train", default=TrainArgs(**values))
    asked = {name: value for name, value in to_dict(parsed).items() if name not in ("resume", "trust_env_spec")}
    config = from_dict(asked)
    validate(config)

    if task is not None and config.dataset == task.path:
        task_file(task)
    out = parsed.resume or train.folder_of(config)
    with ExitStack() as stack:
        if parsed.resume is None:
            train.check_folder(out)
            stack.enter_context(own(out))
            train.check_new(out)
            trainer = train.Trainer(config, out)
        else:
            group = train.group_of(out)
            if group is not None:
                raise ConfigError(
                    f"resume: {out} was trained with other seeds; continue them all with --resume {group}"
                )
            stack.enter_context(own(out))
            train.refuse_contradictions(train.stored_config(out), config, out)
            # A run that was stopped before its first checkpoint has nothing to lose and starts again.
            trainer = train.Trainer(config, out, checkpoint.load_run(out))
            if trainer.finished:
                print(f"{out} is complete ({trainer.step} steps); nothing to do")
                return 0
        try:
            trainer.run()
        except train.RunInterrupted as stop:
            print(f"{stop}; continue with: qcse train --resume {trainer.out}", file=sys.stderr)
            return 130
    print(f"run complete: {trainer.out}; compare runs with `qcse report {trainer.out} ...`")
    return 0


def _eval(argv: list[str]) -> int:
    args = parse(EvalArgs, "eval", argv)
    trust.from_command_line(args.trust_env_spec)
    from . import train
    from .datasets import normalized_score
    from .envs import Evaluator
    from .log import json_text

    trainer, position = train.load_policy(args.run, args.device, args.threads)
    if len(trainer.seeds) > 1 and args.run.resolve() == trainer.out.resolve():
        folders = ", ".join(str(folder) for folder in trainer.folders)
        raise ConfigError(f"run: {args.run} holds several runs; name one of {folders}")
    # Every seed's policy is asked, for they are evaluated in one product; one seed's episodes count.
    evaluator = Evaluator(trainer.config.env, args.episodes * len(trainer.seeds))
    result = trainer.evaluate(evaluator, [args.seed] * len(trainer.seeds))
    part = slice(position * args.episodes, (position + 1) * args.episodes)
    returns, lengths = result.returns[part], result.lengths[part]
    record = {
        "run": str(args.run),
        "env": trainer.config.env,
        "step": trainer.step,
        "episodes": args.episodes,
        "seed": args.seed,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "normalized_score": float(normalized_score(trainer.task.family, returns.mean())),
        "episode_length": float(lengths.mean()),
    }
    if result.successes is not None:
        record["success_rate"] = float(result.successes[part].mean())
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


def _report(argv: list[str]) -> int:
    args = parse(ReportArgs, "report", argv)
    from .report import report

    print(report(list(args.runs), args.out))
    return 0


def _collect(argv: list[str]) -> int:
    from .collect_maze import MazeCollectArgs, collect_maze, is_maze
    from .recording import stored_env, stored_options, unfinished
    from .train import RunInterrupted

    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--env", default="")
    peek.add_argument("--resume", type=Path)
    known = peek.parse_known_args(argv)[0]
    folder = None if known.resume is None else unfinished(known.resume)
    env = known.env if folder is None else stored_env(folder)
    kind = MazeCollectArgs if is_maze(env) else CollectArgs
    args = parse(kind, "collect", argv, None if folder is None else stored_options(folder, kind))
    trust.from_command_line(args.trust_env_spec, known.env or None)
    if folder is not None:
        trust.check_run(folder, args.env)
    try:
        if isinstance(args, MazeCollectArgs):
            written = [collect_maze(args)]
        else:
            from .collect import collect

            written = collect(args)
    except RunInterrupted:
        return 130
    for path in written:
        print(f"wrote {path}")
    return 0


def _data(argv: list[str]) -> int:
    from .data_cli import data

    return data(argv)


def _demo(argv: list[str]) -> int:
    args = parse(DemoArgs, "demo", argv)
    from .demo import demo

    return demo(args)


def _sweep(argv: list[str]) -> int:
    own, extra = argv, []
    if "--" in argv:
        own, extra = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    from .sweep import read_file, sweep

    peek = argparse.ArgumentParser(prog="qcse sweep", add_help=False, allow_abbrev=False)
    peek.add_argument("--file", type=Path)
    path = peek.parse_known_args(own)[0].file
    given = {} if path is None else read_file(path)
    extra = [*map(str, given.pop("extra", ())), *extra]
    args = parse(SweepArgs, "sweep", own, SweepArgs(**given))
    return sweep(args, extra)


def _bench(argv: list[str]) -> int:
    args = parse(BenchArgs, "bench", argv)
    from .bench import bench

    return bench(args)


def _doctor(argv: list[str]) -> int:
    from .doctor import doctor

    return doctor(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "eval": _eval,
    "report": _report,
    "data": _data,
    "sweep": _sweep,
    "collect": _collect,
    "demo": _demo,
    "bench": _bench,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())

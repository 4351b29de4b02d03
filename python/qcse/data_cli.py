"""`qcse data`: list tasks, look into datasets, check them against environments, convert, fetch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from . import trust
from .cli import parse
from .datasets import REFERENCE_SCORES, task_family
from .errors import ConfigError
from .log import json_text
from .tasks import find_task, matching

SUMMARY = """usage: qcse data COMMAND [OPTIONS]

commands:
  list      the tasks that `qcse train --task` knows
  info      what is in a dataset: episodes, returns, scores, flags, damage; and a picture
  check     does an environment's physics match a dataset?
  convert   between D4RL's layout and Minari
  fetch     find or download the dataset of a task

`qcse data COMMAND --help` lists a command's options."""


@dataclass
class ListArgs:
    """The tasks of D4RL and the embedded ones: environment, sizes, limit, reference scores, preset, data."""

    words: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORDS")] = ""
    """Only tasks whose name contains this."""
    json: bool = False
    """Print one JSON object per task, with address and observation layout."""


@dataclass
class InfoArgs:
    """What is in a dataset: episodes, lengths, returns, normalised scores, flags, NaN, duplicates; and a picture."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """File in D4RL's layout, or minari:ID."""
    task: str | None = None
    """Task, or environment, whose reference scores apply. None: the environment that the data names."""
    picture: Path | None = None
    """PNG with the histograms of returns and lengths and a projection of the states. None: no picture."""
    json: bool = False
    """Print one JSON object."""


@dataclass
class CheckArgs:
    """Put an environment to stored states, repeat the stored actions and report how far it ends up from the stored next
    states. Exit code 1 where the physics differ."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File in D4RL's layout with infos/qpos and infos/qvel."""
    env: str | None = None
    """Gymnasium environment id. None: the one that the file names, as those of `qcse collect` do."""
    rows: int = 1000
    """Transitions to repeat, evenly spread over the file."""
    trust_env_spec: trust.TrustEnvSpec = False


@dataclass
class ConvertArgs:
    """Convert between D4RL's layout and Minari."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """File in D4RL's layout, or minari:ID."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """File to write, or minari:ID, such as minari:hopper/replay-v0."""
    env: str | None = None
    """Environment to note down. None: the one that the data names."""
    trust_env_spec: trust.TrustEnvSpec = False


@dataclass
class FetchArgs:
    """Find the dataset of a task in D4RL's cache folder, or download it there; prints its path."""

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    """Name of the task."""


def data(argv: Sequence[str]) -> int:
    """Entry point of `qcse data`; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(SUMMARY)
        return 0 if argv else 2
    command, rest = argv[0], list(argv[1:])
    if command not in COMMANDS:
        print(f"qcse data: unknown command {command!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[command](rest)


def _list(argv: list[str]) -> int:
    args = parse(ListArgs, "data list", argv)
    tasks = matching(args.words)
    if not tasks:
        find_task(args.words)  # says which are near
    if args.json:
        for task in tasks:
            print(json_text(task.__dict__ | {"path": task.path, "here": task.path.exists()}))
        return 0
    width = max(len(task.name) for task in tasks)
    heading = f"{'environment':<26} {'obs':>4} {'act':>3} {'limit':>5}  {'reference scores':<22} preset   data"
    print(f"{'task':<{width}}  {heading}")
    for task in tasks:
        scores = f"{task.reference[0]:.6g} to {task.reference[1]:.6g}"
        where = "embedded" if not task.url else "here" if task.path.exists() else "to download"
        print(
            f"{task.name:<{width}}  {task.env_id:<26} {task.observation_dim:>4} {task.action_dim:>3} "
            f"{task.max_episode_steps:>5}  {scores:<22} {task.preset:<8} {where}"
        )
    print(f"{len(tasks)} tasks; qcse train --task NAME")
    return 0


def _info(argv: list[str]) -> int:
    args = parse(InfoArgs, "data info", argv)
    from .inspection import describe, draw

    if args.picture is not None and args.picture.suffix.lower() != ".png":
        raise ConfigError(f"picture: got {args.picture}; expected a name that ends in .png")
    family = None
    if args.task is not None:
        family = task_family(args.task)
        if family not in REFERENCE_SCORES:
            family = task_family(find_task(args.task).env_id)
    facts, transitions = describe(args.dataset, family)
    print(json_text(facts.as_dict()) if args.json else facts)
    if args.picture is not None:
        path = draw(transitions, facts, args.picture)
        if not args.json:
            print(f"{'picture':<18} {path}")
    return 0


def _check(argv: list[str]) -> int:
    args = parse(CheckArgs, "data check", argv)
    trust.from_command_line(args.trust_env_spec, args.env)
    from .inspection import check_physics

    report = check_physics(args.file, args.env, args.rows)
    print(report)
    return 0 if report.matches else 1


def _convert(argv: list[str]) -> int:
    args = parse(ConvertArgs, "data convert", argv)
    trust.from_command_line(args.trust_env_spec, args.env)
    from .inspection import convert

    print(f"wrote {convert(args.source, args.target, args.env)}")
    return 0


def _fetch(argv: list[str]) -> int:
    args = parse(FetchArgs, "data fetch", argv)
    from .download import task_file

    print(task_file(find_task(args.task)))
    return 0


COMMANDS = {"list": _list, "info": _info, "check": _check, "convert": _convert, "fetch": _fetch}

"""`qcse data`: list tasks, look into datasets, check them against environments, convert, fetch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..config.commands import CheckArgs, ConvertArgs, FetchArgs, InfoArgs, ListArgs
from ..config.plain import json_text
from ..data.tasks import find_task, matching
from ..envs import trust
from ..envs.scores import REFERENCE_SCORES, task_family
from ..errors import ConfigError
from .arguments import parse

SUMMARY = """usage: qcse data COMMAND [OPTIONS]

commands:
  list      the tasks that `qcse train --task` knows
  info      what is in a dataset: episodes, returns, scores, flags, damage; and a picture
  check     does an environment's physics match a dataset?
  convert   between D4RL's layout and Minari
  fetch     find or download the dataset of a task

`qcse data COMMAND --help` lists a command's options."""


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
    from ..data.facts import describe
    from ..data.picture import draw

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
    from ..data.physics import check_physics

    report = check_physics(args.file, args.env, args.rows)
    print(report)
    return 0 if report.matches else 1


def _convert(argv: list[str]) -> int:
    args = parse(ConvertArgs, "data convert", argv)
    trust.from_command_line(args.trust_env_spec, args.env)
    from ..data.convert import convert

    print(f"wrote {convert(args.source, args.target, args.env)}")
    return 0


def _fetch(argv: list[str]) -> int:
    args = parse(FetchArgs, "data fetch", argv)
    from ..data.download import task_file

    print(task_file(find_task(args.task)))
    return 0


COMMANDS = {"list": _list, "info": _info, "check": _check, "convert": _convert, "fetch": _fetch}

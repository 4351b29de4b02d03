"""`qcse sweep`: algorithms x bonuses x tasks x seeds, packed into batched processes, resumable."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.commands import SweepArgs
from ..config.plain import read_json, read_toml, shown, write_json
from ..config.ranges import check_least
from ..config.typed import conform
from ..data.sources import source_of
from ..data.tasks import find_task
from ..envs import trust
from ..envs.make import task_for
from ..errors import ConfigError
from ..files import own
from .folder import check_folder
from .launch import run_all

# What trains a sweep's runs: called with each run folder's options, the steps of each, and how many at a time.
Launcher = Callable[[Mapping[Path, Sequence[str]], int, int], None]
LAUNCHERS: dict[str, Launcher] = {"processes": run_all}

# What makes a sweep; the rest of SweepArgs says how it is run.
OPTIONS = "algos bonuses envs datasets tasks seeds first_seed batch_seeds offline_steps online_steps".split()


def sweep(args: SweepArgs, extra: Sequence[str], finish: Callable[[Sequence[Path], Path], None]) -> None:
    """Run the sweep that `args` describes.

    Args:
        extra: words for every `qcse train`.
        finish: called with the run folders and the sweep's folder once all is trained, while it is still owned.

    Raises:
        ConfigError: the options make no sweep, or its folder holds another.
        QcseError: a run failed.
    """
    definition = _definition(args, extra)
    out = Path(args.out)
    runs = _runs(out, definition)
    steps = definition["offline_steps"] + definition["online_steps"]
    check_folder(out)
    with own(out):
        stored = out / "sweep.json"
        if stored.exists() and (before := read_json(stored)) != definition:
            changed = ", ".join(name for name in definition if before.get(name) != definition[name])
            raise ConfigError(
                f"out: {out} holds another sweep (it differs in: {changed}); give the options that it was started with "
                "to continue it, or name another --out"
            )
        write_json(stored, definition)
        print(f"{len(runs)} processes of up to {args.batch_seeds} seeds, {args.workers} at a time, {steps} steps each")
        LAUNCHERS[args.launcher](runs, steps, args.workers)
        finish(sorted(runs), out)


def _runs(out: Path, definition: Mapping[str, Any]) -> dict[Path, list[str]]:
    """Run folder -> its options.

    Raises:
        ConfigError: two runs would share a folder; on some systems letters' case does not tell names apart.
    """
    runs: dict[Path, list[str]] = {}
    first, batch = definition["first_seed"], definition["batch_seeds"]
    stop = first + definition["seeds"]
    for task, algo, bonus, seed in itertools.product(
        definition["tasks"], definition["algos"], definition["bonuses"], range(first, stop, batch)
    ):
        words = [*task["options"], "--algo", algo, "--bonus", bonus, "--seed", seed, "--seeds", min(batch, stop - seed)]
        words += ["--offline-steps", definition["offline_steps"], "--online-steps", definition["online_steps"]]
        name = f"{task['name']}-{algo}-{bonus}-from{seed}"
        if name.lower() in {folder.name.lower() for folder in runs}:
            raise ConfigError(
                f"sweep: two runs would be called {name}; expected each environment with its dataset, task, algorithm "
                "and bonus once, and datasets of one environment under different file names"
            )
        runs[out / name] = [*map(str, words), *definition["extra"]]
    return runs


def read_file(path: Path) -> dict[str, Any]:
    """Options of a sweep from a TOML file, named as on the command line, and `extra`, a list of words.

    Raises:
        ConfigError: the file is not TOML, names an option that there is not, or gives one a value of another type.
        OSError: it cannot be read.
    """
    read = read_toml(path)
    hints = typing.get_type_hints(SweepArgs)
    hints = {name: hints[name] for name in (*OPTIONS, "workers", "launcher")} | {"extra": tuple[str | int | float, ...]}
    unknown = [name for name in read if name not in hints]
    if unknown:
        raise ConfigError(f"{path}: got unknown options {shown(unknown)}; expected some of {', '.join(sorted(hints))}")
    return {name: conform(value, hints[name], f"{path}: {name}") for name, value in read.items()}


def _definition(args: SweepArgs, extra: Sequence[str]) -> dict[str, Any]:
    """What makes the sweep, ready for sweep.json; `tasks` holds environments with their data and named tasks alike."""
    check_least(args, 1, "seeds", "batch_seeds", "workers")
    if args.launcher not in LAUNCHERS:
        raise ConfigError(f"launcher: got {args.launcher!r}, expected one of {', '.join(LAUNCHERS)}")
    if len(args.datasets) not in (0, len(args.envs)):
        count = f"got {len(args.datasets)} for {len(args.envs)} environments"
        raise ConfigError(f"datasets: {count}; expected one for each, or none")
    tasks = [{"name": find_task(task).name, "options": ["--task", task]} for task in args.tasks]
    trust.from_command_line(trust.SWITCH in extra)
    for i, env in enumerate(args.envs):
        task_for(env)  # a wrong name is better told now than by the run that it is for
        data, name = list[str](), env
        if args.datasets:
            dataset = str(args.datasets[i])
            source = source_of(dataset)
            data = ["--dataset", source.absolute(dataset)]
            name = env if args.envs.count(env) == 1 else f"{env}-{source.short_name(data[1])}"
        tasks.append({"name": name.replace("/", "-"), "options": ["--env", env, *data]})
    if not tasks:
        raise ConfigError("envs, tasks: got none; expected --envs with --datasets, or --tasks")
    options = {name: getattr(args, name) for name in OPTIONS if name not in ("envs", "datasets", "tasks")}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return plain | {"tasks": tasks, "extra": list(extra)}

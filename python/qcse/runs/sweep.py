"""`qcse sweep`: algorithms x bonuses x tasks x settings x seeds, in processes that share the machine, resumable."""

from __future__ import annotations

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
from ..errors import CheckpointError, ConfigError
from ..files import own
from . import checkpoint
from . import grid as grids
from .estimate import measure_all
from .folder import check_folder
from .launch import run_all
from .plan import Configure, Plan, arms_of, as_data, describe, plan, steps_reached
from .resources import Job, Places, Resources, resources

# What trains a sweep's runs: called with the jobs, sources before those that start from them, and what they share.
Launcher = Callable[[Sequence[Job], Resources], None]
LAUNCHERS: dict[str, Launcher] = {"processes": run_all}

# What makes a sweep; the rest of SweepArgs says how it is run.
OPTIONS = "algos bonuses envs datasets tasks seeds first_seed batch_seeds offline_steps online_steps".split()
# What words behind -- may not say, as each run has its own, or has none.
SET_HERE = {f"--{name.replace('_', '-')}"
            for name in (*grids.NAMED, "offline_steps", "online_steps", "resume", "continue")}  # fmt: skip
REMEDY = "expected options that are the same for all; --algos, --bonuses, --seeds, --grid, ... say what differs"
HOW = "workers cores runs_per_gpu launcher estimate".split()


def sweep(
    args: SweepArgs,
    extra: Sequence[str],
    grid: grids.Grid,
    configure: Configure,
    finish: Callable[[Sequence[Path], Path], None],
) -> None:
    """Run the sweep that `args` describes, or say what it would run.

    Args:
        extra: words for every `qcse train`.
        grid: further options, with the values that each is to have.
        configure: what words for `qcse train` mean.
        finish: called with the run folders and the sweep's folder once all is trained, while it is still owned.

    Raises:
        ConfigError: the options make no sweep, or its folder holds another.
        QcseError: a run failed.
    """
    definition = _definition(args, extra, grid)
    out = Path(args.out)
    arms = arms_of(definition, configure)
    check_folder(out)
    devices = [arm.config.device for arm in arms]
    device = next((name for name in devices if name in ("auto", "cuda")), devices[0])
    available = resources(args.workers, args.cores, args.runs_per_gpu, device)
    if args.dry_run:
        _check_stored(out, definition)
        print(_told(plan(out, arms, available), available, args.estimate))
        return
    with own(out):
        _check_stored(out, definition)
        made = plan(out, arms, available)
        print(_told(made, available, args.estimate), flush=True)
        write_json(out / "plan.json", as_data(made, out))
        write_json(out / "sweep.json", definition)
        to_do = [job for job in made.jobs if not _is_complete(job)]
        if len(to_do) < len(made.jobs):
            print(f"complete already: {len(made.jobs) - len(to_do)} of {len(made.jobs)}")
        LAUNCHERS[args.launcher](to_do, available)
        finish(sorted(made.arms), out)


def _is_complete(job: Job) -> bool:
    """Whether a run has a checkpoint of its last step; where that cannot be told the run itself will say so."""
    path = job.out / checkpoint.NAME
    try:
        return path.exists() and bool(checkpoint.load(path)["step"] >= job.last)
    except (CheckpointError, OSError, KeyError, TypeError):
        return False


def _check_stored(out: Path, definition: Mapping[str, Any]) -> None:
    """ConfigError where a folder holds another sweep; one with fewer online steps is extended."""
    stored = out / "sweep.json"
    if not stored.exists():
        return
    before = {"grid": {}} | read_json(stored)  # earlier versions had no grid
    changed = [name for name in definition if before.get(name) != definition[name]]
    steps = before.get("online_steps")
    if changed == ["online_steps"] and isinstance(steps, int) and steps < definition["online_steps"]:
        return
    if changed:
        raise ConfigError(
            f"out: {out} holds another sweep (it differs in: {', '.join(changed)}); give the options that it was "
            "started with to continue it, more --online-steps to extend it, or name another --out"
        )


def _told(made: Plan, available: Resources, estimate: bool) -> str:
    """The plan in words, with an estimate if that is wanted."""
    reached = {job.out: max(job.first, steps_reached(job.out, made.configs[job.out])) for job in made.jobs}
    to_do = [job for job in made.jobs if reached[job.out] < job.last]
    rates = {}
    if estimate and to_do:
        places, environments = Places(available), list[dict[str, str]]()
        for job in to_do:
            if places.take(job):
                environments.append(places.environment(job))
        print("measuring some updates of each kind ...", flush=True)
        rates = measure_all([made.configs[job.out] for job in to_do], environments)
    return describe(made, available, reached, rates)


def read_file(path: Path) -> tuple[dict[str, Any], tuple[str, ...], grids.Grid]:
    """A sweep in a TOML file: options, named as on the command line; `extra`, a list of words; the table `grid`.

    Raises:
        ConfigError: the file is not TOML, names an option that there is not, or gives one a value of another type.
        OSError: it cannot be read.
    """
    read = read_toml(path)
    grid = grids.from_table(read.pop("grid", {}), str(path))
    hints = typing.get_type_hints(SweepArgs)
    hints = {name: hints[name] for name in (*OPTIONS, *HOW)} | {"extra": tuple[str | int | float, ...]}
    unknown = [name for name in read if name not in hints]
    if unknown:
        known = ", ".join(sorted([*hints, "grid"]))
        raise ConfigError(f"{path}: got unknown options {shown(unknown)}; expected some of {known}")
    options = {name: conform(value, hints[name], f"{path}: {name}") for name, value in read.items()}
    return options, tuple(map(str, options.pop("extra", ()))), grid


def _definition(args: SweepArgs, extra: Sequence[str], grid: grids.Grid) -> dict[str, Any]:
    """What makes the sweep, ready for sweep.json; `tasks` holds environments with their data and named tasks alike."""
    check_least(args, 1, "seeds", "batch_seeds", "workers", "cores", "runs_per_gpu")
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
    named = [word for word in extra if word.partition("=")[0].replace("_", "-") in SET_HERE]
    if named:
        raise ConfigError(f"extra: got {', '.join(named)} behind --, which a sweep decides for each run; {REMEDY}")
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return plain | {"tasks": tasks, "extra": list(extra), "grid": grid}

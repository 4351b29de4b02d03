"""Which runs a sweep has, what they share, and how long they will take."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import TrainConfig, bonus_acts_offline, flat, offline_options, validate
from ..errors import ConfigError
from . import checkpoint
from .estimate import Rates, kind_of
from .grid import combinations, label_of, words_of
from .layout import seed_folders
from .log import LogError, last_row
from .resources import Job, Resources, seconds_for

PRETRAINED = "pretrained"  # sub-folder of a sweep's folder, of the runs that others start from
Configure = Callable[[Sequence[str]], TrainConfig]  # words of `qcse train` -> the options of that run


@dataclass(frozen=True)
class Arm:
    """One of a sweep's runs.

    Attributes:
        name: of its folder.
        base: the same without what acts online only: the name of its pre-training.
        words: for `qcse train`, of a run that does all by itself.
        config: what these words mean.
    """

    name: str
    base: str
    words: tuple[str, ...]
    config: TrainConfig


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        jobs: pre-trainings first.
        arms: the runs that make the sweep, each with its folder.
        configs: run folder -> its options.
    """

    jobs: tuple[Job, ...]
    arms: Mapping[Path, Arm]
    configs: Mapping[Path, TrainConfig]

    @property
    def updates(self) -> tuple[int, int]:
        """Offline updates that will be done, and without sharing; those of the seeds of one run count once."""
        alone = sum(arm.config.offline_steps for arm in self.arms.values())
        done = sum(max(0, min(job.last, self.configs[job.out].offline_steps) - job.first) for job in self.jobs)
        return done, alone


def arms_of(definition: Mapping[str, Any], configure: Configure) -> list[Arm]:
    """All combinations of a sweep's algorithms, bonuses, tasks, settings and batches of seeds.

    Raises:
        ConfigError: two runs would share a folder (on some systems letters' case does not tell names apart), or the
            options of one cannot work.
    """
    arms: dict[str, Arm] = {}
    first, batch = definition["first_seed"], definition["batch_seeds"]
    stop = first + definition["seeds"]
    varied: set[str] = set()
    for task, algo, bonus in itertools.product(definition["tasks"], definition["algos"], definition["bonuses"]):
        for settings in combinations(definition["grid"], algo, bonus):
            varied |= settings.keys()
            words = [*task["options"], "--algo", algo, "--bonus", bonus]
            words += ["--offline-steps", str(definition["offline_steps"])]
            words += ["--online-steps", str(definition["online_steps"]), *words_of(settings), *definition["extra"]]
            meant = configure(words)
            options = flat(meant)
            for option in settings:
                if options[option] != settings[option]:
                    raise ConfigError(f"grid: {option} is given behind -- as well; expected it at one place only")
            offline = {option: value for option, value in settings.items() if option in offline_options(meant)}
            for seed in range(first, stop, batch):
                config = dataclasses.replace(meant, seed=seed, seeds=min(batch, stop - seed))
                validate(config)
                name = f"{task['name']}-{algo}-{bonus}{label_of(settings)}-from{seed}"
                if name.lower() in arms:
                    raise ConfigError(
                        f"sweep: two runs would be called {name}; expected each environment with its dataset, task, "
                        "algorithm and bonus once, and datasets of one environment under different file names"
                    )
                base = f"{task['name']}-{algo}{label_of(offline)}-from{seed}"
                own = (*words, "--seed", str(seed), "--seeds", str(config.seeds))
                arms[name.lower()] = Arm(name, base, own, config)
    for option in definition["grid"].keys() - varied:
        raise ConfigError(f"grid: {option} is read by none of these algorithms and bonuses; leave it out")
    return list(arms.values())


def plan(out: Path, arms: Sequence[Arm], available: Resources) -> Plan:
    """Runs that differ only in what acts online start from one offline end, which is trained once."""
    shared: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm.config.offline_steps > 0 and arm.config.online_steps > 0 and not bonus_acts_offline(arm.config):
            key = json.dumps([arm.base, offline_options(arm.config)], sort_keys=True)
            shared.setdefault(key, []).append(arm)
    sources: dict[str, Path] = {}  # arm -> run folder of its pre-training
    first: dict[Path, Arm] = {}  # such a folder -> an arm
    for group in shared.values():
        source = out / PRETRAINED / group[0].base
        # Runs that have a checkpoint do not need it any more; an earlier version had none.
        needed = not all((out / arm.name / checkpoint.NAME).exists() for arm in group)
        if len(group) > 1 and (needed or source.exists()):
            first[source] = group[0]
            sources |= {arm.name: source for arm in group}
    jobs = [_pretraining(source, arm, available.threads_each(len(first)), available) for source, arm in first.items()]
    configs = {job.out: dataclasses.replace(first[job.out].config, online_steps=0) for job in jobs}
    for arm in arms:
        job = _job(out / arm.name, arm, available.threads_each(len(arms)), available)
        if arm.name in sources:
            job = dataclasses.replace(job, source=sources[arm.name], first=arm.config.offline_steps)
        jobs.append(job)
        configs[job.out] = arm.config
    return Plan(tuple(jobs), {out / arm.name: arm for arm in arms}, configs)


def _job(out: Path, arm: Arm, threads: int, available: Resources) -> Job:
    """A job that does all by itself; `--threads` among its words counts."""
    config = arm.config
    gpu = bool(available.gpus) and config.device in ("auto", "cuda")
    return Job(out, arm.words, 0, config.offline_steps + config.online_steps, config.threads or threads, gpu)


def _pretraining(out: Path, arm: Arm, threads: int, available: Resources) -> Job:
    job = _job(out, arm, threads, available)
    words = (*arm.words, "--bonus", "none", "--online-steps", "0")  # of words that are there twice the last ones count
    return dataclasses.replace(job, words=words, last=arm.config.offline_steps)


def as_data(made: Plan, out: Path) -> dict[str, Any]:
    """A plan for plan.json, which `qcse status` reads."""
    return {
        "runs": {
            job.out.relative_to(out).as_posix(): {
                "first": job.first,
                "last": job.last,
                "after": None if job.source is None else job.source.relative_to(out).as_posix(),
            }
            for job in made.jobs
        }
    }


def describe(made: Plan, available: Resources, reached: Mapping[Path, int], rates: Mapping[str, Rates]) -> str:
    """The runs as a table, what they share, and about how long they take.

    Args:
        reached: run folder -> the step that the run is at.
        rates: kind of run -> what was measured; empty where nothing was.
    """
    seconds: dict[Path, float] = {}
    table = [["run", "seeds", "offline", "online", "threads", *(["about"] if rates else [])]]
    for job in made.jobs:
        config = made.configs[job.out]
        last = config.seed + config.seeds - 1
        offline = "shared" if job.source is not None else str(min(job.last, config.offline_steps))
        name = job.out.name if job.out in made.arms else f"{PRETRAINED}/{job.out.name}"
        row = [name, f"{config.seed}-{last}" if last > config.seed else str(last), offline, str(config.online_steps)]
        if rates:
            at = reached[job.out]
            left = at < job.last
            seconds[job.out] = rates[kind_of(config)].seconds(config, at, job.last) if left else 0.0
            about = in_words(seconds[job.out]) if left else "complete"
        table.append([*row, str(job.threads), *([about] if rates else [])])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    gpus = len(available.gpus) if any(job.gpu for job in made.jobs) else 0
    room = [len(made.jobs), available.workers, available.cores // min(job.threads for job in made.jobs)]
    at_once = max(1, min([*room, gpus * available.runs_per_gpu] if gpus else room))
    told = [_count(len(made.jobs), "run"), f"{at_once} at a time at most", _count(available.cores, "CPU thread")]
    lines.append(", ".join([*told, _count(gpus, "GPU")] if gpus else told))
    done, alone = made.updates
    if done < alone:
        lines.append(f"offline updates: {done:,} instead of {alone:,}, as runs share their pre-training")
    if rates:
        total = seconds_for(made.jobs, available, seconds)
        lines.append(f"about {in_words(total)}, judged by a few updates of each kind on this machine")
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def steps_reached(out: Path, config: TrainConfig) -> int:
    """The last step that all seeds of a run have logged; 0 before the first."""
    folders = seed_folders(out, range(config.seed, config.seed + config.seeds))
    try:
        rows = [last_row(folder / "train.csv") for folder in folders]
        return min(int(row["step"]) if row else 0 for row in rows)
    except (LogError, OSError, KeyError, ValueError):  # the run itself will say so
        return 0


def in_words(seconds: float) -> str:
    """A time in one unit, or two."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"

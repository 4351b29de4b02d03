"""`qcse train`. What needs torch is imported once the options are known: --help is quick."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..config import TrainConfig, derived, from_dict, has_preset, preset, to_dict, validate
from ..config.commands import TrustEnvSpec
from ..data.tasks import DatasetTask, find_task
from ..envs import trust
from ..errors import ConfigError
from ..files import own
from ..runs.signals import end_with_parent


@dataclass
class TrainArgs(TrainConfig):
    """Pre-train on a dataset, then fine-tune online. Defaults shown are those of the algorithm's and environment's
    preset, and of the bonus: give --algo, --env and --bonus together with --help to see them."""

    resume: Path | None = None
    """Continue the run in this folder, with its stored options. More online_steps than it was started with extend it,
    also where it is complete."""
    go_on: Annotated[bool, tyro.conf.arg(name="continue"), tyro.conf.FlagCreatePairsOff] = False
    """Start the run, resume it where its folder holds it already, or do nothing where it is complete: one command for a
    job that may be started again."""
    trust_env_spec: TrustEnvSpec = False


ONLY_HERE = ("resume", "go_on", "trust_env_spec")  # what is no option of a run


def train(argv: list[str]) -> int:
    """Entry point of `qcse train`; returns the exit code."""
    end_with_parent()
    known = _peek(argv)
    trust.from_command_line(known.trust, known.env)
    if known.go_on and known.resume is None:
        from ..runs.folder import folder_of

        out = known.out or folder_of(_configuration(argv, known))
        known.resume = out if (out / "config.json").is_file() else None
    config = _configuration(argv, known)
    if config.task is not None and config.dataset == (task := find_task(config.task)).path:
        from ..data.download import task_file

        task_file(task)
    return _run(config, known.resume)


def configuration(argv: Sequence[str]) -> TrainConfig:
    """The options of the run that `qcse train` with these words would start."""
    return _configuration(argv, _peek(argv))


def _configuration(argv: Sequence[str], known: argparse.Namespace) -> TrainConfig:
    task = None if known.task is None else find_task(known.task)
    if known.resume is not None:
        from ..runs.folder import stored_config

        defaults = stored_config(known.resume)
        trust.check_run(known.resume, defaults.env)
    elif known.init_from is not None:
        from ..runs.pretrained import run_of, source_config

        defaults = source_config(known.init_from)
        trust.check_run(run_of(known.init_from), defaults.env)
        defaults = derived(defaults, known.algo, known.bonus)
        if known.preset not in (None, defaults.preset):
            raise ConfigError(
                f"preset: got {known.preset!r}, but with --init-from options are those of that run, whose preset is "
                f"{defaults.preset!r}; leave it out, and give what is to be otherwise by its own option"
            )
    else:
        defaults = _defaults(known, task)
    values = {f.name: getattr(defaults, f.name) for f in dataclasses.fields(TrainConfig)}
    parsed = tyro.cli(TrainArgs, args=argv, prog="qcse train", default=TrainArgs(**values))
    config = from_dict({name: value for name, value in to_dict(parsed).items() if name not in ONLY_HERE})
    if config.init_from is not None:  # the same folder wherever the run is resumed
        config.init_from = config.init_from.absolute()
    validate(config)
    return config


def _peek(argv: Sequence[str]) -> argparse.Namespace:
    """The options that decide which defaults the others have."""
    parser = argparse.ArgumentParser(prog="qcse train", add_help=False, allow_abbrev=False)
    parser.add_argument("--algo")
    parser.add_argument("--env")
    parser.add_argument("--task")
    parser.add_argument("--preset")
    parser.add_argument("--dataset", default="")
    parser.add_argument("--bonus")
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--init-from", type=Path)
    parser.add_argument("--continue", action="store_true", dest="go_on")
    parser.add_argument(trust.SWITCH, action="store_true", dest="trust")
    return parser.parse_known_args(argv)[0]


def _defaults(known: argparse.Namespace, task: DatasetTask | None) -> TrainConfig:
    """Of a new run."""
    algo, bonus = known.algo or TrainConfig.algo, known.bonus or "none"
    of_task = task is not None and not known.env and has_preset(algo, task.env_id, task.preset)
    kind = known.preset or (task.preset if task is not None and of_task else "default")
    env = known.env or (task.env_id if task else _environment_of(known.dataset) or "Hopper-v5")
    defaults = preset(algo, env, kind, bonus)
    if task is not None:
        defaults.task, defaults.dataset = task.name, task.path
    return defaults


def _environment_of(dataset: str) -> str | None:
    """The environment that a dataset's name stands for by itself."""
    if not dataset:
        return None
    from ..data.sources import source_of

    return source_of(dataset).environment(dataset)


def _run(config: TrainConfig, resume: Path | None) -> int:
    from ..runs import checkpoint
    from ..runs.folder import check_folder, check_new, folder_of, group_of, refuse_contradictions, stored_config
    from ..runs.trainer import RunInterrupted, Trainer

    out = resume or folder_of(config)
    with ExitStack() as stack:
        if resume is None:
            check_folder(out)
            stack.enter_context(own(out))
            check_new(out)
            trainer = Trainer(config, out)
        else:
            group = group_of(out)
            if group is not None:
                raise ConfigError(
                    f"resume: {out} was trained with other seeds; continue them all with --resume {group}"
                )
            stack.enter_context(own(out))
            stored = stored_config(out)
            refuse_contradictions(stored, config, out)
            config.out = stored.out  # as the folder was named then
            # A run that was stopped before its first checkpoint has nothing to lose and starts again.
            trainer = Trainer(config, out, checkpoint.load_run(out))
            if trainer.finished:
                print(f"{out} is complete ({trainer.step} steps); nothing to do")
                return 0
        try:
            trainer.run()
        except RunInterrupted as stop:
            print(f"{stop}; continue with: qcse train --resume {trainer.out}", file=sys.stderr)
            return 130
    print(f"run complete: {trainer.out}; compare runs with `qcse report {trainer.out} ...`")
    return 0

"""Run folders: which one, what may be in it, what it was started with, and what a run writes there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..config import TrainConfig, differences, from_json, read_config, to_dict
from ..config.plain import write_json
from ..envs import trust
from ..errors import CheckpointError, ConfigError
from ..files import own
from . import checkpoint
from .layout import seed_folders
from .log import RunLog
from .machine import append_machine_facts

MAY_MOVE = ("dataset",)  # options that may change from one part of a run to the next: the file is known by its content


def folder_of(config: TrainConfig) -> Path:
    """The run folder of a new run, as named or by default."""
    return config.out or Path("runs") / f"{config.env}-{config.algo}-{config.bonus.kind}-seed{config.seed}"


def check_new(out: Path) -> None:
    """ConfigError where a folder holds a run already."""
    remains = ("config.json", checkpoint.NAME, checkpoint.PREVIOUS, "train.csv", "eval.csv", "buffer", checkpoint.KEPT)
    for name in remains:
        if (out / name).exists():
            raise ConfigError(
                f"out: {out} already holds a run ({name}); continue it with `qcse train --resume {out}`, or name "
                "another --out"
            )


def check_folder(out: Path) -> None:
    """ConfigError where a folder could not be made or written; nothing is made."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"out: {out} cannot be a folder, because {nearest} is a file; name another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"out: {out} cannot be made, because {nearest} may not be written; name another --out")


def stored_config(out: Path) -> TrainConfig:
    """The configuration of an existing run folder."""
    path = out / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{out} is not a run folder: {path} does not exist; expected the --out of a qcse run")
    return read_config(path)


def group_of(out: Path) -> Path | None:
    """The folder that holds the checkpoint of this run folder, where several seeds were trained together."""
    group = out.absolute().parent
    alone = (out / checkpoint.NAME).exists() or not (group / checkpoint.NAME).exists()
    return None if alone else group


def refuse_contradictions(stored: TrainConfig, asked: TrainConfig, out: Path) -> None:
    """ConfigError where a resumed run was asked for something else than what it was started with, but for more online
    steps."""
    changed = [d for d in differences(stored, asked) if d[0] not in ("out", *MAY_MOVE)]
    if asked.online_steps > stored.online_steps:
        changed = [d for d in changed if d[0] != "online_steps"]
    if asked.out is not None and stored.out != asked.out and asked.out.resolve() != out.resolve():
        changed.append(("out", str(out), str(asked.out)))
    if changed:
        listing = "; ".join(f"{name}: the run has {a!r}, the command line says {b!r}" for name, a, b in changed)
        raise ConfigError(
            f"--resume {out} contradicts the stored configuration: {listing}. Leave these flags out, or start a new run"
        )


def run_folders(path: Path) -> list[Path]:
    """The run folders in a folder, at any depth: itself, or those below it; itself if there are none (an error)."""
    if (path / "eval.csv").exists():
        return [path]
    return sorted(found.parent for found in path.rglob("eval.csv")) or [path]


def check_stored(
    state: Mapping[str, Any], config: TrainConfig, out: Path, may_differ: Collection[str] = ()
) -> TrainConfig:
    """The configuration in a checkpoint.

    Raises:
        CheckpointError: it is not that of its run folder; a run that is being extended may have more online steps.
    """
    stored = from_json(state["config"], f"{out / checkpoint.NAME}: config")
    extended = ("online_steps",) if config.online_steps > stored.online_steps else ()
    changed = [d for d in differences(stored, config) if d[0] not in (*MAY_MOVE, *may_differ, *extended)]
    if changed:
        listing = "; ".join(f"{name}: {a!r} when it started, {b!r} now" for name, a, b in changed)
        raise CheckpointError(
            f"{out / 'config.json'} does not fit the checkpoint beside it ({listing}); restore it, or start a "
            "new run with another --out"
        )
    return stored


class RunFolder:
    """The folder that a run writes.

    Args:
        out: it is made when the run begins.
        seeds: those of the run; several have a folder each below `out`.

    Attributes:
        folders: one for each seed.
        logs: one for each seed, once the run has begun.
        checkpoints: writes them.
    """

    def __init__(self, out: Path, seeds: Sequence[int]) -> None:
        self.out, self.seeds = out, seeds
        self.folders = seed_folders(out, seeds)
        self.logs: list[RunLog] = []
        self.checkpoints = checkpoint.Checkpoints(out)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Be the only process that writes here; InUseError where another is."""
        with ExitStack() as stack:
            for folder in dict.fromkeys((self.out, *self.folders)):
                stack.enter_context(own(folder))
            yield

    def begin(
        self, config: TrainConfig, facts: Mapping[str, Any], resumed: Mapping[str, Any] | None, extended: bool = False
    ) -> None:
        """Write down what the run is, or that it goes on, and open its logs.

        Args:
            facts: of the machine and the data.
            resumed: the checkpoint that it goes on from.
            extended: to more steps than it was started with.
        """
        # The run's own folder last: where its options are written, those of all seeds are.
        for folder, seed in {**dict(zip(self.folders, self.seeds, strict=True)), self.out: config.seed}.items():
            folder.mkdir(exist_ok=True)
            seeds = config.seeds if folder == self.out else 1
            if resumed is None or extended:
                write_json(folder / "config.json", to_dict(dataclasses.replace(config, seed=seed, seeds=seeds)))
                trust.mark_run(folder, config.env)
            append_machine_facts(folder / "machine.json", facts)
        # Without a checkpoint the run starts anew; what it had logged before it was stopped is cut.
        log_rows = resumed["log_rows"] if resumed else [{"train_rows": 0, "eval_rows": 0}] * len(self.seeds)
        self.logs = [RunLog(folder, resume_rows=rows) for folder, rows in zip(self.folders, log_rows, strict=True)]
        if resumed is not None:  # what was written after the checkpoint will be written again
            self.checkpoints.resume(resumed)

    def how_to_go_on(self) -> str:
        """What a user does once the reason for a stop is mended."""
        begun = (self.out / checkpoint.NAME).exists()
        return f"go on from the last checkpoint with `qcse train --resume {self.out}`" if begun else "start again"

    def close(self) -> None:
        for log in self.logs:
            log.close()

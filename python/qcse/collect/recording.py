"""Recordings in D4RL's layout that grow on the disk: whatever ends one, what was recorded is there, and it can go on.

While a recording NAME goes on, all of it lies in the folder NAME.collecting: its options, and its rows in files that
are written once, each with a digest.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch

from ..config.plain import read_json, to_dict, write_json
from ..config.typed import build
from ..envs import trust
from ..errors import ConfigError, QcseError, WriteError
from ..files import own
from ..runs import checkpoint
from ..runs.folder import check_folder
from ..runs.trainer import RunInterrupted

SUFFIX = ".collecting"
OPTIONS = "collect.json"
PARTS = "[0-9]" * 12 + ".pt"  # files of rows, named after the first
COLUMNS = ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts")
FLAGS = ("terminals", "timeouts")
HOW = ("resume", "finish", "trust_env_spec", "out")  # how a recording is made, not what it is

Args = TypeVar("Args")


class Recording(gym.Wrapper):
    """Keeps every transition that passes; qpos and qvel are those before the step, where the simulator has them.

    Args:
        env: whose steps are recorded.
        folder: where `flush` puts rows. None: they stay in memory.

    Attributes:
        infos: name -> value, further columns of the row to come, stored under infos/.
    """

    def __init__(self, env: gym.Env, folder: Path | None = None) -> None:
        super().__init__(env)
        self.folder = folder
        self.infos: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []  # those that are in memory only
        self.flushed = 0  # rows before them

    def __len__(self) -> int:
        """Rows so far."""
        return self.flushed + len(self.rows)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._observation = np.array(observation, np.float32)  # a copy: environments may reuse their arrays
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        data = getattr(self.env.unwrapped, "data", None)
        before = {} if data is None else {"infos/qpos": data.qpos.copy(), "infos/qvel": data.qvel.copy()}
        taken = np.array(action, np.float32)
        observation, reward, terminated, truncated, info = self.env.step(action)
        following = np.array(observation, np.float32)
        self.rows.append(
            {
                "observations": self._observation,
                "next_observations": following,
                "actions": taken,
                "rewards": reward,
                "terminals": terminated,
                "timeouts": truncated and not terminated,  # D4RL's meaning: cut at the limit, not ended by the task
                **before,
                **{f"infos/{name}": np.array(value) for name, value in self.infos.items()},
            }
        )
        self._observation = following
        return observation, reward, terminated, truncated, info

    def flush(self, state: str = "") -> None:
        """Put what is in memory on the disk, with what is needed to go on behind it; OSError where that fails."""
        if self.folder is not None and self.rows:
            self.folder.mkdir(exist_ok=True)
            columns = {name: torch.from_numpy(array) for name, array in self._in_memory().items()}
            checkpoint.save(
                self.folder / f"{self.flushed:012d}.pt", {"first": self.flushed, "columns": columns, "state": state}
            )
            self.flushed, self.rows = len(self), []

    def keep(self, rows: int) -> None:
        """Go on behind the first so many rows of those in the folder."""
        assert self.folder is not None
        self.flushed, self.rows = rows, []
        for path in self.folder.glob(PARTS):
            if int(path.stem) >= rows:
                path.unlink()

    def _in_memory(self) -> dict[str, np.ndarray]:
        names = self.rows[0] if self.rows else ()
        return {
            name: np.asarray([row[name] for row in self.rows], bool if name in FLAGS else np.float32) for name in names
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns in D4RL's layout."""
        parts = [] if self.folder is None else list(_parts(self.folder, self.flushed))
        parts += [self._in_memory()] if self.rows else []
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def stored_rows(folder: Path) -> int:
    """Rows in a recording's folder."""
    paths = sorted(folder.glob(PARTS))
    if not paths:
        return 0
    return int(paths[-1].stem) + len(checkpoint.load(paths[-1])["columns"]["rewards"])


def stored_arrays(folder: Path, last: int | None = None) -> dict[str, np.ndarray]:
    """The columns in a recording's folder; with `last`, the last so many rows from the start of an episode on."""
    parts = list(_parts(folder, stored_rows(folder)))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    first, count = 0, len(arrays["rewards"])
    if last is not None and last < count:
        starts = np.flatnonzero((arrays["terminals"] | arrays["timeouts"])[:-1]) + 1
        first = int(next((s for s in starts if s >= count - last), count - last))
    return {name: array[first:] for name, array in arrays.items()}


def _parts(folder: Path, rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Columns of each file; what a later one holds as well, recorded again, counts there."""
    paths = sorted(folder.glob(PARTS))
    stops = [int(path.stem) for path in paths[1:]] + [rows]
    covered = 0
    for path, stop in zip(paths, stops, strict=True):
        part = checkpoint.load(path)
        count = stop - part["first"]
        if part["first"] != int(path.stem) or covered != part["first"] or len(part["columns"]["rewards"]) < count:
            raise QcseError(f"collect: rows are missing before or in {path}; restore the file that held them")
        covered = stop
        yield {name: column[:count].numpy() for name, column in part["columns"].items()}


def last_state(folder: Path) -> tuple[int, str]:
    """Up to which row the recording in a folder can go on, and what `flush` kept for that; (0, "") for anew."""
    for path in sorted(folder.glob(PARTS), reverse=True):
        part = checkpoint.load(path)
        if part["state"]:
            return part["first"] + len(part["columns"]["rewards"]), part["state"]
    return 0, ""


def unfinished(path: Path) -> Path:
    """The folder of the unfinished recording that a user names: itself, or the folder that it lies in."""
    if path.name.endswith(SUFFIX) and path.is_dir():
        return path
    found = sorted(folder for folder in path.glob(f"*{SUFFIX}") if folder.is_dir()) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    names = ", ".join(map(str, found)) or "none"
    raise ConfigError(f"resume: expected the folder of one unfinished recording, NAME{SUFFIX}; {path} has {names}")


def stored_env(folder: Path) -> str:
    """The environment of the recording in a folder."""
    return str(read_json(folder / OPTIONS).get("env")) if (folder / OPTIONS).is_file() else ""


def stored_options(folder: Path, kind: type[Args]) -> Args:
    """The options that the recording in a folder was started with."""
    path = folder / OPTIONS
    if not path.is_file():
        raise ConfigError(f"resume: {folder} is no unfinished recording: there is no file {path}")
    return kind(**build(kind, read_json(path) | {"out": str(folder.parent)}, str(path), whole=False))


@contextmanager
def recording(args: Any, name: str, targets: Sequence[Path]) -> Iterator[Path]:
    """The folder of a recording, new or unfinished, owned with the files that it will become; removed when all are.

    Args:
        args: the command's options, with `out`, `resume` and `finish`.
        name: of the recording.
        targets: the files.

    Raises:
        ConfigError: a file exists, or an unfinished recording of that name, or other options than it began with.
        QcseError: what ended the recording, with where its rows are and how to go on.
    """
    if args.finish and args.resume is None:
        raise ConfigError("finish: got no --resume; name the folder of the unfinished recording with it")
    if Path(name).name != name:  # it may come from a folder that somebody else made
        raise ConfigError(f"name: got {name!r}, expected the first part of a file's name, without folders")
    folder = args.out / f"{name}{SUFFIX}"
    check_folder(folder)
    with ExitStack() as stack:
        for target in targets:  # makes a file beside each, so a folder that cannot be written is known now
            stack.enter_context(own(target, folder=False))
        stack.enter_context(own(folder))
        plain = {key: value for key, value in to_dict(args).items() if key not in HOW}
        if args.resume is not None:
            stored = to_dict(stored_options(folder, type(args)))
            changed = [f"{key} {stored[key]!r}, now {value!r}" for key, value in plain.items() if stored[key] != value]
            if changed:
                raise ConfigError(f"resume: {folder} was started with {'; '.join(changed)}; leave these options out")
        else:
            if (folder / OPTIONS).exists():
                raise ConfigError(
                    f"out: {folder} is an unfinished recording; go on with `qcse collect --resume {folder}`, or name "
                    "another --name or --out"
                )
            for target in targets:
                if target.exists():
                    raise ConfigError(f"out: {target} exists already; delete it, or name another --name or --out")
            write_json(folder / OPTIONS, plain)
            trust.mark_run(folder, args.env)
        advice = (
            f"what was recorded is in {folder}; `qcse collect --resume {folder}` goes on, and with --finish makes a "
            "dataset of what there is"
        )
        try:
            yield folder
        except RunInterrupted as stop:
            print(f"{stop}; {advice}", file=sys.stderr)
            raise
        except WriteError as error:
            raise WriteError(error.reason, advice) from error
        except OSError as error:
            raise WriteError(f"{error.filename or folder}: {error.strerror or error}", advice) from error
        except QcseError as error:
            error.args = (f"{error}. Then: {advice}",)
            raise
        shutil.rmtree(folder)

"""`qcse sweep`: algorithms x bonuses x tasks x seeds, packed into batched processes, resumable; and what runs them."""

from __future__ import annotations

import csv
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from . import trust
from .envs import task_for
from .errors import ConfigError, QcseError
from .files import own
from .log import write_json
from .report import report, run_folders
from .signals import WITH_PARENT, stop_signals
from .tasks import find_task
from .train import check_folder
from .typed import conform, read_json, read_toml, shown

if TYPE_CHECKING:
    from .cli import SweepArgs


# What makes a sweep; the rest of SweepArgs says how it is run.
OPTIONS = "algos bonuses envs datasets tasks seeds first_seed batch_seeds offline_steps online_steps".split()


def train_command(out: Path, options: Sequence[str]) -> list[str]:
    """The command that starts the run in `out` with these options, or continues it where it has begun."""
    command = [sys.executable, "-P", "-m", "qcse", "train"]  # -P: the installed package, not the folder we stand in
    # The options go along with --resume, which refuses those that contradict what the run was started with.
    return [*command, *options, *(["--resume"] if (out / "config.json").exists() else ["--out"]), str(out)]


def run_all(runs: Mapping[Path, Sequence[str]], steps: int, workers: int) -> None:
    """Train every run folder with its options, `workers` processes at a time, with a live line for each.

    A process's output goes to <folder>.log. On an error, Ctrl-C or a hang-up the others are stopped; they save their
    checkpoints, so that the same call goes on where this one stopped. They stop, too, where this process is killed.

    Raises:
        QcseError: a run failed; the message holds the end of its log.
    """
    waiting = list(runs)
    running: dict[Path, subprocess.Popen[bytes]] = {}
    bars: dict[Path, tqdm[Any]] = {}
    quiet = not sys.stderr.isatty()
    try:
        _stop_on_signals()
        while waiting or running:
            while waiting and len(running) < workers:
                out = waiting.pop(0)
                out.parent.mkdir(parents=True, exist_ok=True)
                command = train_command(out, runs[out])
                with open(_log(out), "ab") as log:
                    # In a session of its own: Ctrl-C reaches this process only, which then ends the others in order.
                    # Nothing is written to the pipe; its end tells that this process is gone.
                    running[out] = subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=log,
                        stdin=subprocess.PIPE,
                        start_new_session=True,
                        env=os.environ | {WITH_PARENT: "1"},
                    )
                bars[out] = tqdm(total=steps, desc=out.name, unit="step", position=len(bars), disable=quiet)
            time.sleep(0.5)
            for out, process in list(running.items()):
                ended = process.poll() is not None
                _show(bars[out], out)
                if ended:
                    _closed(running.pop(out))
                    if process.returncode != 0:
                        raise QcseError(_failure(out, process.returncode))
                    if quiet:
                        print(f"{out.name}: complete, score {_score(out)}", flush=True)
    finally:
        for process in running.values():
            process.terminate()  # it saves its checkpoint
        for process in running.values():
            process.wait()
            _closed(process)
        for bar in bars.values():
            bar.close()


def _closed(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _stop_on_signals() -> None:
    """Ctrl-C, SIGTERM and a hang-up that is not ignored end this process by KeyboardInterrupt, the first two even where
    a shell had told it to ignore them."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in stop_signals():
            signal.signal(number, stop)


def rows(path: Path) -> list[dict[str, str]]:
    """Whole rows of a log that may be being written."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def _log(out: Path) -> Path:
    return out.with_name(out.name + ".log")


def _failure(out: Path, code: int) -> str:
    last = "\n".join(_log(out).read_text(errors="replace").strip().splitlines()[-5:])
    return f"the run {out} ended with exit code {code}; the end of {_log(out)}:\n{last}"


def _score(out: Path) -> str:
    """Mean over the folder's seeds of their last scores (returns, where there is no reference)."""
    last = [found[-1] for folder in run_folders(out) if (found := rows(folder / "eval.csv"))]
    scores = [float(row["normalized_score"]) for row in last]
    if not scores or any(score != score for score in scores):
        scores = [float(row["return_mean"]) for row in last]
    return f"{sum(scores) / len(scores):.1f}" if scores else "-"


def _show(bar: tqdm[Any], out: Path) -> None:
    trained = [int(found[-1]["step"]) for folder in run_folders(out) if (found := rows(folder / "train.csv"))]
    bar.n = min(trained, default=0)
    bar.set_postfix_str(f"score {_score(out)}", refresh=False)
    bar.refresh()


def sweep(args: SweepArgs, extra: Sequence[str]) -> int:
    """Run the sweep that `args` describes and write its report; `extra` goes to every `qcse train`."""
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
        run_all(runs, steps, args.workers)
        print(report(sorted(runs), out / "report"))
    return 0


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
    from .cli import SweepArgs

    read = read_toml(path)
    hints = typing.get_type_hints(SweepArgs)
    hints = {name: hints[name] for name in (*OPTIONS, "workers")} | {"extra": tuple[str | int | float, ...]}
    unknown = [name for name in read if name not in hints]
    if unknown:
        raise ConfigError(f"{path}: got unknown options {shown(unknown)}; expected some of {', '.join(sorted(hints))}")
    return {name: conform(value, hints[name], f"{path}: {name}") for name, value in read.items()}


def _stem(dataset: str) -> str:
    """What tells the datasets of one environment apart in the names of their runs."""
    return dataset.removeprefix("minari:") if dataset.startswith("minari:") else Path(dataset).stem


def _place(dataset: Path) -> str:
    """A dataset's absolute path, or its name in Minari as it is."""
    name = str(dataset)
    if not name.startswith("minari:") and not dataset.is_file():
        raise ConfigError(f"datasets: no file at {dataset}; expected an HDF5 file in D4RL's layout, or minari:ID")
    return name if name.startswith("minari:") else str(dataset.resolve())


def _definition(args: SweepArgs, extra: Sequence[str]) -> dict[str, Any]:
    """What makes the sweep, ready for sweep.json; `tasks` holds environments with their data and named tasks alike."""
    for name in ("seeds", "batch_seeds", "workers"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name}: got {getattr(args, name)}, expected 1 or more")
    if len(args.datasets) not in (0, len(args.envs)):
        count = f"got {len(args.datasets)} for {len(args.envs)} environments"
        raise ConfigError(f"datasets: {count}; expected one for each, or none")
    tasks = [{"name": find_task(task).name, "options": ["--task", task]} for task in args.tasks]
    trust.from_command_line(trust.SWITCH in extra)
    for i, env in enumerate(args.envs):
        task_for(env)  # a wrong name is better told now than by the run that it is for
        data = [] if not args.datasets else ["--dataset", _place(Path(args.datasets[i]))]
        name = env if args.envs.count(env) == 1 or not data else f"{env}-{_stem(data[1])}"
        tasks.append({"name": name.replace("/", "-"), "options": ["--env", env, *data]})
    if not tasks:
        raise ConfigError("envs, tasks: got none; expected --envs with --datasets, or --tasks")
    options = {name: getattr(args, name) for name in OPTIONS if name not in ("envs", "datasets", "tasks")}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return plain | {"tasks": tasks, "extra": list(extra)}

"""Options of every command but `train`, as dataclasses. Field docstrings are the command line's help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .bonus import BonusKind
from .options import Algo
from .ranges import COUNT, NOT_NEGATIVE, NUMBER, SEED, STEPS, THREADS, WIDTH, Range

TrustEnvSpec = Annotated[
    bool,
    tyro.conf.arg(name="trust-env-spec", help="Execute what data or a run folder from elsewhere name as environment."),
    tyro.conf.FlagCreatePairsOff,
]
"""A command's switch, which no configuration keeps."""


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
class StatusArgs:
    """The state of all runs in some folders: which run, are complete, stopped, failed or waiting, how far they are, how
    well they do, how long they will take. Nothing is changed, and running ones are not disturbed. A run of another host
    counts as running until it ends by itself or its .lock file is deleted."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """Folders that hold runs, at any depth, or run folders."""
    json: bool = False
    """Print one JSON object per run, with who runs it (owner) and why it failed (error); time_left is in seconds."""
    watch: float | None = None
    """Print it again every so many seconds, until Ctrl-C or until nothing runs or waits. None: once."""


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
    online_steps: int = 6000
    """Environment steps of fine-tuning."""
    seeds: int = 2
    """Runs with and as many without the bonus, trained together."""


@dataclass
class SweepArgs:
    """Train algorithms x bonuses x tasks x grid x seeds, several seeds in each process, and report. Runs that differ
    only in what acts online share their pre-training. The same command continues a sweep that was stopped; with more
    online steps it extends it. What follows -- goes to every `qcse train`, for example -- --batch-size 128."""

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
    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An option of `qcse train` and its values, such as bonus.k=5,10,25; may be given several times. All combinations
    are trained. In the file: a table [grid] of lists."""
    workers: int | None = None
    """Processes at a time, at most. None: as many as the GPUs hold; without a GPU one for every two cores."""
    cores: int | None = None
    """CPU threads of all processes together, at most, which are divided among them. None: the cores there are."""
    runs_per_gpu: int = 1
    """Processes that share a GPU. Each sees one GPU; what finds no place waits."""
    launcher: str = "processes"
    """What trains the runs. processes: some of this machine, several at a time."""
    estimate: bool = True
    """Measure some updates of each kind before the start, for an estimate of the time."""
    dry_run: bool = False
    """Print the runs and the estimate, and train nothing."""


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


@dataclass
class MazeCollectArgs:
    """Lead a body through a maze from goal to goal and write what happened in D4RL's layout: NAME.hdf5."""

    env: str = "qcse/pointmaze-umaze-v0"
    """A maze of this package: qcse/pointmaze-..., qcse/maze2d-... or qcse/antmaze-..."""
    out: Path = Path("data")
    """Folder for the dataset."""
    name: str | None = None
    """File name without .hdf5. None: that of the environment."""
    rows: int = 25_000
    """Transitions to record."""
    behaviour: Literal["waypoints", "random"] = "waypoints"
    """waypoints: along the shortest path to one goal after the other; random: uniform actions."""
    policy: Path | None = None
    """antmaze: run folder of a policy that walks to goals, trained with --env qcse/antgoal-v2 (or -v4)."""
    noise: float = 0.5
    """Standard deviation of the noise on each action. D4RL's: 0.5 in Maze2d, 0.2 in AntMaze."""
    goals: Literal["anywhere", "task"] = "anywhere"
    """Where the body is sent: to cells drawn at random (D4RL's multigoal), or to the task's goal alone."""
    cells: int | None = None
    """With goals anywhere: only the so many free cells that are nearest to the task's start. None: all."""
    starts: Literal["anywhere", "task"] = "anywhere"
    """Where episodes begin: in any free cell (D4RL's multistart), or where the task says."""
    seed: int = 0
    """Seed of environment, goals and noise."""
    resume: Path | None = None
    """Go on with the unfinished recording in this folder, with its stored options."""
    finish: bool = False
    """With --resume: make a dataset of what there is, record nothing more."""
    trust_env_spec: TrustEnvSpec = False


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
    trust_env_spec: TrustEnvSpec = False


@dataclass
class ConvertArgs:
    """Convert between D4RL's layout and Minari."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """File in D4RL's layout, or minari:ID."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """File to write, or minari:ID, such as minari:hopper/replay-v0."""
    env: str | None = None
    """Environment to note down. None: the one that the data names."""
    trust_env_spec: TrustEnvSpec = False


@dataclass
class FetchArgs:
    """Find the dataset of a task in D4RL's cache folder, or download it there; prints its path."""

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    """Name of the task."""


# What the numbers of all commands but train may be; they say the rest themselves, such as which must not be 0.
RANGES = {
    **dict.fromkeys(("steps", "offline_steps", "online_steps", "policy_rows", "learning_starts", "warm_up"), STEPS),
    **dict.fromkeys(("replay_rows", "eval_every"), COUNT),
    **dict.fromkeys(("seed", "first_seed"), SEED),
    **dict.fromkeys(("seeds", "batch_seeds", "workers", "cores", "runs_per_gpu"), Range(1, 10_000)),
    **dict.fromkeys(("episodes", "actions", "rounds", "updates"), Range(1, 1_000_000)),
    **dict.fromkeys(("hidden", "policy_hidden", "critic_hidden", "state_dim", "action_dim"), WIDTH),
    "batch_size": Range(1, 10**8),
    "watch": Range(0.1, 86_400),
    "stop_return": NUMBER,
    "noise": NOT_NEGATIVE,
    **dict.fromkeys(("rows", "cells"), COUNT),
    "threads": THREADS,
}

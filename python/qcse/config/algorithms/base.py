"""Options that all algorithms share, and what an algorithm says of itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..bonus import BonusConfig
from ..ranges import COUNT, NUMBER, POSITIVE, SEED, STEPS, THREADS, WIDTH, Range

Precision = Literal["float32", "tf32", "bf16"]
Preset = Literal["default", "corl", "official"]

MUJOCO = ("halfcheetah", "hopper", "walker2d", "ant")
ADROIT = ("pen", "door", "hammer", "relocate")


@dataclass
class NetworkConfig:
    policy_hidden: tuple[int, ...] = (256, 256)
    """Widths of the policy's hidden layers."""
    critic_hidden: tuple[int, ...] = (256, 256)
    """Widths of each critic's hidden layers."""
    orthogonal_init: bool = False
    """Orthogonal weights with gain sqrt(2) instead of torch's default initialisation."""
    critics: int = 2
    """Critics of each seed."""
    critic_layer_norm: bool = False
    """Layer norm before each ReLU of the critics (rlpd, wsrl), and of iql's value function."""
    policy_layer_norm: bool = False
    """Layer norm before each ReLU of the policy (wsrl)."""


@dataclass
class Options:
    """Train a policy offline, then fine-tune it online."""

    algo: str = "cal_ql"
    env: str = "Hopper-v5"
    """Gymnasium environment id. minari:ID is the environment that a Minari dataset was recorded in."""
    task: str | None = None
    """Name of a dataset of D4RL, such as antmaze-large-play-v2: sets env, dataset (found in D4RL's cache folder or
    downloaded into it) and preset, all of which may still be given. `qcse data list` shows the names."""
    preset: Preset = "default"
    """Whose constants the defaults are. default: for cql, cal_ql and iql WSRL's on MuJoCo and CORL's on AntMaze, for
    awac and td3_bc CORL's, for rlpd and wsrl their authors'; corl: CORL's where it has some (cql, cal_ql: antmaze,
    MuJoCo, Adroit; iql, awac: antmaze, Adroit; td3_bc: MuJoCo); official: Cal-QL's authors' (cql, cal_ql: antmaze)."""
    dataset: Path | None = None
    """HDF5 file in D4RL's layout, or minari:ID. Needed unless offline_steps is 0 and the algorithm is sac."""
    d4rl_transitions: bool = False
    """Use exactly the transitions of D4RL's qlearning_dataset: without the steps at time limits, which are kept
    otherwise, with their true next states where the file has them."""
    action_units: Literal["auto", "unit", "environment"] = "auto"
    """What the dataset's actions are measured in, where the environment's bounds are not -1 and 1. unit: those bounds
    are -1 and 1, as in what `qcse collect` records; environment: its own numbers, as in D4RL's files. auto: as the
    file says, or as its actions leave no doubt."""
    bonus: BonusConfig = field(default_factory=BonusConfig)
    offline_steps: int = 250_000
    """Gradient updates on the dataset before the first environment step."""
    online_steps: int = 250_000
    """Environment steps of fine-tuning."""
    seed: int = 0
    """Seed of every random stream of this run."""
    seeds: int = 1
    """Independent runs with seeds seed, seed + 1, ..., trained together in batched products: own weights, random
    streams, environments and online buffers, one dataset. Each gets a run folder OUT/seed<K>."""
    out: Path | None = None
    """Run folder; it must not hold a run yet. Default: runs/<env>-<algo>-<bonus>-seed<seed>."""
    init_from: Path | None = None
    """Run folder, or one of the checkpoints that it keeps: start online with the networks of its offline end. Options
    that are not given are that run's; another algo or bonus brings its own defaults. Its seeds go on with their random
    streams; other seeds take its networks in turn."""
    fresh_optimizers: bool = False
    """With init_from: Adam starts anew instead of going on with the moments of pre-training."""

    batch_size: int = 256
    """Transitions in an update."""
    offline_fraction: float | None = None
    """Share of each online batch that comes from the dataset. None: drawn uniformly from dataset and online buffer
    taken together."""
    updates_per_step: int = 1
    """Gradient updates per environment step in the online phase (rlpd 20, wsrl 4)."""
    policy_every: int | None = 1
    """The policy and its temperature move at each so many-th update only (td3_bc 2, and its targets with them). None:
    along with the last of an environment step's updates (rlpd, wsrl). In wsrl's offline phase always at each."""
    update_after: Literal["step", "episode"] = "step"
    """When updates happen online: after each step, or after each episode as many as it had steps."""
    learning_starts: int = 0
    """Online steps before the first online update. Where random_steps is 0 the pre-trained policy takes them: wsrl's
    warm-up."""
    random_steps: int = 0
    """Online steps whose actions are drawn uniformly instead of from the policy."""
    online_buffer: int = 1_000_000
    """Capacity of the online buffer, in transitions."""

    discount: float = 0.99
    """gamma."""
    target_rate: float = 0.005
    """tau: targets move by this share of the way at each update."""
    policy_lr: float = 1e-4
    """Adam's rate for the policy and its entropy temperature."""
    critic_lr: float = 3e-4
    """Adam's rate for the critics and cql's multiplier."""
    target_entropy: float | None = None
    """Entropy that the temperature aims at. None: minus the number of action dimensions (rlpd: half of it)."""
    critic_subset: int | None = None
    """Of how many critics, drawn anew for each update, the Bellman target takes the least value, and the conservative
    term the mean gap; None: of all (sac, cql, cal_ql, rlpd, wsrl)."""
    policy_value: Literal["min", "mean"] = "min"
    """Which value of the ensemble the policy maximises, its least or its mean (sac, cql, cal_ql, rlpd, wsrl)."""
    entropy_backup: bool = False
    """Subtract temperature * log pi from the bootstrap value."""
    behaviour_cloning_steps: int = 0
    """First updates in which the policy maximises the data's likelihood instead of Q."""
    reward_scale: float = 1.0
    """The learner sees reward_scale * reward + reward_bias (antmaze: 10 and -5)."""
    reward_bias: float = 0.0
    """See reward_scale."""
    normalize_observations: bool = False
    """Standardise observations by the dataset's mean and spread (plus 1e-3)."""
    net: NetworkConfig = field(default_factory=NetworkConfig)

    eval_every: int = 10_000
    """Steps between evaluations; the untrained policy and each phase's end are evaluated as well."""
    eval_episodes: int = 10
    """Episodes of one evaluation."""
    log_every: int = 1000
    """Steps between rows of train.csv, which hold means since the row before."""
    checkpoint_seconds: float = 15.0
    """A checkpoint is written at the latest after this many seconds; its timing never changes a result."""
    keep_checkpoints: Literal["none", "offline_end", "evaluations"] = "offline_end"
    """Which checkpoints stay in OUT/checkpoints, without the online buffer, for --init-from: that of the offline
    phase's end, or those of all evaluations but the first."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... or auto: the first CUDA device if there is one."""
    cuda_graph: Literal["auto", "off"] = "auto"
    """auto: on a GPU an update is captured once and replayed, except where bonus.references is 'buffer', whose shapes
    grow. off: every update is launched anew."""
    overlap: bool = False
    """Online, choose the next action before the update(s) that the latest step calls for, not after them, so that a
    GPU updates while the CPU steps the environment. The policy that acts is one step's updates older."""
    precision: Precision = "float32"
    """Of matrix products' factors; sums are float32. tf32: all of them on a GPU, 11 bits. bf16: those between the
    critics' hidden layers, 8 bits; on a CPU it needs AVX512-BF16 and -VBMI2, on a GPU it leaves the critics to torch's
    own operations and tf32 is what the fused ones are made for."""
    threads: int | None = None
    """torch's CPU threads. None: one per core. Results are reproducible bit for bit for an equal number only."""


# Options that no update of the offline phase reads: runs that differ in them alone can share it. Beside these there are
# an algorithm's own (`Algorithm.online_only`) and a bonus's, where it does not act offline; see `config.phases`.
ONLINE_ONLY = frozenset({
    "online_steps", "out", "init_from", "fresh_optimizers", "offline_fraction", "updates_per_step", "update_after",
    "learning_starts", "random_steps", "online_buffer", "overlap", "eval_every", "eval_episodes", "log_every",
    "checkpoint_seconds", "keep_checkpoints",
})  # fmt: skip


# What each option that is a number may be. (Each has an entry: `check_ranges` asks for all of them.)
RANGES = {
    **dict.fromkeys(("offline_steps", "online_steps", "learning_starts", "random_steps"), STEPS),
    "behaviour_cloning_steps": STEPS,
    **dict.fromkeys(("eval_every", "log_every", "online_buffer"), COUNT),
    "seed": SEED,
    "seeds": Range(1, 10_000),
    "batch_size": Range(1, 10**8),
    "offline_fraction": Range(0, 1),
    "updates_per_step": Range(1, 1_000_000),
    "policy_every": COUNT,
    "discount": Range(0, 1, "[)"),
    "target_rate": Range(0, 1, "(]"),
    **dict.fromkeys(("policy_lr", "critic_lr", "checkpoint_seconds"), POSITIVE),
    **dict.fromkeys(("target_entropy", "reward_scale", "reward_bias"), NUMBER),
    "critic_subset": Range(1, 10_000),
    "eval_episodes": Range(1, 1_000_000),
    "threads": THREADS,
    **dict.fromkeys(("net.policy_hidden", "net.critic_hidden"), WIDTH),
    "net.critics": Range(1, 10_000),
}


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm is before it is made.

    Attributes:
        summary: a few words for --help.
        agent: "module:class" below `qcse.learn.agents`.
        options: the options that it reads: `Options`, with a group of its own added where it has one.
        preset: sets its defaults in its options, given a task's family and whose constants they are to be.
        published: whose constants, beside the default ones, there are on which families.
        ranges: "group.option" -> range, for those of its own options that are numbers.
        needs_data: whether it learns from a dataset even where there is no offline phase.
        online_only: those of its own options that its offline phase does not read.
    """

    summary: str
    agent: str
    options: type[Options]
    preset: Callable[[Any, str, str], None]
    published: Mapping[str, Collection[str]] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    needs_data: bool = True
    online_only: Collection[str] = ()

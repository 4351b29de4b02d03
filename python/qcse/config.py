"""Every option of a training run as one typed dataclass tree. Field docstrings are the command line's help."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .datasets import task_family
from .errors import ConfigError
from .typed import Range, build, check_ranges, parse_json, path_text, read_json

Algo = Literal["sac", "cql", "cal_ql", "iql", "awac", "td3_bc", "rlpd", "wsrl"]
BonusKind = Literal["none", "qcse", "vcse", "se", "rnd"]
Preset = Literal["default", "corl", "official"]

# Neighbours that worked best in the paper, per task family (arXiv 2310.19805, as quoted by its reviewers).
PAPER_NEIGHBOURS = {"hopper": 10, "walker2d": 20, "antmaze": 25}
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
class CqlConfig:
    """Conservative Q-learning (arXiv 2006.04779); used by cql, cal_ql and the pre-training of wsrl."""

    alpha: float = 5.0
    """Weight of the conservative term."""
    actions: int = 10
    """Actions sampled per state from each of: uniform, policy at s, policy at s'."""
    importance_sampling: bool = True
    """Subtract each sampled action's log-density inside the log-sum-exp, CQL(H)."""
    max_target_backup: bool = True
    """Bootstrap from the best of `actions` sampled next actions instead of one."""
    lagrange: bool = False
    """Learn a multiplier that holds the conservative gap at `target_gap`."""
    target_gap: float = 0.8
    """Gap between the log-sum-exp and the data's Q that the multiplier aims at (only with lagrange)."""
    temperature: float = 1.0
    """Temperature of the log-sum-exp."""
    clip_difference: float | None = None
    """Lower bound of the conservative difference of one transition (CORL's antmaze runs: -200); None: no bound."""
    calibration_online: Literal["off", "task_return", "return_with_bonus"] = "off"
    """cal_ql, online phase: the lower bound of Q at the policy's actions. 'off' as in CORL; 'task_return' bounds by
    the Monte-Carlo return of the task's reward of each finished online episode, as in the official code (with a
    bonus in the reward this bounds another quantity than the Q that is learnt); 'return_with_bonus' adds the
    bonuses that the episode's transitions had when it finished. Offline the bound is always on."""


@dataclass
class IqlConfig:
    """Implicit Q-learning (arXiv 2110.06169)."""

    expectile: float = 0.7
    """Expectile of Q that the value function is regressed on; near 1 it is near the maximum over the data's actions."""
    beta: float = 3.0
    """Inverse temperature: the policy imitates an action with weight exp(beta * advantage), at most 100."""


@dataclass
class AwacConfig:
    """Advantage-weighted actor-critic (arXiv 2006.09359)."""

    temperature: float = 1.0 / 3.0
    """lambda: the policy imitates an action with weight exp(advantage / lambda), at most 100. The weights are not
    divided by their sum over the batch, as in CORL."""


@dataclass
class Td3BcConfig:
    """TD3+BC (arXiv 2106.06860). Its delay of policy and targets is policy_every."""

    alpha: float = 2.5
    """Weight of Q, divided by the batch's mean |Q|, against the squared distance from the data's actions."""
    policy_noise: float = 0.2
    """Standard deviation of the noise on the target policy's action."""
    noise_clip: float = 0.5
    """Bound of that noise."""
    exploration_noise: float = 0.1
    """Standard deviation of the Gaussian noise that is added to the actions taken online."""


@dataclass
class WsrlConfig:
    """Warm-start reinforcement learning (arXiv 2412.07762)."""

    pretraining: Literal["cql", "cal_ql"] = "cql"
    """Whose losses the offline phase has; options of both are in the cql group."""
    max_target_backup: bool = False
    """Online phase: bootstrap from the best of `cql.actions` sampled next actions (the authors' antmaze runs)."""


@dataclass
class BonusConfig:
    """The intrinsic reward r' = r + weight * squash(novelty). An option that a bonus does not use is ignored."""

    kind: Annotated[BonusKind, tyro.conf.arg(name="bonus", prefix_name=False)] = "none"
    """Which bonus joins the reward. qcse: entropy of states given their Q, from k nearest neighbours (arXiv
    2310.19805). vcse: the same as VCSE's code takes it (arXiv 2305.19476). se: entropy of states alone, log(1 +
    distance to the k-th neighbour) (RE3, arXiv 2102.09430). rnd: error of predicting a random network (arXiv
    1810.12894). Each has defaults of its own; --help together with --bonus shows them."""
    weight: float = 1.0
    """lambda, the factor of the bonus at the first online update."""
    decay: float = 0.0
    """kappa: the weight of online update t is weight * (1 - decay)^t."""
    k: int = 12
    """qcse, vcse, se: neighbours of the estimate. The paper's best for qcse: 10 hopper, 20 walker2d, about 25
    antmaze-large-diverse."""
    count_self: bool = False
    """qcse, vcse, se: count the point itself as its own first neighbour, as VCSE's published code does: its k-th
    neighbour is the (k-1)-th other point, and it counts itself among those that are closer in Q."""
    critic: Literal["online", "target", "frozen"] = "online"
    """qcse, vcse: which critics give Q = min(Q1, Q2): the current ones, their targets, or those at the end of
    pre-training."""
    action: Literal["stored", "policy"] = "stored"
    """qcse, vcse: at which action Q is taken: the transition's own (the reward's argument) or the policy's mode at its
    state, where it is V."""
    references: Literal["batch", "sample", "buffer"] = "batch"
    """qcse, vcse, se: among which transitions neighbours are sought: the batch's own; `reference_size` drawn anew from
    the online buffer for each update; the whole online buffer (exact, and its Q is computed anew for each update)."""
    reference_size: int = 4096
    """Transitions drawn where references is 'sample'."""
    transitions: Literal["online", "all"] = "online"
    """Which transitions get the bonus, and are candidates: those collected online, or the dataset's as well (then
    in the offline phase, too)."""
    state_scale: Literal["standardised_sqrt_d", "standardised_d", "standardised", "d", "none"] = "standardised_sqrt_d"
    """qcse, vcse, se: how states enter the distance, or the random encoder. Standardised (running statistics) and
    divided by sqrt(D), the root mean square per dimension, behaves alike in all tasks; 'd' is what VCSE's code does;
    'standardised' and 'none' saturate the tanh on most tasks."""
    value_scale: Literal["standardised", "batch", "none"] = "standardised"
    """qcse, vcse: how Q enters the distance: standardised by running statistics, by those of the batch (what VCSE's
    code does; a transition's bonus then depends on what was drawn beside it), or in units of return."""
    squash: Literal["tanh", "standardised_tanh", "scaled", "none"] = "tanh"
    """tanh(h) as in the paper; tanh((h - mean) / spread) with running statistics, which cannot saturate; h / spread
    with running statistics, as RND; h itself as in VCSE."""
    when: Literal["sample", "store"] = "sample"
    """Computed for each sampled batch with the Q of the moment, or once, when a transition is stored (needs
    references 'sample' or 'buffer'; not for rnd)."""
    join: Literal["after", "before"] = "after"
    """Added after the task's reward transform (reward_scale, reward_bias) or before it."""
    offset: float = 1e-5
    """qcse, vcse: added inside the logarithm: log(2 * radius + offset). A radius of zero gives log(offset), so a finite
    bonus."""
    statistics_horizon: int = 1000
    """Updates that the running statistics look back on: their rate is max(1 / updates so far, 1 / horizon)."""
    encoder: Literal["random", "none"] = "random"
    """se: distances behind a random network that never learns, as in RE3, or between the states themselves."""
    hidden: tuple[int, ...] = (256, 256)
    """se, rnd: widths of the random network's hidden layers; rnd's predictor has two more."""
    embedding: int = 50
    """se, rnd: features of the random network."""
    predictor_lr: float = 1e-4
    """rnd: Adam's rate for the predictor."""


@dataclass
class TrainConfig:
    """Train a policy offline, then fine-tune it online."""

    algo: Algo = "cal_ql"
    """Algorithm: sac; cql (conservative), cal_ql (conservative, calibrated by the data's returns); iql, awac (imitate
    the data's better actions); td3_bc (deterministic, held near the data); rlpd (SAC on half data, half experience);
    wsrl (conservative pre-training, then SAC on experience alone)."""
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
    cql: CqlConfig = field(default_factory=CqlConfig)
    iql: IqlConfig = field(default_factory=IqlConfig)
    awac: AwacConfig = field(default_factory=AwacConfig)
    td3_bc: Td3BcConfig = field(default_factory=Td3BcConfig)
    wsrl: WsrlConfig = field(default_factory=WsrlConfig)

    eval_every: int = 10_000
    """Steps between evaluations; the untrained policy and each phase's end are evaluated as well."""
    eval_episodes: int = 10
    """Episodes of one evaluation."""
    log_every: int = 1000
    """Steps between rows of train.csv, which hold means since the row before."""
    checkpoint_seconds: float = 15.0
    """A checkpoint is written at the latest after this many seconds; its timing never changes a result."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... or auto: the first CUDA device if there is one."""
    cuda_graph: Literal["auto", "off"] = "auto"
    """auto: on a GPU an update is captured once and replayed, except where bonus.references is 'buffer', whose shapes
    grow. off: every update is launched anew."""
    overlap: bool = False
    """Online, choose the next action before the update(s) that the latest step calls for, not after them, so that a
    GPU updates while the CPU steps the environment. The policy that acts is one step's updates older."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Of matrix products' factors; sums are float32. tf32: all of them on a GPU, 11 bits. bf16: those between the
    critics' hidden layers, 8 bits; on a CPU it needs AVX512-BF16 and -VBMI2."""
    threads: int | None = None
    """torch's CPU threads. None: one per core. Results are reproducible bit for bit for an equal number only."""

    @property
    def needs_returns(self) -> bool:
        """Whether the algorithm looks at the dataset's Monte-Carlo returns."""
        return self.algo == "cal_ql" or (self.algo == "wsrl" and self.wsrl.pretraining == "cal_ql")


# Whose constants there are, for which algorithms on which families.
PUBLISHED = {
    "corl": {
        **dict.fromkeys(("cql", "cal_ql"), (*MUJOCO, "antmaze", *ADROIT)),
        **dict.fromkeys(("iql", "awac"), ("antmaze", *ADROIT)),
        "td3_bc": MUJOCO,
    },
    "official": dict.fromkeys(("cql", "cal_ql"), ("antmaze",)),
}


def has_preset(algo: str, env: str, kind: str) -> bool:
    """Whether there are constants of this kind for the algorithm on the environment's family."""
    return kind == "default" or task_family(env) in PUBLISHED[kind].get(algo, ())


def bonus_preset(kind: str) -> BonusConfig:
    """Defaults of a bonus, with their sources.

    qcse: the paper's weight of 1 (arXiv 2310.19805), and a scaling that does not saturate its tanh. vcse: the SAC
    version of VCSE's code (kingdy2002/VCSE, commit 74a3e6f): weight 0.1, k 12, min Q' of the target critics at the
    policy's mode, standardised over the batch, states divided by D, no squash. se: RE3's DeepMind Control runs
    (younggyoseo/RE3, commit 66cc4d1): weight 0.05, decay 1e-5, k 3, 50 features. rnd: that code (openai/
    random-network-distillation, commit f75c0f1): 512 features, rate 1e-4, intrinsic to extrinsic as 1 to 2.

    Raises:
        ConfigError: an unknown bonus.
    """
    if kind not in typing.get_args(BonusKind):
        raise ConfigError(f"bonus: got {kind!r}, expected one of {', '.join(typing.get_args(BonusKind))}")
    config = BonusConfig(kind=typing.cast(BonusKind, kind))
    if kind == "vcse":
        config.weight, config.k, config.critic, config.action = 0.1, 12, "target", "policy"
        config.state_scale, config.value_scale, config.squash = "d", "batch", "none"
    elif kind == "se":
        config.weight, config.decay, config.k, config.squash = 0.05, 1e-5, 3, "none"
        config.state_scale = "standardised"
    elif kind == "rnd":
        config.weight, config.squash, config.embedding = 0.5, "scaled", 512
    return config


def preset(algo: str, env: str, kind: str = "default", bonus: str = "none") -> TrainConfig:
    """Defaults for an algorithm on an environment's family, with their sources.

    Args:
        algo: an algorithm.
        env: Gymnasium's name; its family decides.
        kind: whose constants, "default", "corl" (commit 6afec90) or "official" (Cal-QL's authors', commit ac6eafe, on
            AntMaze). The default ones are:

            * cql, cal_ql: on MuJoCo those of WSRL's public offline-to-online configuration (commit 891ee35: two hidden
              layers of 256, alpha 5, no Lagrange multiplier, max-target backup, 250k updates offline), on AntMaze
              CORL's, on the embedded point maze AntMaze's rewards with small networks;
            * iql: on MuJoCo WSRL's (expectile 0.7, beta 3), elsewhere CORL's (finetune/iql: 0.9 and 10 on AntMaze, 0.8
              and 3 on Adroit). The policy's rate is constant, as in WSRL; CORL's falls along a cosine, and its policy
              has dropout on Adroit;
            * awac: CORL's (finetune/awac, on MuJoCo offline/awac), without its scaling of MuJoCo's rewards;
            * td3_bc: CORL's, which are the paper's; both have an offline phase only;
            * rlpd: its authors' (commit c90fd4b): D4RL's locomotion, with their changes for AntMaze and Adroit;
            * wsrl: its authors' (commit 891ee35) on MuJoCo, and on AntMaze except for the policy's standard deviation,
              which there does not depend on the state;
            * sac: Stable-Baselines3's.
        bonus: a bonus; its own defaults are `bonus_preset`'s.

    Raises:
        ConfigError: an unknown algorithm or bonus, or a kind that has no constants for the environment.
    """
    if algo not in typing.get_args(Algo):
        raise ConfigError(f"algo: got {algo!r}, expected one of {', '.join(typing.get_args(Algo))}")
    if kind not in typing.get_args(Preset):
        raise ConfigError(f"preset: got {kind!r}, expected one of {', '.join(typing.get_args(Preset))}")
    family = task_family(env)
    if not has_preset(algo, env, kind):
        algos: dict[tuple[str, ...], list[str]] = {}  # those that have constants on the same families together
        for name, families in PUBLISHED[kind].items():
            algos.setdefault(tuple(families), []).append(name)
        offers = "; ".join(f"{' or '.join(names)} on {', '.join(families)}" for families, names in algos.items())
        raise ConfigError(
            f"preset: {kind!r} has no constants for {algo} on {env}; expected {offers}, or --preset default"
        )
    config = TrainConfig(algo=typing.cast(Algo, algo), env=env, preset=typing.cast(Preset, kind))
    config.bonus = bonus_preset(bonus)
    if bonus in ("none", "qcse"):
        config.bonus.k = PAPER_NEIGHBOURS.get(family, 12)
    if algo == "sac":
        config.offline_steps = 0
        config.online_steps = 1_000_000
        config.policy_lr = 3e-4
        config.entropy_backup = True
        config.learning_starts = config.random_steps = 5000
        return config
    if algo in ("cql", "cal_ql"):
        _conservative(config, family, kind)
    elif algo in ("iql", "awac", "td3_bc"):
        _near_the_data(config, family, kind)
    elif algo == "rlpd":
        _rlpd(config, family)
    else:
        _wsrl(config, family)
    if config.offline_fraction is None:
        # Drawn from dataset and online buffer together, a batch holds too few online rows for its own neighbours.
        config.bonus.references, config.bonus.reference_size = "sample", config.batch_size
    if family == "pointmaze":  # a demonstration: a first idea of the way offline, the rest online, in a minute or two
        config.offline_steps, config.online_steps, config.batch_size = min(config.offline_steps, 300), 2000, 128
        config.learning_starts, config.random_steps = min(config.learning_starts, 250), min(config.random_steps, 250)
        config.updates_per_step = min(config.updates_per_step, 4)
        config.net.policy_hidden = config.net.critic_hidden = (128, 128)
        config.reward_scale, config.reward_bias = 10.0, -5.0
        config.policy_lr, config.normalize_observations = 3e-4, True
        config.eval_every, config.eval_episodes, config.log_every = 250, 20, 250
    return config


def _conservative(config: TrainConfig, family: str, kind: str) -> None:
    """cql and cal_ql."""
    if config.algo == "cal_ql":
        config.offline_fraction = 0.5
    if family == "antmaze":
        config.reward_scale, config.reward_bias = 10.0, -5.0
        config.offline_steps = config.online_steps = 1_000_000
        config.cql.lagrange = True
        config.eval_every = 50_000
        if kind == "official":
            config.net = NetworkConfig((256,) * 2, (256,) * 4, orthogonal_init=True)
            config.cql.calibration_online = "task_return"
            config.update_after = "episode"
            config.eval_episodes = 20
        else:
            config.net = NetworkConfig((256,) * 3, (256,) * 5, orthogonal_init=True)
            config.cql.clip_difference = -200.0
            config.eval_episodes = 100
    elif kind == "corl":
        config.offline_steps = config.online_steps = 1_000_000
        config.net = NetworkConfig((256,) * 3, (256,) * 3, orthogonal_init=True)
        if family in ADROIT:
            config.cql.alpha = 1.0
        else:
            config.cql.alpha, config.cql.max_target_backup = 10.0, False
            config.policy_lr, config.normalize_observations = 3e-5, True


def _near_the_data(config: TrainConfig, family: str, kind: str) -> None:
    """iql, awac and td3_bc."""
    config.policy_lr = 3e-4
    config.normalize_observations = config.algo != "iql" or family in ("antmaze", *ADROIT)
    if family == "antmaze":
        config.reward_bias = -1.0
        config.eval_every, config.eval_episodes = 50_000, 100
    if family in ("antmaze", *ADROIT) or kind == "corl":
        config.offline_steps = config.online_steps = 1_000_000
    if config.algo == "iql":
        if family == "antmaze":
            config.iql.expectile, config.iql.beta = 0.9, 10.0
        elif family in ADROIT:
            config.iql.expectile = 0.8
    elif config.algo == "awac":
        config.net = NetworkConfig((256,) * 3, (256,) * 3)
        if family in ("antmaze", *ADROIT):
            config.awac.temperature = 0.1
    else:
        config.policy_every = 2


def _rlpd(config: TrainConfig, family: str) -> None:
    config.offline_steps, config.offline_fraction = 0, 0.5
    config.learning_starts = config.random_steps = 5000
    config.policy_lr = 3e-4
    config.net.critics, config.net.critic_layer_norm = 10, True
    config.critic_subset, config.policy_value, config.entropy_backup = 2, "mean", True
    config.updates_per_step, config.policy_every = 20, None
    if family in ("antmaze", *ADROIT):
        config.net.policy_hidden = config.net.critic_hidden = (256,) * 3
        config.entropy_backup = False
        config.online_steps = 300_000 if family == "antmaze" else 1_000_000
    if family == "antmaze":
        config.critic_subset, config.reward_bias = 1, -1.0
        config.eval_episodes = 100


def _wsrl(config: TrainConfig, family: str) -> None:
    config.offline_fraction, config.online_steps = 0.0, 500_000
    config.learning_starts = 5000
    config.net.critics, config.net.critic_layer_norm, config.net.policy_layer_norm = 10, True, True
    config.critic_subset = 2
    config.updates_per_step, config.policy_every = 4, None
    if family == "antmaze":
        config.offline_steps = 1_000_000
        config.net.critic_hidden = (256,) * 4
        config.reward_scale, config.reward_bias = 10.0, -5.0
        config.cql.lagrange = True
        config.wsrl.pretraining, config.wsrl.max_target_backup = "cal_ql", True
        config.eval_every, config.eval_episodes = 20_000, 20


GREATEST = 1e30  # of a float option: its square is still a float32
NUMBER = Range(-GREATEST, GREATEST)
NOT_NEGATIVE = Range(0, GREATEST)
POSITIVE = Range(1e-30, GREATEST)
STEPS = Range(0, 10**15)
COUNT = Range(1, 10**15)
WIDTH = Range(1, 1_000_000)
THREADS = Range(1, 1024)
SEED = Range(0, 2**32 - 1)

# What each option that is a number may be. (Each has an entry: `check_ranges` asks for all of them.)
RANGES = {
    **dict.fromkeys(("offline_steps", "online_steps", "learning_starts", "random_steps"), STEPS),
    "behaviour_cloning_steps": STEPS,
    **dict.fromkeys(("eval_every", "log_every", "online_buffer", "bonus.statistics_horizon"), COUNT),
    "seed": SEED,
    "seeds": Range(1, 10_000),
    "batch_size": Range(1, 10**8),
    "offline_fraction": Range(0, 1),
    "updates_per_step": Range(1, 1_000_000),
    "policy_every": COUNT,
    "discount": Range(0, 1, "[)"),
    "target_rate": Range(0, 1, "(]"),
    **dict.fromkeys(("policy_lr", "critic_lr", "checkpoint_seconds", "bonus.predictor_lr"), POSITIVE),
    **dict.fromkeys(("target_entropy", "reward_scale", "reward_bias", "bonus.weight"), NUMBER),
    "critic_subset": Range(1, 10_000),
    "eval_episodes": Range(1, 1_000_000),
    "threads": THREADS,
    **dict.fromkeys(("net.policy_hidden", "net.critic_hidden", "bonus.hidden", "bonus.embedding"), WIDTH),
    "net.critics": Range(1, 10_000),
    **dict.fromkeys(("cql.alpha", "iql.beta"), NOT_NEGATIVE),
    **dict.fromkeys(("cql.temperature", "awac.temperature", "bonus.offset"), POSITIVE),
    "cql.actions": Range(1, 1_000_000),
    **dict.fromkeys(("cql.target_gap", "cql.clip_difference"), NUMBER),
    "iql.expectile": Range(0, 1, "()"),
    **{f"td3_bc.{name}": NOT_NEGATIVE for name in ("alpha", "policy_noise", "noise_clip", "exploration_noise")},
    "bonus.decay": Range(0, 1, "[)"),
    "bonus.k": Range(1, 128),
    "bonus.reference_size": Range(1, 10**9),
}


def validate(config: TrainConfig) -> None:
    """Raise ConfigError, naming the option, where a value or a combination cannot work."""
    from_dict(to_dict(config))
    check_ranges(config, RANGES)
    _require(
        config.offline_steps + config.online_steps > 0, "offline_steps and online_steps", "0 and 0", "a step to do"
    )
    for name, widths in (
        ("net.policy_hidden", config.net.policy_hidden),
        ("net.critic_hidden", config.net.critic_hidden),
        ("bonus.hidden", config.bonus.hidden),
    ):
        _require(len(widths) > 0, name, widths, "one or more widths")
    critics, subset = config.net.critics, config.critic_subset
    _require(subset is None or subset <= critics, "critic_subset", subset, f"at most net.critics, {critics}")
    needs_data = config.offline_steps > 0 or config.algo != "sac"
    if needs_data and config.dataset is None:
        raise ConfigError(
            f"dataset: got none, but algo {config.algo} with {config.offline_steps} offline steps learns from one; "
            "pass --dataset FILE (HDF5 in D4RL's layout; `qcse collect` makes one), or --algo sac --offline-steps 0"
        )
    if 0 < config.online_steps <= config.learning_starts:
        raise ConfigError(
            f"learning_starts: got {config.learning_starts} with {config.online_steps} online steps, so nothing would "
            "be learnt online; expected fewer than online_steps"
        )
    if config.seeds > 1 and config.update_after == "episode":
        raise ConfigError(
            f"update_after: got 'episode' with {config.seeds} seeds, whose episodes end at different steps; expected "
            "'step', or --seeds 1"
        )
    _validate_bonus(config)


def _validate_bonus(config: TrainConfig) -> None:
    bonus = config.bonus
    if bonus.kind == "none":
        return
    if bonus.kind == "rnd":
        if bonus.when == "store":
            raise ConfigError(
                "bonus.when: got 'store' with --bonus rnd, whose predictor learns from the batches that it judges; "
                "expected 'sample'"
            )
        return
    if bonus.count_self and bonus.k == 1:
        raise ConfigError(
            "bonus.k: got 1 with bonus.count_self, so each point would be its own only neighbour, at distance 0; "
            "expected 2 or more"
        )
    if bonus.when == "store" and bonus.references == "batch":
        raise ConfigError(
            "bonus.when: got 'store' with bonus.references 'batch', but a transition that is stored has no batch; "
            "expected references 'sample' or 'buffer', or --bonus.when sample"
        )
    if bonus.when == "store" and bonus.transitions == "all":
        raise ConfigError(
            "bonus.transitions: got 'all' with bonus.when 'store', but the dataset's transitions are never stored; "
            "expected 'online', or --bonus.when sample"
        )
    if bonus.references != "batch" and bonus.transitions == "all":
        raise ConfigError(
            f"bonus.transitions: got 'all' with bonus.references {bonus.references!r}, which are online transitions "
            "only; expected 'online', or --bonus.references batch"
        )
    if bonus.critic == "frozen" and bonus.kind != "se" and config.offline_steps == 0:
        raise ConfigError(
            "bonus.critic: got 'frozen' with 0 offline steps, so there is no pre-trained critic to freeze; "
            "expected 'online' or 'target'"
        )
    eligible = config.batch_size
    if bonus.references == "sample":
        eligible = bonus.reference_size
    elif bonus.references == "buffer":
        eligible = min(config.online_buffer, max(config.online_steps, 1))
    elif bonus.transitions == "online" and config.offline_fraction is not None:
        eligible -= round(config.offline_fraction * config.batch_size)
    if bonus.k - bonus.count_self > eligible - 1:
        raise ConfigError(
            f"bonus.k: got {bonus.k}, but only {eligible} transitions are candidates (a transition is not its own "
            f"neighbour), so k can be at most {eligible - 1 + bonus.count_self}; use a smaller --bonus.k, a larger "
            "--batch-size, or --bonus.references sample"
        )


def _require(ok: bool, name: str, got: object, expected: str) -> None:
    if not ok:
        raise ConfigError(f"{name}: got {got}, expected {expected}")


def to_dict(config: object) -> dict[str, Any]:
    """A dataclass tree as JSON-ready nested dicts."""

    def plain(value: object) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Path):
            return path_text(value)
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return value

    return plain(config)


ADDED = {"action_units": "auto"}  # options that run folders of earlier versions lack, and what they meant


def from_dict(data: object, source: str = "") -> TrainConfig:
    """The inverse of `to_dict` for a TrainConfig.

    Args:
        source: where the data come from, for messages; "" where that is plain.

    Raises:
        ConfigError: a name is unknown or missing, or a value is not of its option's type. (`validate` looks at ranges.)
    """
    if isinstance(data, dict):
        data = ADDED | data
    return TrainConfig(**build(TrainConfig, data, source))


def from_json(content: object, source: str) -> TrainConfig:
    """The configuration in a JSON text; ConfigError where it holds none."""
    return from_dict(parse_json(content, source), source)


def read_config(path: Path) -> TrainConfig:
    """The configuration in a file such as config.json; ConfigError where it holds none, OSError where it cannot be
    read."""
    return from_dict(read_json(path), str(path))


def differences(stored: TrainConfig, asked: TrainConfig) -> list[tuple[str, object, object]]:
    """(option, stored value, asked value) for every option in which two configurations differ."""

    def flat(data: dict[str, Any], prefix: str = "") -> dict[str, object]:
        out: dict[str, object] = {}
        for name, value in data.items():
            if isinstance(value, dict):
                out.update(flat(value, f"{prefix}{name}."))
            else:
                out[prefix + name] = value
        return out

    a, b = flat(to_dict(stored)), flat(to_dict(asked))
    return [(name, a[name], b[name]) for name in a if a[name] != b[name]]

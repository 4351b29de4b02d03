"""Defaults of algorithms and bonuses, with their sources."""

from __future__ import annotations

import typing

from ..envs.scores import task_family
from ..errors import ConfigError
from .algorithms import ALGORITHMS
from .algorithms.base import Preset
from .bonus import BonusConfig
from .bonuses import BONUSES
from .options import TrainConfig


def has_preset(algo: str, env: str, kind: str) -> bool:
    """Whether there are constants of this kind for the algorithm on the environment's family."""
    return kind == "default" or task_family(env) in ALGORITHMS[algo].published.get(kind, ())


def bonus_preset(kind: str, family: str | None = None) -> BonusConfig:
    """Defaults of a bonus; its file in `bonuses/` names their sources.

    Args:
        kind: a bonus.
        family: of the environment, whose constants may be special.

    Raises:
        ConfigError: an unknown bonus.
    """
    _check_choice("bonus", kind, BONUSES)
    options = BonusConfig(kind=kind)
    BONUSES[kind].defaults(options, family)
    return options


def preset(algo: str, env: str, kind: str = "default", bonus: str = "none") -> TrainConfig:
    """Defaults of an algorithm on an environment's family; its file in `algorithms/` names their sources.

    Args:
        algo: an algorithm.
        env: Gymnasium's name; its family decides.
        kind: whose constants, "default", "corl" (commit 6afec90) or "official" (Cal-QL's authors', commit ac6eafe, on
            AntMaze).
        bonus: a bonus; it has defaults of its own.

    Raises:
        ConfigError: an unknown algorithm or bonus, or a kind that has no constants for the environment.
    """
    _check_choice("algo", algo, ALGORITHMS)
    _check_choice("preset", kind, typing.get_args(Preset))
    family = task_family(env)
    if not has_preset(algo, env, kind):
        raise ConfigError(
            f"preset: {kind!r} has no constants for {algo} on {env}; expected {_offers(kind)}, or --preset default"
        )
    options = TrainConfig(algo=algo, env=env, preset=typing.cast(Preset, kind))
    options.bonus = bonus_preset(bonus, family)
    ALGORITHMS[algo].preset(options, family, kind)
    if not ALGORITHMS[algo].needs_data:
        return options
    if options.offline_fraction is None:
        # Drawn from dataset and online buffer together, a batch holds too few online rows for its own neighbours.
        options.bonus.references, options.bonus.reference_size = "sample", options.batch_size
    if family == "pointmaze":
        _demonstrate(options)
    return options


def _check_choice(name: str, got: str, choices: typing.Iterable[str]) -> None:
    if got not in choices:
        raise ConfigError(f"{name}: got {got!r}, expected one of {', '.join(choices)}")


def _offers(kind: str) -> str:
    """For which algorithms on which families there are constants."""
    algos: dict[tuple[str, ...], list[str]] = {}  # those that have constants on the same families together
    for name, algorithm in ALGORITHMS.items():
        if kind in algorithm.published:
            algos.setdefault(tuple(algorithm.published[kind]), []).append(name)
    return "; ".join(f"{' or '.join(names)} on {', '.join(families)}" for families, names in algos.items())


def _demonstrate(options: TrainConfig) -> None:
    """The embedded point maze: a first idea of the way offline, the rest online, in a minute or two."""
    options.offline_steps, options.online_steps, options.batch_size = min(options.offline_steps, 300), 2000, 128
    options.learning_starts, options.random_steps = min(options.learning_starts, 250), min(options.random_steps, 250)
    options.updates_per_step = min(options.updates_per_step, 4)
    options.net.policy_hidden = options.net.critic_hidden = (128, 128)
    options.reward_scale, options.reward_bias = 10.0, -5.0
    options.policy_lr, options.normalize_observations = 3e-4, True
    options.eval_every, options.eval_episodes, options.log_every = 250, 20, 250

"""Which options act in the offline phase, and those of a run that starts from another's offline end."""

from __future__ import annotations

from ..errors import ConfigError
from .algorithms import ALGORITHMS
from .algorithms.base import ONLINE_ONLY
from .options import TrainConfig, flat, from_flat
from .presets import has_preset, preset

# What a run takes over with the networks, whichever algorithm goes on: what they see and what their values are of.
OF_THE_NETWORKS = frozenset({
    "env", "task", "dataset", "d4rl_transitions", "action_units", "normalize_observations", "reward_scale",
    "reward_bias", "discount", "offline_steps",
})  # fmt: skip
# What cannot be otherwise, beside that: sizes of networks, what they see, and names that stand for it.
SHAPES = ("net.policy_hidden", "net.critic_hidden", "net.critics", "net.critic_layer_norm", "net.policy_layer_norm")
MUST_FIT = ("env", "task", "normalize_observations", *SHAPES)


def bonus_acts_offline(config: TrainConfig) -> bool:
    """Whether the dataset's transitions get a bonus, so that pre-training has one."""
    return config.bonus.kind != "none" and config.bonus.transitions == "all"


def offline_options(config: TrainConfig) -> dict[str, object]:
    """Option -> value, as JSON has it, of all that the offline phase depends on: where they are equal, it has the same
    bits."""
    online_only = ONLINE_ONLY | set(ALGORITHMS[config.algo].online_only)
    if config.policy_every is None:  # the policy's turn is then told by updates_per_step
        online_only -= {"updates_per_step"}
    keep_bonus = bonus_acts_offline(config)
    return {
        name: value
        for name, value in flat(config).items()
        if name not in online_only and (keep_bonus or not name.startswith("bonus."))
    }


def derived(source: TrainConfig, algo: str | None = None, bonus: str | None = None) -> TrainConfig:
    """Defaults of a run that starts from the networks of another one.

    They are that run's options. Another bonus brings its own defaults; another algorithm its own where the source had
    its algorithm's, but for what belongs to the networks (their sizes, the environment, the reward's scale, ...).

    Args:
        source: the run's options.
        algo, bonus: those of the new run; None: the source's.

    Raises:
        ConfigError: an unknown algorithm or bonus.
    """
    algo, bonus = algo or source.algo, bonus or source.bonus.kind
    new = _defaults(source, algo, bonus)
    old, options = flat(_defaults(source, source.algo, source.bonus.kind)), flat(source)
    for name, value in flat(new).items():
        of_the_networks = name in OF_THE_NETWORKS or name.startswith("net.")
        if value != old[name] and options[name] == old[name] and not of_the_networks:
            options[name] = value
    made = from_flat(options | {"out": None, "init_from": None, "fresh_optimizers": False})
    made.algo, made.preset = algo, new.preset
    if bonus != source.bonus.kind:
        made.bonus = new.bonus
    return made


def _defaults(source: TrainConfig, algo: str, bonus: str) -> TrainConfig:
    """An algorithm's where the source ran: of the source's preset, if the algorithm has constants of that kind."""
    known = algo not in ALGORITHMS or has_preset(algo, source.env, source.preset)  # `preset` refuses what is unknown
    return preset(algo, source.env, source.preset if known else "default", bonus)


def check_fits(config: TrainConfig, source: TrainConfig, step: int, name: str) -> None:
    """ConfigError where a run's options do not fit the networks that it is to start from.

    Args:
        source: the options of the run that they are of.
        step: which it had done.
        name: of that run, for messages.
    """
    asked, had = flat(config), flat(source)
    wrong = [f"{option}: {name} has {had[option]!r}, got {asked[option]!r}" for option in MUST_FIT
             if asked[option] != had[option]]  # fmt: skip
    if config.offline_steps != step:
        wrong.append(f"offline_steps: {name} has done {step}, got {config.offline_steps}")
    if wrong:
        raise ConfigError(
            f"init_from: what was asked does not fit: {'; '.join(wrong)}. Leave these options out, or pre-train with "
            "them (without --init-from)"
        )
    if bonus_acts_offline(config):
        raise ConfigError(
            f"init_from: bonus.transitions is 'all', so the bonus {config.bonus.kind} acts in the offline phase, which "
            f"{name} has behind it; expected --bonus.transitions online, or a run without --init-from"
        )

"""Options of the bonuses that look for k nearest neighbours, and the encoder that some look behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError
from ..ranges import POSITIVE, WIDTH, Range
from .base import BonusOptions, Run


@dataclass
class NeighbourOptions(BonusOptions):
    k: int = 12
    """qcse, vcse, se: neighbours of the estimate. The paper's best for qcse: 10 hopper, 20 walker2d, about 25
    antmaze-large-diverse."""
    count_self: bool = False
    """qcse, vcse, se: count the point itself as its own first neighbour, as VCSE's published code does: its k-th
    neighbour is the (k-1)-th other point, and it counts itself among those that are closer in Q."""
    state_scale: Literal["standardised_sqrt_d", "standardised_d", "standardised", "d", "none"] = "standardised_sqrt_d"
    """qcse, vcse, se: how states enter the distance, or the random encoder. Standardised (running statistics) and
    divided by sqrt(D), the root mean square per dimension, behaves alike in all tasks; 'd' is what VCSE's code does;
    'standardised' and 'none' saturate the tanh on most tasks."""


@dataclass
class ValueOptions(NeighbourOptions):
    """Of the bonuses whose neighbours are near in Q as well."""

    critic: Literal["online", "target", "frozen"] = "online"
    """qcse, vcse: which critics give Q = min(Q1, Q2): the current ones, their targets, or those at the end of
    pre-training."""
    action: Literal["stored", "policy"] = "stored"
    """qcse, vcse: at which action Q is taken: the transition's own (the reward's argument) or the policy's mode at its
    state, where it is V."""
    value_scale: Literal["standardised", "batch", "none"] = "standardised"
    """qcse, vcse: how Q enters the distance: standardised by running statistics, by those of the batch (what VCSE's
    code does; a transition's bonus then depends on what was drawn beside it), or in units of return."""
    offset: float = 1e-5
    """qcse, vcse: added inside the logarithm: log(2 * radius + offset). A radius of zero gives log(offset), so a finite
    bonus."""


@dataclass
class EncoderOptions(BonusOptions):
    hidden: tuple[int, ...] = (256, 256)
    """se, rnd: widths of the random network's hidden layers; rnd's predictor has two more."""
    embedding: int = 50
    """se, rnd: features of the random network."""


RANGES = {"k": Range(1, 128)}
VALUE_RANGES = RANGES | {"offset": POSITIVE}
ENCODER_RANGES = {"hidden": WIDTH, "embedding": WIDTH}


def check(options: NeighbourOptions, run: Run) -> None:
    """ConfigError where the search could not find k neighbours, or not among those that are asked for."""
    if options.count_self and options.k == 1:
        raise ConfigError(
            "bonus.k: got 1 with bonus.count_self, so each point would be its own only neighbour, at distance 0; "
            "expected 2 or more"
        )
    if options.when == "store" and options.references == "batch":
        raise ConfigError(
            "bonus.when: got 'store' with bonus.references 'batch', but a transition that is stored has no batch; "
            "expected references 'sample' or 'buffer', or --bonus.when sample"
        )
    if options.when == "store" and options.transitions == "all":
        raise ConfigError(
            "bonus.transitions: got 'all' with bonus.when 'store', but the dataset's transitions are never stored; "
            "expected 'online', or --bonus.when sample"
        )
    if options.references != "batch" and options.transitions == "all":
        raise ConfigError(
            f"bonus.transitions: got 'all' with bonus.references {options.references!r}, which are online transitions "
            "only; expected 'online', or --bonus.references batch"
        )
    eligible = candidates(options, run)
    if options.k - options.count_self > eligible - 1:
        raise ConfigError(
            f"bonus.k: got {options.k}, but only {eligible} transitions are candidates (a transition is not its own "
            f"neighbour), so k can be at most {eligible - 1 + options.count_self}; use a smaller --bonus.k, a larger "
            "--batch-size, or --bonus.references sample"
        )


def candidates(options: BonusOptions, run: Run) -> int:
    """Among how many transitions neighbours are sought, at the most."""
    if options.references == "sample":
        return options.reference_size
    if options.references == "buffer":
        return min(run.online_buffer, max(run.online_steps, 1))
    if options.transitions == "online" and run.offline_fraction is not None:
        return run.batch_size - round(run.offline_fraction * run.batch_size)
    return run.batch_size


def check_values(options: ValueOptions, run: Run) -> None:
    """`check`, and ConfigError where there are no critics to ask."""
    if options.critic == "frozen" and run.offline_steps == 0:
        raise ConfigError(
            "bonus.critic: got 'frozen' with 0 offline steps, so there is no pre-trained critic to freeze; "
            "expected 'online' or 'target'"
        )
    check(options, run)

"""Networks of one run in another: offline-trained ones from which several runs are fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import ConfigError
from .sac import SAC, Policy


@torch.no_grad()
def take_over(agent: SAC, source: SAC, rows: Sequence[int], fresh_optimizer: bool = False) -> None:
    """Give an agent the networks, targets, multipliers and Adam's moments of another one; learning rates stay.

    A multiplier that the source does not have keeps its start.

    Args:
        agent: of S seeds.
        source: of any number of seeds, on any device.
        rows: [S], whose of the source's networks each seed gets.
        fresh_optimizer: leave out the moments.

    Raises:
        ConfigError: the networks are not of the same kinds and sizes.
    """
    kinds, others = _kinds(agent), _kinds(source)
    if kinds != others:
        raise ConfigError(
            f"algo: {agent.config.algo} learns {_told(kinds)}, the run that it is to start from, {source.config.algo}, "
            f"learnt {_told(others)}; expected an algorithm with the same networks, or a run without --init-from"
        )
    values, theirs = _tensors(agent), _tensors(source)
    for name, value in values.items():
        if name in theirs:
            value.copy_(_of_seeds(theirs[name], source.seeds, rows))
    if fresh_optimizer:
        return
    for name, parameter in values.items():
        if name in theirs and (moments := source.optimizer.state.get(theirs[name])):
            agent.optimizer.state[parameter] = {
                key: _of_seeds(moment, source.seeds, rows).to(parameter.device) for key, moment in moments.items()
            }


def _kinds(agent: SAC) -> dict[str, str]:
    kinds = {name: type(module).__name__ for name, module in agent.modules().items()}
    return kinds | {"policy": _kind(agent.policy)}


def _kind(policy: Policy) -> str:
    bounded = getattr(policy, "bounded", None)
    return type(policy).__name__ + ("" if bounded is None else " with a bounded mean" if bounded else ", unbounded")


def _told(kinds: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def _tensors(agent: SAC) -> dict[str, Tensor]:
    """Name -> parameter of all that is learnt, and of what follows it."""
    found: dict[str, Tensor] = dict(agent.multipliers())
    for name, module in agent.modules().items():
        found |= {f"{name}.{part}": parameter for part, parameter in module.named_parameters()}
    return found


def _of_seeds(value: Tensor, seeds: int, rows: Sequence[int]) -> Tensor:
    """A copy of some seeds' part of [S * members, ...], all members of a seed beside each other; a scalar as it is."""
    if value.dim() == 0:
        return value.clone()
    index = torch.tensor(rows, device=value.device)
    return value.view(seeds, -1, *value.shape[1:])[index].flatten(0, 1)

"""CORL: the bonus for a trainer of its finetune scripts, without a change to its files.

In a copy of CORL's cql.py, cal_ql.py or iql.py, after the trainer is made:

    from corl import add_bonus
    add_bonus(trainer, online=lambda: t >= config.offline_iterations)

(where `t` is the training loop's step). CORL hands its trainer a list of states, actions, rewards...; rewards get the
bonus on the way, in the online phase only.
"""

from collections.abc import Callable
from typing import Any

import torch
from bonus import qcse_bonus


def min_q(trainer: Any, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """min(Q1, Q2)(s, a), [N]: CQL and Cal-QL have two critics, IQL one module that holds both."""
    if hasattr(trainer, "critic_1"):
        return torch.minimum(trainer.critic_1(states, actions), trainer.critic_2(states, actions)).flatten()
    return trainer.qf(states, actions).flatten()


def add_bonus(trainer: Any, online: Callable[[], bool], weight: float = 1.0, k: int = 12) -> None:
    """Replaces `trainer.train` by one that adds weight * tanh(h(s | min Q(s, a))) to the batch's rewards first."""
    train = trainer.train

    def train_with_bonus(batch: list[torch.Tensor]) -> dict[str, float]:
        if not online():
            return train(batch)
        states, actions, rewards, *rest = batch
        with torch.no_grad():
            bonus = qcse_bonus(states, min_q(trainer, states, actions), k)
        log = train([states, actions, rewards + weight * bonus.view_as(rewards), *rest])
        return log | {"bonus_mean": bonus.mean().item()}

    trainer.train = train_with_bonus

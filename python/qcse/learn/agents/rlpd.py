"""Reinforcement learning with prior data, RLPD (arXiv 2302.02948)."""

from __future__ import annotations

from .sac import SAC


class RLPD(SAC):
    """SAC that learns online from dataset and online buffer, half of each batch from either.

    What makes it work are options of all SAC-like algorithms, which its preset sets: layer norm in the critics
    (`net.critic_layer_norm`), E = 10 of them (`net.critics`), targets from the least of 2 that are drawn anew
    (`critic_subset`), a policy that maximises their mean (`policy_value`), G = 20 critic updates for each environment
    step and one of policy and temperature along with the last of them (`updates_per_step`, `policy_every`), symmetric
    sampling (`offline_fraction`). With a ~ pi(s), a' ~ pi(s'), Z the members drawn::

        loss of Q = sum over e of mean (Q_e(s, a) - y)^2
        y = r + gamma * bootstrap * (min over e in Z of Q'_e(s', a') - temperature * log pi(a'|s'))
        loss of the policy = mean (temperature * log pi(a|s) - mean over e of Q_e(s, a))

    The second term of y is there with `entropy_backup` only. Offline steps, 0 by default, do the same with the dataset
    alone.
    """

    entropy_per_dimension = -0.5

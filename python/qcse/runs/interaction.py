"""The online half of a step: all seeds' environments, stepped together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..learn.buffer import NO_RETURN, Episode
from .experiment import Experiment


class Interaction:
    """Chooses actions, steps the environments, stores transitions, and tells the algorithm of episodes that ended.

    Attributes:
        last_return, last_length: [S], of each seed's last finished episode; NaN before the first.
        chosen: [S, A], the next actions, where `overlap` has chosen them already.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.envs, self.buffer = experiment, experiment.envs, experiment.buffer
        seeds = len(self.envs)
        # Slots and learner's rewards of each seed's current episode, for Monte-Carlo returns.
        self.slots: list[list[int]] = [[] for _ in range(seeds)]
        self.rewards: list[list[float]] = [[] for _ in range(seeds)]
        self.last_return, self.last_length = [float("nan")] * seeds, [float("nan")] * seeds
        self.chosen: Tensor | None = None

    @property
    def settled(self) -> int:
        """Transitions before this number will not change any more: returns of running episodes are yet to come."""
        return self.buffer.added - max(len(slots) for slots in self.slots)

    def step(self, taken: int) -> int:
        """One step of every environment; returns how many updates it calls for.

        Args:
            taken: online steps before this one.
        """
        config = self.experiment.config
        if taken == 0:
            for s in range(len(self.envs)):
                self._begin_episode(s)
        observations = self._observations()
        actions = self.choose(observations, taken) if self.chosen is None else self.chosen
        self._step_environments(observations, actions.numpy())
        if config.overlap:  # before the updates are launched: reading the action waits for those of the step before
            self.chosen = self.choose(self._observations(), taken + 1)
        updates = config.updates_per_step
        if config.update_after == "episode":  # the first seed's episodes; there is one environment a seed
            updates *= int(self.last_length[0]) if self.envs[0].episode_length == 0 else 0
        return updates if self.buffer.added >= max(config.learning_starts, 1) else 0

    def _observations(self) -> NDArray[np.float32]:
        """The latest ones, [S, D]."""
        latest = [env.observation for env in self.envs]
        return np.stack([observation for observation in latest if observation is not None])

    def choose(self, observations: NDArray[Any], taken: int) -> Tensor:
        """Exploring actions [S, A] on the host, for the online step that `taken` others precede."""
        experiment = self.experiment
        streams, action_dim = experiment.streams, experiment.action_dim
        if taken < experiment.config.random_steps:
            return streams.uniform("exploration", (action_dim,), -1.0, 1.0).cpu()
        noise = streams.normal("exploration", (1, action_dim))
        states = torch.from_numpy(experiment.normalized(observations)).to(experiment.device)
        return experiment.agent.act(states.unsqueeze(1), noise).squeeze(1).cpu()

    def _step_environments(self, observations: NDArray[Any], actions: NDArray[Any]) -> None:
        experiment, config = self.experiment, self.experiment.config
        results = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        next_observations = np.stack([r[0] for r in results])
        rewards = np.array([r[1] for r in results], np.float32) * config.reward_scale + config.reward_bias
        terminated = np.array([r[2] for r in results])
        slot = self.buffer.add(
            observations=torch.from_numpy(experiment.normalized(observations)),
            actions=torch.from_numpy(actions),
            rewards=torch.from_numpy(rewards.astype(np.float32)),
            next_observations=torch.from_numpy(experiment.normalized(next_observations)),
            bootstrap=torch.from_numpy(1.0 - terminated.astype(np.float32)),
            returns=torch.full((len(self.envs),), NO_RETURN),
            bonus=torch.zeros(len(self.envs)),
        )
        if experiment.reward.active and config.bonus.when == "store":
            index = torch.full((len(self.envs), 1), self.buffer.dataset_size + slot, device=experiment.device)
            self.buffer.online["bonus"][:, slot] = experiment.reward.of_stored(index).squeeze(1)
        for s, (_, _, done, cut) in enumerate(results):
            self.slots[s].append(slot)
            self.rewards[s].append(float(rewards[s]))
            if done or cut:
                self.end_episode(s, terminal=done)
                self._begin_episode(s)

    def _begin_episode(self, s: int) -> None:
        generator = self.experiment.streams.generators("environment")[s]
        self.envs[s].reset(int(torch.randint(2**31 - 1, (1,), generator=generator)))

    def end_episode(self, s: int, terminal: bool) -> None:
        """What seed s has done since its last reset is an episode."""
        episode = Episode(s, self.slots[s], np.array(self.rewards[s], np.float32), terminal)
        self.last_return[s], self.last_length[s] = self.envs[s].episode_return, float(len(episode.slots))
        self.slots[s], self.rewards[s] = [], []
        self.experiment.agent.episode_end(episode, self.buffer, self.experiment.reward)

    def state_dict(self) -> dict[str, Any]:
        return {
            "slots": self.slots,
            "rewards": self.rewards,
            "last_return": self.last_return,
            "last_length": self.last_length,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.slots, self.rewards = state["slots"], state["rewards"]
        self.last_return, self.last_length = state["last_return"], state["last_length"]

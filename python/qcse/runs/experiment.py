"""What a configuration names, built: environments, dataset, networks, buffer, bonus and the update that joins them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import TrainConfig, to_dict, validate
from ..data.compatible import check_compatible, use_unit_actions
from ..data.sources import load_dataset
from ..data.transitions import Transitions, mean_and_spread
from ..envs.episodes import EpisodeRecorder, EvalResult, Evaluator
from ..envs.make import make_env, task_for
from ..errors import CheckpointError, ConfigError
from ..learn.agents import AGENTS
from ..learn.agents.sac import SAC
from ..learn.buffer import NO_RETURN, ReplayBuffer
from ..learn.reward import IntrinsicReward
from ..learn.streams import Streams
from ..learn.update import CudaGraph, UpdateStep, capturable
from . import checkpoint
from .device import keep_freed_memory, resolve_device, use_precision
from .pretrained import Pretrained

WrapEnv = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]


def as_it_is(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return env


class Experiment:
    """The parts of a run of S seeds.

    Args:
        config: the run's options, validated here.
        wrap_env: applied to each training environment, for example to record what happens in it.
        progress: show a bar while the dataset is read.
        learns: False builds what evaluation needs only: neither dataset nor buffers.
        dataset_of: an experiment whose dataset and observation scale are shared; its own is not read.
        pretrained: where the networks, the observation scale and the streams come from of a run without an offline
            phase of its own.

    Attributes:
        task: what is known of the environment.
        device: where everything is computed.
        seeds: the S seeds.
        envs: one training environment for each.
        streams, agent, buffer, reward, update_step: what learns.
        mean, spread: [D] each, that observations are standardised by.
        fingerprint: of the dataset, "" where there is none.
        data_facts: what is known of the dataset, for people.

    Raises:
        ConfigError, EnvError, DatasetError: the options, the environment or the dataset cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        wrap_env: WrapEnv = as_it_is,
        progress: bool = False,
        learns: bool = True,
        dataset_of: Experiment | None = None,
        pretrained: Pretrained | None = None,
    ) -> None:
        self.task = task_for(config.env)
        validate(config)
        if pretrained is not None:
            pretrained.check(config)
        keep_freed_memory()
        self.config = config
        self.device = resolve_device(config.device)
        use_precision(config.precision, self.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.seeds = list(range(config.seed, config.seed + config.seeds))
        self.envs = [EpisodeRecorder(wrap_env(make_env(config.env))) for _ in self.seeds]
        data = self._read(progress) if learns and dataset_of is None else None
        self.state_dim, self.action_dim = self.envs[0].sizes

        anew = [] if pretrained is None else [seed for seed in self.seeds if seed not in pretrained.seeds]
        self.streams = Streams(self.seeds, self.device, anew)
        self.agent: SAC = AGENTS[config.algo](self.state_dim, self.action_dim, config, self.streams)
        self.mean, self.spread = np.zeros(self.state_dim, np.float32), np.ones(self.state_dim, np.float32)
        self.fingerprint, self.data_facts, columns = "", dict[str, Any](), None
        if pretrained is not None:
            self.mean, self.spread = pretrained.mean, pretrained.spread
        elif data is not None and config.normalize_observations:
            self.mean, self.spread = mean_and_spread(data.observations)
        if data is not None:
            self.fingerprint = data.fingerprint()  # before it is scaled in place
            columns = self._columns(data)
            facts = {"source": data.source, "task": config.task, "path": data.path, "rows": len(data)}
            self.data_facts = data.metadata | facts | {"episodes": int(np.count_nonzero(data.episode_end))}
        elif dataset_of is not None:
            self.mean, self.spread, columns = dataset_of.mean, dataset_of.spread, dataset_of.buffer.dataset
        self.buffer: ReplayBuffer = self._make_buffer(columns, learns)
        self.reward = IntrinsicReward(config.bonus, self.agent, self.buffer, self.streams, config.reward_scale)
        make_graph = CudaGraph if capturable(config, self.device) else None
        self.update_step = UpdateStep(config, self.agent, self.buffer, self.reward, self.streams, make_graph)
        if pretrained is not None:
            pretrained.check_data(config, self.fingerprint)
            pretrained.give(self.agent, self.streams, config.fresh_optimizers)

    def _read(self, progress: bool) -> Transitions | None:
        config = self.config
        if config.dataset is None:
            return None
        data = load_dataset(config.dataset, progress, config.d4rl_transitions, self.task.max_episode_steps)
        use_unit_actions(self.envs[0].env, data, config.action_units)
        check_compatible(self.envs[0].env, data)
        return data

    def _columns(self, data: Transitions) -> dict[str, Tensor]:
        """The buffer's columns, made in the dataset's own memory: a second copy would not fit where one just does."""
        config = self.config
        if config.normalize_observations:
            for states in (data.observations, data.next_observations):
                np.subtract(states, self.mean, out=states)
                np.divide(states, self.spread, out=states)
        np.clip(data.actions, -1.0, 1.0, out=data.actions)
        rewards = (data.rewards * config.reward_scale + config.reward_bias).astype(np.float32)
        returns = self.agent.returns_of(rewards, data.episode_end, data.bootstrap)
        columns = {
            "observations": data.observations,
            "actions": data.actions,
            "rewards": rewards,
            "next_observations": data.next_observations,
            "bootstrap": data.bootstrap,
            "returns": np.full(len(data), NO_RETURN, np.float32) if returns is None else returns,
            "bonus": np.zeros(len(data), np.float32),
        }
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in columns.items()}

    def _make_buffer(self, dataset: dict[str, Tensor] | None, learns: bool) -> ReplayBuffer:
        config, seeds = self.config, len(self.seeds)
        capacity = min(config.online_buffer, max(config.online_steps, 1)) if learns else 1
        try:
            return ReplayBuffer(dataset, seeds, capacity, self.state_dim, self.action_dim, self.device)
        except RuntimeError as error:
            raise ConfigError(
                f"online_buffer: {capacity:,} transitions for {seeds} seeds do not fit in memory "
                f"({str(error).splitlines()[0]}); expected fewer"
            ) from None

    def normalized(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Observations [..., D] as the networks see them."""
        return ((observations - self.mean) / self.spread).astype(np.float32)

    def evaluate(self, evaluator: Evaluator, first_seeds: Sequence[int]) -> EvalResult:
        """Episodes of each seed's deterministic policy, one seed's after the other's; a pure function of the weights.

        Args:
            evaluator: with as many episodes for each of the S policies.
            first_seeds: [S], the environment seed of each policy's first episode; the next has one more.
        """
        episodes = len(evaluator) // len(self.seeds)

        def policies(observations: NDArray[np.float32]) -> Tensor:
            states = torch.from_numpy(self.normalized(observations)).to(self.device)
            return self.agent.act(states.view(len(self.seeds), episodes, -1)).flatten(0, 1)

        return evaluator.evaluate(policies, [first + i for first in first_seeds for i in range(episodes)])

    def state_dict(self) -> dict[str, Any]:
        """All that moves in a run, but the buffer: plain data."""
        return {
            "config": json.dumps(to_dict(self.config)),
            "agent": self.agent.state_dict(),
            "reward": self.reward.state_dict(),
            "streams": self.streams.state_dict(),
            "environments": [env.state_dict() for env in self.envs],
            "metrics": self.update_step.state_dict(),
            "dataset": self.fingerprint,
            "observation_scale": [torch.from_numpy(self.mean), torch.from_numpy(self.spread)],
        }

    def load_policy(self, state: Mapping[str, Any]) -> None:
        """Put back the networks of a checkpoint, and the scale of what they see."""
        mean, spread = state["observation_scale"]
        self.mean, self.spread = mean.cpu().numpy(), spread.cpu().numpy()
        self.agent.load_state_dict(state["agent"])

    def load_state_dict(self, state: Mapping[str, Any], folder: Path) -> None:
        """Put back all of a checkpoint but the environments, which take part in nothing that is computed before the
        next step; `load_environments` has them live through their episodes again.

        Raises:
            CheckpointError: the dataset is another one.
        """
        self.load_policy(state)
        if state["dataset"] != self.fingerprint:
            raise CheckpointError(
                f"dataset: {self.config.dataset} has changed since this run started (fingerprint {self.fingerprint!r}, "
                f"the checkpoint has {state['dataset']!r}); restore the file, or start a new run with another --out"
            )
        self.reward.load_state_dict(state["reward"])
        checkpoint.load_buffer(folder, self.buffer, state)
        self.streams.load_state_dict(state["streams"])
        self.update_step.load_state_dict(state["metrics"])

    def load_environments(self, state: Mapping[str, Any]) -> None:
        """Bring each environment to where it was in its episode."""
        for env, env_state in zip(self.envs, state["environments"], strict=True):
            env.load_state_dict(env_state)

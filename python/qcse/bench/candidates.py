"""What is timed: our update and CORL's, on the same random data."""

from __future__ import annotations

import importlib.util
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import torch
from torch import Tensor

from ..config import TrainConfig, preset
from ..config.algorithms.base import Precision
from ..config.algorithms.cql import CqlOptions
from ..config.commands import BenchArgs
from ..errors import ConfigError
from ..learn.agents import AGENTS
from ..learn.agents.sac import SAC
from ..learn.buffer import ReplayBuffer
from ..learn.reward import IntrinsicReward
from ..learn.streams import Streams
from ..learn.update import CudaGraph, UpdateStep, capturable

DATASET_ROWS, ONLINE_ROWS = 20_000, 2_000
CORL_ALGOS = ("cql", "cal_ql")  # those that `corl_step` builds
CORL_POLICY_HIDDEN = (256, 256, 256)  # what CORL's policy has, whatever its configuration says


def random_transitions(rows: int, args: BenchArgs, generator: torch.Generator) -> dict[str, Tensor]:
    """Columns of a buffer, [rows, ...] each, of standard normal numbers."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "observations": normal(rows, args.state_dim),
        "actions": torch.tanh(normal(rows, args.action_dim)),
        "rewards": normal(rows),
        "next_observations": normal(rows, args.state_dim),
        "bootstrap": (normal(rows) > -2.0).float(),
        "returns": normal(rows),
        "bonus": torch.zeros(rows),
    }


def configuration(algo: str, bonus: str, args: BenchArgs, precision: str = "float32") -> TrainConfig:
    config = preset(algo, "HalfCheetah-v5")
    cql = typing.cast(CqlOptions, config).cql
    config.batch_size, cql.actions = args.batch_size, args.actions
    config.net.policy_hidden, config.net.critic_hidden = args.policy_hidden, args.critic_hidden
    config.bonus.kind = bonus
    config.bonus.weight = 0.0  # computed and added, yet both updates see the same rewards and so do the same other work
    config.offline_fraction = 0.5
    cql.calibration_online = "task_return"  # CORL's update, too, is timed with the bound
    config.precision, config.cuda_graph = typing.cast(Precision, precision), args.cuda_graph
    return config


def our_step(
    algo: str, bonus: str, seeds: int, args: BenchArgs, device: torch.device, precision: str = "float32"
) -> Callable[[], object]:
    """One online update as the training loop does it: sampling, bonus, losses, optimiser, targets."""
    config = configuration(algo, bonus, args, precision)
    streams = Streams(list(range(seeds)), device)
    agent: SAC = AGENTS[algo](args.state_dim, args.action_dim, config, streams)
    agent.updates = config.offline_steps  # online from the first one on
    generator = torch.Generator().manual_seed(0)
    data = random_transitions(DATASET_ROWS, args, generator)
    buffer = ReplayBuffer(data, seeds, ONLINE_ROWS, args.state_dim, args.action_dim, device)
    online = random_transitions(ONLINE_ROWS * seeds, args, generator)
    for name, column in online.items():
        buffer.online[name].copy_(column.view(seeds, ONLINE_ROWS, *column.shape[1:]))
    buffer.added = ONLINE_ROWS
    reward = IntrinsicReward(config.bonus, agent, buffer, streams)
    reward.start_online()

    make_graph = CudaGraph if capturable(config, device) else None
    update = UpdateStep(config, agent, buffer, reward, streams, make_graph)
    return lambda: update(True)


def corl_module(checkout: Path, algo: str) -> ModuleType:
    """CORL's own file, with empty stand-ins for imports that its update does not use."""
    path = checkout / "algorithms" / "finetune" / f"{algo}.py"
    if not path.is_file():
        raise ConfigError(f"corl: {path} does not exist; expected a checkout of CORL (tinkoff-ai/CORL)")
    for name in ("d4rl", "gym", "pyrallis", "wandb"):
        sys.modules.setdefault(name, MagicMock())
    spec = importlib.util.spec_from_file_location(f"corl_{algo}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def corl_step(checkout: Path, algo: str, args: BenchArgs, device: torch.device) -> Callable[[], None]:
    """CORL's update with our shapes and hyper-parameters, its replay sampling included."""
    corl = corl_module(checkout, algo)
    config = configuration(algo, "none", args)
    cql = typing.cast(CqlOptions, config).cql
    make_critic = lambda: corl.FullyConnectedQFunction(  # noqa: E731
        args.state_dim, args.action_dim, n_hidden_layers=len(args.critic_hidden)
    ).to(device)
    critics = [make_critic(), make_critic()]
    actor = corl.TanhGaussianPolicy(args.state_dim, args.action_dim, 1.0).to(device)
    rates = (config.critic_lr, config.critic_lr, config.policy_lr)
    optimisers = [torch.optim.Adam(net.parameters(), lr) for net, lr in zip((*critics, actor), rates, strict=True)]
    agent = (corl.CalQL if algo == "cal_ql" else corl.ContinuousCQL)(
        critics[0], optimisers[0], critics[1], optimisers[1], actor, optimisers[2],
        target_entropy=-float(args.action_dim), discount=config.discount, policy_lr=config.policy_lr,
        qf_lr=config.critic_lr, soft_target_update_rate=config.target_rate, bc_steps=0,
        cql_n_actions=cql.actions, cql_alpha=cql.alpha, cql_lagrange=cql.lagrange,
        cql_max_target_backup=cql.max_target_backup, device=str(device),
    )  # fmt: skip
    for scalar in (agent.log_alpha, agent.log_alpha_prime):
        scalar.to(device)
    data = random_transitions(DATASET_ROWS, args, torch.Generator().manual_seed(0))
    columns = [data["observations"], data["actions"], data["rewards"].unsqueeze(1), data["next_observations"]]
    columns += [1.0 - data["bootstrap"].unsqueeze(1)] + ([data["returns"].unsqueeze(1)] if algo == "cal_ql" else [])
    columns = [column.to(device) for column in columns]

    def step() -> None:
        index = torch.randint(DATASET_ROWS, (args.batch_size,), device=device)
        agent.train([column[index] for column in columns])

    return step

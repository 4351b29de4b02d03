"""`qcse bench`: updates per second of our training step, side by side with CORL's own from a checkout."""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import torch
from torch import Tensor

from .agents import AGENTS
from .agents.sac import SAC
from .buffer import ReplayBuffer
from .config import TrainConfig, preset
from .errors import ConfigError
from .log import machine_facts, write_json
from .reward import IntrinsicReward
from .streams import Streams
from .train import keep_freed_memory, resolve_device

if TYPE_CHECKING:
    from .cli import BenchArgs

DATASET_ROWS, ONLINE_ROWS = 20_000, 2_000
CORL_ALGOS = ("cql", "cal_ql")  # those that `corl_step` builds
CORL_POLICY_HIDDEN = (256, 256, 256)  # what CORL's policy has, whatever its configuration says


def random_transitions(rows: int, args: BenchArgs, generator: torch.Generator) -> dict[str, Tensor]:
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


def configuration(algo: str, bonus: str, args: BenchArgs) -> TrainConfig:
    config = preset(algo, "HalfCheetah-v5")
    config.batch_size, config.cql.actions = args.batch_size, args.actions
    config.net.policy_hidden, config.net.critic_hidden = args.policy_hidden, args.critic_hidden
    config.bonus.kind = bonus  # type: ignore[assignment]
    config.offline_fraction = 0.5
    return config


def our_step(algo: str, bonus: str, seeds: int, args: BenchArgs, device: torch.device) -> Callable[[], None]:
    """One online update as the training loop does it: sampling, bonus, losses, optimiser, targets."""
    config = configuration(algo, bonus, args)
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

    def step() -> None:
        batch = buffer.sample(streams, config.batch_size, config.offline_fraction)
        if reward.active:
            reward.add_to(batch)
        agent.update(batch, agent.draw_noise(streams, config.batch_size))

    return step


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
        cql_n_actions=config.cql.actions, cql_alpha=config.cql.alpha, cql_lagrange=config.cql.lagrange,
        cql_max_target_backup=config.cql.max_target_backup, device=str(device),
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


def bench(args: BenchArgs) -> int:
    """Interleave all candidates, print medians and ratios, write the records."""
    for name in ("rounds", "updates", "warm_up"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name}: got {getattr(args, name)}, expected 1 or more")
    device = resolve_device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.corl is not None and args.policy_hidden != CORL_POLICY_HIDDEN:
        raise ConfigError(f"policy_hidden: got {args.policy_hidden}, but CORL's policy has {CORL_POLICY_HIDDEN}")
    unmatched = [algo for algo in args.algos if algo not in CORL_ALGOS]
    if args.corl is not None and unmatched:
        raise ConfigError(
            f"algos: got {', '.join(unmatched)} with --corl; expected {' or '.join(CORL_ALGOS)}, or no --corl"
        )
    steps: dict[tuple[str, str, str, int], Callable[[], None]] = {}
    for algo in args.algos:
        if args.corl is not None:
            steps["corl", algo, "none", 1] = corl_step(args.corl, algo, args, device)
        for seeds in args.seeds:
            for bonus in ("none", "qcse"):
                steps["qcse", algo, bonus, seeds] = our_step(algo, bonus, seeds, args, device)
    seconds = {key: [] for key in steps}

    def timed(step: Callable[[], None], count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / count

    # The allocator's settings hold for the whole process, so CORL gains from them as well.
    keep_freed_memory()
    for step in steps.values():
        timed(step, args.warm_up)
    for _ in range(args.rounds):
        for key, step in steps.items():
            seconds[key].append(timed(step, args.updates))
    facts = machine_facts() | {"device": str(device)}
    records: list[dict[str, Any]] = []
    print(f"{'implementation':<15}{'algo':<8}{'bonus':<7}{'seeds':>5}{'ms/update':>11}{'updates/s':>11}{'x CORL':>9}")
    for (implementation, algo, bonus, seeds), values in seconds.items():
        median = statistics.median(values)
        baseline = seconds.get(("corl", algo, "none", 1))
        ratios = sorted(b / v * seeds for b, v in zip(baseline, values, strict=True)) if baseline else []
        ratio = statistics.median(ratios) if ratios else float("nan")
        record = {
            "implementation": implementation,
            "algo": algo,
            "bonus": bonus,
            "seeds": seeds,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "updates_per_second": seeds / median,
            "milliseconds": 1e3 * median,
            "ratio_to_corl": ratio,
            "ratio_range": [ratios[0], ratios[-1]] if ratios else [],
        }
        records.append(record)
        figures = f"{1e3 * median:>11.2f}{seeds / median:>11.1f}{ratio:>9.2f}"
        print(f"{implementation:<15}{algo:<8}{bonus:<7}{seeds:>5}{figures}")
    if args.json is not None:
        shapes = {k: v for k, v in vars(args).items() if k not in ("json", "corl")}
        write_json(args.json, {"machine": facts, "shapes": shapes, "records": records})
        print(f"wrote {args.json}")
    return 0

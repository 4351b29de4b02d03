"""`qcse bench`: updates per second of our training step, side by side with CORL's own from a checkout."""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qcse_ext import _C

from .agents import AGENTS
from .agents.sac import SAC
from .buffer import ReplayBuffer
from .config import TrainConfig, preset
from .envs import EpisodeRecorder, make_env
from .errors import ConfigError
from .log import machine_facts, write_json
from .reward import IntrinsicReward
from .step import WARM_UP, CudaGraph, UpdateStep, capturable
from .streams import Streams
from .train import keep_freed_memory, resolve_device, use_precision

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


def configuration(algo: str, bonus: str, args: BenchArgs, precision: str = "float32") -> TrainConfig:
    config = preset(algo, "HalfCheetah-v5")
    config.batch_size, config.cql.actions = args.batch_size, args.actions
    config.net.policy_hidden, config.net.critic_hidden = args.policy_hidden, args.critic_hidden
    config.bonus.kind = bonus  # type: ignore[assignment]
    config.bonus.weight = 0.0  # computed and added, yet both updates see the same rewards and so do the same other work
    config.offline_fraction = 0.5
    config.cql.calibration_online = "task_return"  # CORL's update, too, is timed with the bound
    config.precision, config.cuda_graph = precision, args.cuda_graph  # type: ignore[assignment]
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


def operations(args: BenchArgs) -> float:
    """Floating-point operations of the products that one seed's CQL or Cal-QL update needs."""

    def per_row(sizes: Sequence[int]) -> int:
        return 2 * sum(i * o for i, o in itertools.pairwise(sizes))

    d, a, n = args.state_dim, args.action_dim, args.actions
    policy = per_row([d, *args.policy_hidden, 2 * a])
    first, rest = 2 * args.critic_hidden[0], per_row([*args.critic_hidden, 1])
    # Per state: the policy at s, forward and back (twice), and at s'; per critic the target's n actions, the loss's
    # 3n + 1 forward and back, the policy's action forward and back to the action. The first layer needs no gradient
    # of its input in the loss, and none of its weights for the policy; its state half is done once per state.
    target = first * (d + n * a) + n * rest
    loss = 2 * first * (d + (3 * n + 1) * a) + 3 * (3 * n + 1) * rest
    own = first * (d + 2 * a) + 2 * rest
    return float(args.batch_size * (4 * policy + 2 * (target + loss + own)))


def peak_rate(threads: int) -> float:
    """Float32 operations per second that `threads` threads reach together on multiply-adds alone."""

    def run() -> None:
        _C.multiply_adds(4_000_000)

    rates = []
    for _ in range(5):
        workers = [threading.Thread(target=run) for _ in range(threads - 1)]
        begin = time.perf_counter()
        for worker in workers:
            worker.start()
        done = _C.multiply_adds(4_000_000) * threads
        for worker in workers:
            worker.join()
        rates.append(done / (time.perf_counter() - begin))
    return statistics.median(rates)


def environment_rate(name: str, steps: int = 2000) -> float:
    """Steps per second of one environment under random actions."""
    env = EpisodeRecorder(make_env(name))
    env.reset(0)
    rng = np.random.default_rng(0)
    shape = env.env.action_space.shape
    actions = rng.uniform(-1.0, 1.0, (steps, *(shape or ()))).astype(np.float32)
    begin = time.perf_counter()
    for action in actions:
        if any(env.step(action)[2:]):
            env.reset(0)
    return steps / (time.perf_counter() - begin)


class Allocations(TorchDispatchMode):
    """Sums the bytes of all tensors that operations make, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.bytes += sum(x.nbytes for x in made if x.untyped_storage().data_ptr() not in given)
        return result


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return [float(q) for q in np.quantile(values, [0.25, 0.5, 0.75])]


Key = tuple[str, str, str, int, str]  # implementation, algo, bonus, seeds, precision


def bench(args: BenchArgs) -> int:
    """Interleave all candidates, print medians and ratios, write the records."""
    for name in ("rounds", "updates", "warm_up"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name}: got {getattr(args, name)}, expected 1 or more")
    device = resolve_device(args.device)
    for precision in args.precisions:
        if precision == "tf32" and len(args.precisions) > 1:
            raise ConfigError("precisions: got tf32 beside others, but it holds for a whole process; give it alone")
        use_precision(precision, device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.corl is not None and args.policy_hidden != CORL_POLICY_HIDDEN:
        raise ConfigError(f"policy_hidden: got {args.policy_hidden}, but CORL's policy has {CORL_POLICY_HIDDEN}")
    unmatched = [algo for algo in args.algos if algo not in CORL_ALGOS]
    if args.corl is not None and unmatched:
        raise ConfigError(
            f"algos: got {', '.join(unmatched)} with --corl; expected {' or '.join(CORL_ALGOS)}, or no --corl"
        )
    steps: dict[Key, Callable[[], object]] = {}
    for algo in args.algos:
        if args.corl is not None:
            steps["corl", algo, "none", 1, "float32"] = corl_step(args.corl, algo, args, device)
        for seeds, precision, bonus in itertools.product(args.seeds, args.precisions, ("none", "qcse")):
            steps["qcse", algo, bonus, seeds, precision] = our_step(algo, bonus, seeds, args, device, precision)

    def timed(step: Callable[[], object], count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / count

    # The allocator's settings hold for the whole process, so CORL gains from them as well.
    keep_freed_memory()
    warm_up = args.warm_up if device.type == "cpu" else max(args.warm_up, WARM_UP + 2)  # the capture is not timed
    for step in steps.values():
        timed(step, warm_up)
    threads = torch.get_num_threads()
    peaks = [peak_rate(threads)] if device.type == "cpu" else []
    seconds: dict[Key, list[float]] = {key: [] for key in steps}
    for _ in range(args.rounds):
        for key, step in steps.items():
            seconds[key].append(timed(step, args.updates))
    if peaks:
        peaks.append(peak_rate(threads))
    records = [record(key, seconds, device, args, peaks) for key in seconds]
    columns = f"{'implementation':<15}{'algo':<8}{'bonus':<6}{'precision':<10}{'seeds':>5}"
    print(f"{columns}{'ms/update':>11}{'updates/s':>11}{'x CORL':>9}{'bonus':>16}{'of FMA peak':>13}")
    for r in records:
        labels = f"{r['implementation']:<15}{r['algo']:<8}{r['bonus']:<6}{r['precision']:<10}{r['seeds']:>5}"
        ratio = "-" if r["ratio_to_corl"] is None else f"{r['ratio_to_corl']:.2f}"
        figures = f"{r['milliseconds']:>11.2f}{r['updates_per_second']:>11.1f}{ratio:>9}"
        cost, share = r["bonus_cost"], r["share_of_peak"]
        spread = f"{100 * cost[1]:+.1f} % ({100 * cost[0]:+.1f} to {100 * cost[2]:+.1f})" if cost else ""
        print(f"{labels}{figures}{spread:>26}{f'{100 * share:.0f} %' if share else '':>6}")
    environment = {}
    if args.env is not None:
        rate = environment_rate(args.env)
        environment = {"env": args.env, "steps_per_second": rate}
        print(f"{args.env}: {rate:.0f} steps per second, {1e3 / rate:.3f} ms a step, one environment in this process")
    memory = {}
    if device.type == "cpu" or args.cuda_graph == "off":  # a replay makes no tensors
        for key, step in steps.items():
            with Allocations() as allocations:
                step()
            memory[" ".join(map(str, key))] = allocations.bytes
            print(f"{' '.join(map(str, key))}: {allocations.bytes / 2**20:.1f} MiB of tensors made in an update")
    if args.profile:
        for key, step in steps.items():
            with torch.profiler.profile() as profile:
                timed(step, args.updates)
            print(f"\n{' '.join(map(str, key))}, {args.updates} updates:")
            print(profile.key_averages().table("self_cpu_time_total", row_limit=15, max_name_column_width=40))
    if args.json is not None:
        shapes = {k: v for k, v in vars(args).items() if k not in ("json", "corl")}
        facts = machine_facts() | {"device": str(device), "float32_peak": statistics.mean(peaks) if peaks else None}
        result = {"machine": facts, "shapes": shapes, "records": records, "environment": environment}
        write_json(args.json, result | {"tensor_bytes_per_update": memory})
        print(f"wrote {args.json}")
    return 0


def record(
    key: Key, seconds: dict[Key, list[float]], device: torch.device, args: BenchArgs, peaks: list[float]
) -> dict[str, Any]:
    """What is known of one candidate; ratios are taken within rounds."""
    implementation, algo, bonus, seeds, precision = key
    values = seconds[key]
    median = statistics.median(values)
    baseline = seconds.get(("corl", algo, "none", 1, "float32"))
    ratios = sorted(b / v * seeds for b, v in zip(baseline, values, strict=True)) if baseline else []
    without = seconds[implementation, algo, "none", seeds, precision]
    costs = [v / w - 1.0 for v, w in zip(values, without, strict=True)] if bonus != "none" else []
    counted = peaks and implementation == "qcse" and precision == "float32" and algo in CORL_ALGOS
    return {
        "implementation": implementation,
        "algo": algo,
        "bonus": bonus,
        "seeds": seeds,
        "precision": precision,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "updates_per_second": seeds / median,
        "milliseconds": 1e3 * median,
        "ratio_to_corl": statistics.median(ratios) if ratios else None,
        "ratio_range": [ratios[0], ratios[-1]] if ratios else [],
        "bonus_cost": quartiles(costs) if costs else [],
        "share_of_peak": operations(args) * seeds / median / statistics.mean(peaks) if counted else None,
    }

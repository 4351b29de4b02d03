"""`qcse bench`: updates per second of our training step, side by side with CORL's own from a checkout."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ..config.commands import BenchArgs
from ..config.plain import write_json
from ..config.ranges import check_least
from ..errors import ConfigError
from ..learn.update import WARM_UP
from ..runs.device import keep_freed_memory, resolve_device, use_precision
from ..runs.machine import machine_facts
from .candidates import CORL_ALGOS, CORL_POLICY_HIDDEN, corl_step, our_step
from .rates import Allocations, environment_rate, operations, peak_rate, quartiles

Key = tuple[str, str, str, int, str]  # implementation, algo, bonus, seeds, precision


Steps = dict[Key, Callable[[], object]]


def bench(args: BenchArgs) -> None:
    """Interleave all candidates, print medians and ratios, write the records.

    Raises:
        ConfigError: the options do not go together, or the device cannot be used.
    """
    device = _prepared(args)
    steps = _candidates(args, device)
    # The allocator's settings hold for the whole process, so CORL gains from them as well.
    keep_freed_memory()
    warm_up = args.warm_up if device.type == "cpu" else max(args.warm_up, WARM_UP + 2)  # the capture is not timed
    for step in steps.values():
        _timed(step, warm_up, device)
    peaks = [peak_rate(torch.get_num_threads())] if device.type == "cpu" else []
    seconds: dict[Key, list[float]] = {key: [] for key in steps}
    for _ in range(args.rounds):
        for key, step in steps.items():
            seconds[key].append(_timed(step, args.updates, device))
    if peaks:
        peaks.append(peak_rate(torch.get_num_threads()))
    records = [record(key, seconds, device, args, peaks) for key in seconds]
    _print_records(records)
    environment = {}
    if args.env is not None:
        rate = environment_rate(args.env)
        environment = {"env": args.env, "steps_per_second": rate}
        print(f"{args.env}: {rate:.0f} steps per second, {1e3 / rate:.3f} ms a step, one environment in this process")
    memory = {}
    if device.type == "cpu" or args.cuda_graph == "off":  # a replay makes no tensors
        memory = _measured_memory(steps)
    if args.profile:
        _print_profiles(steps, args.updates, device)
    if args.json is not None:
        shapes = {k: v for k, v in vars(args).items() if k not in ("json", "corl")}
        facts = machine_facts() | {"device": str(device), "float32_peak": statistics.mean(peaks) if peaks else None}
        result = {"machine": facts, "shapes": shapes, "records": records, "environment": environment}
        write_json(args.json, result | {"tensor_bytes_per_update": memory})
        print(f"wrote {args.json}")


def _prepared(args: BenchArgs) -> torch.device:
    """The options checked, and what holds for the whole process set."""
    check_least(args, 1, "rounds", "updates", "warm_up")
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
    return device


def _candidates(args: BenchArgs, device: torch.device) -> Steps:
    steps: Steps = {}
    for algo in args.algos:
        if args.corl is not None:
            steps["corl", algo, "none", 1, "float32"] = corl_step(args.corl, algo, args, device)
        for seeds, precision, bonus in itertools.product(args.seeds, args.precisions, ("none", "qcse")):
            steps["qcse", algo, bonus, seeds, precision] = our_step(algo, bonus, seeds, args, device, precision)
    return steps


def _timed(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of one of so many steps."""
    begin = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / count


def _print_records(records: list[dict[str, Any]]) -> None:
    columns = f"{'implementation':<15}{'algo':<8}{'bonus':<6}{'precision':<10}{'seeds':>5}"
    print(f"{columns}{'ms/update':>11}{'updates/s':>11}{'x CORL':>9}{'bonus':>16}{'of FMA peak':>13}")
    for r in records:
        labels = f"{r['implementation']:<15}{r['algo']:<8}{r['bonus']:<6}{r['precision']:<10}{r['seeds']:>5}"
        ratio = "-" if r["ratio_to_corl"] is None else f"{r['ratio_to_corl']:.2f}"
        figures = f"{r['milliseconds']:>11.2f}{r['updates_per_second']:>11.1f}{ratio:>9}"
        cost, share = r["bonus_cost"], r["share_of_peak"]
        spread = f"{100 * cost[1]:+.1f} % ({100 * cost[0]:+.1f} to {100 * cost[2]:+.1f})" if cost else ""
        print(f"{labels}{figures}{spread:>26}{f'{100 * share:.0f} %' if share else '':>6}")


def _measured_memory(steps: Steps) -> dict[str, int]:
    """Candidate -> bytes of the tensors that an update makes."""
    memory = {}
    for key, step in steps.items():
        with Allocations() as allocations:
            step()
        memory[" ".join(map(str, key))] = allocations.bytes
        print(f"{' '.join(map(str, key))}: {allocations.bytes / 2**20:.1f} MiB of tensors made in an update")
    return memory


def _print_profiles(steps: Steps, updates: int, device: torch.device) -> None:
    for key, step in steps.items():
        with torch.profiler.profile() as profile:
            _timed(step, updates, device)
        print(f"\n{' '.join(map(str, key))}, {updates} updates:")
        print(profile.key_averages().table("self_cpu_time_total", row_limit=15, max_name_column_width=40))


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

"""What a machine can do, and what an update needs."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qcse_ext import _C

from ..config.commands import BenchArgs
from ..envs.episodes import EpisodeRecorder
from ..envs.make import make_env


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

"""Problems for the kernels around the networks: ``problem(emulator)`` gives the results and the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import emulated_policy as kernels
import numpy as np
from emulated import Array, Emulator

Results = list[Array]
Problem = Callable[[Emulator], tuple[Results, Results]]
TYPES = (np.float32, np.float64)


def normal(rng: np.random.Generator, dtype: type, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(dtype)


def samples(dtype: type, states: int, count: int, dim: int, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    mean, log_std = normal(rng, dtype, states, dim), (rng.random((states, dim)) * 4 - 3).astype(dtype)
    noise = normal(rng, dtype, states, count, dim)
    arguments = mean, log_std, noise
    return lambda e: (kernels.tanh_gaussian(e, *arguments), kernels.tanh_gaussian_oracle(*arguments))


def samples_of_all_sizes(dtype: type) -> Problem:
    """Means from 1e-30 to 1; the actions as shares of them, which shows their relative error."""
    mean = np.logspace(-30, 0, 61).astype(dtype)[:, None]
    arguments = mean, np.full_like(mean, -200), np.ones_like(mean)[:, None]

    def problem(e: Emulator) -> tuple[Results, Results]:
        got, want = kernels.tanh_gaussian(e, *arguments), kernels.tanh_gaussian_oracle(*arguments)
        return [got[0][:, 0] / mean], [want[0][:, 0] / mean]

    return problem


def sample_gradients(dtype: type, states: int, count: int, dim: int, beside: int = 0, seed: int = 0) -> Problem:
    """`beside`: numbers of another kind between one row of the actions' gradient and the next."""
    rng = np.random.default_rng(seed)
    action_grad = normal(rng, dtype, states, count, beside + dim)[..., beside:]
    actions, noise = np.tanh(normal(rng, dtype, states, count, dim)), normal(rng, dtype, states, count, dim)
    arguments = action_grad, normal(rng, dtype, states, count), actions, normal(rng, dtype, states, dim), noise
    return lambda e: (kernels.tanh_gaussian_backward(e, *arguments), kernels.tanh_gaussian_backward_oracle(*arguments))


def heads(dtype: type, seeds: int, states: int, dim: int, nans: bool = False, seed: int = 0) -> Problem:
    """Some at the limits, some beyond, some exactly on them; `nans`: one of the last seed's is NaN."""
    rng = np.random.default_rng(seed)
    low, high = -1.0, 0.5
    raw = normal(rng, dtype, seeds, states, 2 * dim)
    raw[..., dim:] = np.round(raw[..., dim:] * 4) / 4
    if nans:
        raw[-1, 0, dim] = np.nan
    multiplier, offset = (0.5 + rng.integers(0, 3, (2, seeds)) / 2).astype(dtype)
    grads = normal(rng, dtype, seeds, states, dim), normal(rng, dtype, seeds, states, dim)
    arguments = raw, multiplier, offset, low, high

    def problem(e: Emulator) -> tuple[Results, Results]:
        got = kernels.gaussian_head(e, *arguments) + kernels.gaussian_head_backward(e, *grads, *arguments)
        want = kernels.gaussian_head_oracle(*arguments) + kernels.gaussian_head_backward_oracle(*grads, *arguments)
        return got, want

    return problem


def with_ties_and_nans(rng: np.random.Generator, values: Array, nans: float = 0.05) -> Array:
    values = np.round(values * 2) / 2
    values[rng.random(values.shape) < nans] = np.nan
    return values


def targets(
    dtype: type, seeds: int, members: int, states: int, actions: int, entropy: bool = True, seed: int = 0
) -> Problem:
    rng = np.random.default_rng(seed)
    values = with_ties_and_nans(rng, normal(rng, dtype, seeds, members, states, actions))
    rewards, bootstrap = normal(rng, dtype, seeds, states), rng.integers(0, 2, (seeds, states)).astype(dtype)
    log_prob = normal(rng, dtype, seeds, states, actions) if entropy else None
    arguments = values, rewards, bootstrap, np.exp(normal(rng, dtype, seeds)), log_prob, 0.99
    return lambda e: ([kernels.bellman_target(e, *arguments)], [kernels.bellman_target_oracle(*arguments)])


def actors(
    dtype: type, seeds: int, members: int, states: int, least: bool, nans: bool = False, seed: int = 0
) -> Problem:
    rng = np.random.default_rng(seed)
    q = normal(rng, dtype, seeds, members, states)
    if least:
        q = with_ties_and_nans(rng, q, 0.02 if nans else 0.0)
    log_prob, temperature = normal(rng, dtype, seeds, states), np.exp(normal(rng, dtype, seeds))
    grad = normal(rng, dtype, seeds)

    def problem(e: Emulator) -> tuple[Results, Results]:
        got = kernels.actor_loss(e, q, log_prob, temperature, least)
        got += kernels.actor_loss_backward(e, grad, q, temperature, least)
        got += kernels.actor_loss_backward(e, grad[:1], q, temperature, least, stride=0)
        want = kernels.actor_loss_oracle(q, log_prob, temperature, least)
        want += kernels.actor_loss_backward_oracle(grad, q, temperature, least)
        want += kernels.actor_loss_backward_oracle(np.repeat(grad[:1], seeds), q, temperature, least)
        return got, want

    return problem


def steps_of_adam(dtype: type, counts: Sequence[int], target_rate: float = 0.005, seed: int = 0) -> Problem:
    """Two steps; every other tensor is followed, and each has a rate and a counter of its own."""
    rng = np.random.default_rng(seed)
    settings = 0.9, 0.999, 1e-8, target_rate
    tensors = [
        kernels.AdamTensor(
            *(normal(rng, dtype, count) for _ in range(3)),
            np.square(normal(rng, dtype, count)),
            None if i % 2 else normal(rng, dtype, count),
            np.array([i * 7], np.float32),
            1e-3 * (i + 1),
        )
        for i, count in enumerate(counts)
    ]

    def flat(tensors: Sequence[kernels.AdamTensor]) -> Results:
        parts = [(t.parameter, t.first_moment, t.second_moment, t.steps, t.target) for t in tensors]
        return [a for part in parts for a in part if a is not None]

    def problem(e: Emulator) -> tuple[Results, Results]:
        got, tickets = kernels.adam(e, tensors, settings)
        again, _ = kernels.adam(e, got, settings)
        want = flat(kernels.adam_oracle(tensors, settings)) + flat(kernels.adam_oracle(got, settings))
        return [*flat(got), *flat(again), tickets.astype(dtype)], [*want, np.zeros(len(counts))]

    return problem


def directed() -> Iterator[tuple[str, Problem]]:
    for dtype in TYPES:
        name = dtype.__name__
        yield f"samples of all sizes {name}", samples_of_all_sizes(dtype)
        for shape in ((1, 1, 1), (3, 5, 6), (40, 1, 17), (5, 10, 33), (300, 1, 3), (2, 3, 70)):
            yield f"samples {shape} {name}", samples(dtype, *shape)
            yield f"gradients of samples {shape} {name}", sample_gradients(dtype, *shape, beside=shape[0] % 4)
        for shape in ((1, 1, 1), (2, 7, 6), (1, 256, 6), (3, 100, 3)):
            yield f"head {shape} {name}", heads(dtype, *shape)
        yield f"head with NaN {name}", heads(dtype, 3, 5, 2, nans=True)
        for shape in ((1, 1, 1, 1), (2, 2, 70, 10), (1, 10, 5, 1), (3, 2, 50, 3), (2, 1, 300, 2)):
            yield f"target {shape} {name}", targets(dtype, *shape)
        yield f"target without entropy {name}", targets(dtype, 2, 3, 40, 4, entropy=False)
        for shape in ((1, 1, 1), (2, 2, 256), (3, 10, 70), (1, 4, 300)):
            for least in (True, False):
                yield f"actor {shape}, least {least}, {name}", actors(dtype, *shape, least)
        yield f"actor with NaN {name}", actors(dtype, 3, 3, 30, True, nans=True)
        for counts in ([1], [5000, 3, 1024, 1025, 0, 2048], [7] * 48, [4097] * 5):
            yield f"adam {counts[:6]} {name}", steps_of_adam(dtype, counts)
        yield f"adam, targets beyond half the way, {name}", steps_of_adam(dtype, [1500, 3], 0.75)


def is_close(got: Array, want: Array) -> bool:
    """To within rounding, NaN where NaN is expected; a sum may lose as much as its terms are large."""
    tolerance = 60 * np.finfo(got.dtype).eps
    return np.allclose(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)

"""The emulated kernels around the networks (csrc/nets/policy.h), and what they are to compute, in numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from emulated import Array, Emulator


def call(
    emulator: Emulator,
    name: str,
    dtype: type,
    sizes: Sequence[int],
    inputs: Sequence[Array | None],
    outputs: Sequence[Array],
    numbers: Sequence[float] = (),
) -> list[Array]:
    """Runs the kernel; c_api_policy.cpp has its arguments. Returns `outputs`, which it fills."""
    kept = [None if a is None else np.ascontiguousarray(a) for a in inputs]
    emulator.call(
        "emulator_policy",
        name.encode(),
        int(dtype == np.float64),
        (ctypes.c_int64 * len(sizes))(*sizes),
        (ctypes.c_double * max(len(numbers), 1))(*numbers),
        (ctypes.c_void_p * len(kept))(*[None if a is None else a.ctypes.data for a in kept]),
        (ctypes.c_void_p * len(outputs))(*[a.ctypes.data for a in outputs]),
    )
    return list(outputs)


# --- Samples of a tanh-squashed Gaussian ------------------------------------------------------------------------------


def tanh_gaussian(emulator: Emulator, mean: Array, log_std: Array, noise: Array) -> list[Array]:
    """mean, log_std [states, dim], noise [states, samples, dim] -> actions, log_prob."""
    outputs = [np.zeros_like(noise), np.zeros(noise.shape[:-1], noise.dtype)]
    return call(emulator, "tanh_gaussian", noise.dtype.type, noise.shape, [mean, log_std, noise], outputs)


def tanh_gaussian_oracle(mean: Array, log_std: Array, noise: Array) -> list[Array]:
    mean, log_std, noise = (x.astype(np.float64) for x in (mean, log_std, noise))
    u = mean[:, None] + np.exp(log_std)[:, None] * noise
    slope = 2 * (np.log(2) - np.abs(u) - np.log1p(np.exp(-2 * np.abs(u))))
    return [np.tanh(u), (-0.5 * noise**2 - log_std[:, None] - 0.5 * np.log(2 * np.pi) - slope).sum(-1)]


def tanh_gaussian_backward(
    emulator: Emulator, action_grad: Array, log_prob_grad: Array, actions: Array, log_std: Array, noise: Array
) -> list[Array]:
    """`action_grad` may be a part of a larger array's rows; its other numbers must not matter."""
    whole = action_grad if action_grad.base is None else action_grad.base
    item = whole.itemsize
    row, column = action_grad.strides[1] // item, action_grad.strides[2] // item
    first = (action_grad.ctypes.data - whole.ctypes.data) // item
    flat = whole.reshape(-1)[first:]
    return call(
        emulator,
        "tanh_gaussian_backward",
        noise.dtype.type,
        [*noise.shape, row, column, flat.size],
        [actions, log_std, noise, log_prob_grad, flat],
        [np.zeros_like(log_std), np.zeros_like(log_std)],
    )


def tanh_gaussian_backward_oracle(
    action_grad: Array, log_prob_grad: Array, actions: Array, log_std: Array, noise: Array
) -> list[Array]:
    actions, noise, g = (x.astype(np.float64) for x in (actions, noise, log_prob_grad[..., None]))
    u_grad = action_grad * (1 - actions**2) + 2 * g * actions
    return [u_grad.sum(1), (u_grad * np.exp(log_std.astype(np.float64))[:, None] * noise - g).sum(1)]


# --- The head of a Gaussian policy ------------------------------------------------------------------------------------


def gaussian_head(
    emulator: Emulator, raw: Array, multiplier: Array, offset: Array, low: float, high: float
) -> list[Array]:
    """raw [seeds, states, 2 dim], multiplier, offset [seeds] -> mean, log_std."""
    seeds, states, both = raw.shape
    outputs = [np.zeros((seeds, states, both // 2), raw.dtype) for _ in range(2)]
    sizes = [seeds, states, both // 2]
    return call(emulator, "gaussian_head", raw.dtype.type, sizes, [raw, multiplier, offset], outputs, [low, high])


def gaussian_head_backward(
    emulator: Emulator,
    mean_grad: Array,
    log_std_grad: Array,
    raw: Array,
    multiplier: Array,
    offset: Array,
    low: float,
    high: float,
) -> list[Array]:
    outputs = [np.zeros_like(raw), np.zeros_like(multiplier), np.zeros_like(offset)]
    inputs = [raw, multiplier, offset, mean_grad, log_std_grad]
    sizes = [*raw.shape[:2], raw.shape[2] // 2]
    return call(emulator, "gaussian_head_backward", raw.dtype.type, sizes, inputs, outputs, [low, high])


def scaled(raw: Array, multiplier: Array, offset: Array) -> Array:
    """What is clamped, rounded as the kernel rounds it."""
    return multiplier[:, None, None] * raw[..., raw.shape[-1] // 2 :] + offset[:, None, None]


def gaussian_head_oracle(raw: Array, multiplier: Array, offset: Array, low: float, high: float) -> list[Array]:
    dim = raw.shape[-1] // 2
    return [raw[..., :dim], np.clip(scaled(raw, multiplier, offset), low, high)]


def gaussian_head_backward_oracle(
    mean_grad: Array, log_std_grad: Array, raw: Array, multiplier: Array, offset: Array, low: float, high: float
) -> list[Array]:
    x, dim = scaled(raw, multiplier, offset), raw.shape[-1] // 2
    passed = np.where((low <= x) & (x <= high), log_std_grad, 0).astype(np.float64)
    raw_grad = np.concatenate([mean_grad, passed * multiplier[:, None, None]], axis=-1)
    return [raw_grad, (passed * raw[..., dim:]).sum((1, 2)), passed.sum((1, 2))]


# --- The target and the policy's loss ---------------------------------------------------------------------------------


def bellman_target(
    emulator: Emulator,
    values: Array,
    rewards: Array,
    bootstrap: Array,
    temperature: Array,
    log_prob: Array | None,
    discount: float,
) -> Array:
    """values [seeds, members, states, actions], log_prob [seeds, states, actions] -> [seeds, states]."""
    inputs = [values, rewards, bootstrap, temperature, log_prob]
    outputs = [np.zeros_like(rewards)]
    return call(emulator, "bellman_target", values.dtype.type, values.shape, inputs, outputs, [discount])[0]


def bellman_target_oracle(
    values: Array, rewards: Array, bootstrap: Array, temperature: Array, log_prob: Array | None, discount: float
) -> Array:
    least = values.min(1)  # numpy's minimum and argmax hold a NaN, the first, for the extreme, as torch's do
    which = least.argmax(-1)[..., None]
    value = np.take_along_axis(least, which, -1)[..., 0]
    if log_prob is not None:
        value = value - temperature[:, None] * np.take_along_axis(log_prob, which, -1)[..., 0]
    return rewards + values.dtype.type(discount) * bootstrap * value


def actor_loss(emulator: Emulator, q: Array, log_prob: Array, temperature: Array, least: bool) -> list[Array]:
    """q [seeds, members, states], log_prob [seeds, states] -> loss, mean log_prob."""
    outputs = [np.zeros_like(temperature), np.zeros_like(temperature)]
    return call(emulator, "actor_loss", q.dtype.type, [*q.shape, least], [q, temperature, log_prob], outputs)


def actor_loss_oracle(q: Array, log_prob: Array, temperature: Array, least: bool) -> list[Array]:
    q, log_prob, temperature = (x.astype(np.float64) for x in (q, log_prob, temperature))
    value = q.min(1) if least else q.mean(1)
    return [(temperature[:, None] * log_prob - value).mean(-1), log_prob.mean(-1)]


def actor_loss_backward(
    emulator: Emulator, loss_grad: Array, q: Array, temperature: Array, least: bool, stride: int = 1
) -> list[Array]:
    """`stride` 0: one gradient for all seeds."""
    seeds, _, states = q.shape
    outputs = [np.zeros_like(q), np.zeros((seeds, states), q.dtype)]
    inputs = [q, temperature, loss_grad]
    return call(emulator, "actor_loss_backward", q.dtype.type, [*q.shape, least, stride], inputs, outputs)


def actor_loss_backward_oracle(loss_grad: Array, q: Array, temperature: Array, least: bool) -> list[Array]:
    seeds, _, states = q.shape
    each = loss_grad.astype(np.float64) / states
    reached = (q == q.min(1, keepdims=True)) if least else np.ones_like(q, bool)
    with np.errstate(invalid="ignore"):
        share = reached / reached.sum(1, keepdims=True)
    return [-each[:, None, None] * share, np.broadcast_to((each * temperature)[:, None], (seeds, states))]


# --- The optimiser ----------------------------------------------------------------------------------------------------


@dataclass
class AdamTensor:
    """A parameter, its gradient, moments, and what follows it, [count] each; the updates so far, float32 [1]."""

    parameter: Array
    gradient: Array
    first_moment: Array
    second_moment: Array
    target: Array | None
    steps: Array
    rate: float


def adam(
    emulator: Emulator, tensors: Sequence[AdamTensor], settings: tuple[float, float, float, float]
) -> list[AdamTensor]:
    """One launch; settings: beta1, beta2, epsilon, target_rate. Returns the tensors after it."""
    kind, inputs, outputs = tensors[0].parameter.dtype.type, list[Array | None](), list[Array]()
    for t in tensors:
        inputs += [t.parameter, t.gradient, t.first_moment, t.second_moment, t.target, t.steps]
        target = np.zeros(0, kind) if t.target is None else np.zeros_like(t.target)
        outputs += [*(np.zeros_like(t.parameter) for _ in range(3)), target, np.zeros_like(t.steps)]
    inputs.append(np.zeros(len(tensors), np.int32))
    outputs.append(np.ones(len(tensors), np.int32))
    numbers = [*settings, *(t.rate for t in tensors)]
    got = call(emulator, "adam", kind, [len(tensors), *(t.parameter.size for t in tensors)], inputs, outputs, numbers)
    if got.pop().any():
        raise AssertionError("the tickets are not 0 again")
    after: list[AdamTensor] = []
    for i, t in enumerate(tensors):
        parameter, first, second, target, steps = got[5 * i : 5 * i + 5]
        after.append(
            AdamTensor(parameter, t.gradient, first, second, None if t.target is None else target, steps, t.rate)
        )
    return after


def adam_oracle(tensors: Sequence[AdamTensor], settings: tuple[float, float, float, float]) -> list[AdamTensor]:
    beta1, beta2, epsilon, target_rate = settings
    after = []
    for t in tensors:
        parameter, g, first, second = (
            x.astype(np.float64) for x in (t.parameter, t.gradient, t.first_moment, t.second_moment)
        )
        steps = t.steps + np.float32(1)
        first = beta1 * first + (1 - beta1) * g
        second = beta2 * second + (1 - beta2) * g**2
        root = np.sqrt(second) / np.sqrt(1 - beta2 ** float(steps[0])) + epsilon
        parameter = parameter - t.rate / (1 - beta1 ** float(steps[0])) * first / root
        target = None if t.target is None else t.target + target_rate * (parameter - t.target)
        after.append(AdamTensor(parameter, t.gradient, first, second, target, steps, t.rate))
    return after

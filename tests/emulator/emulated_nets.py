"""The emulated kernels between the products of networks (csrc/nets/cuda), problems for them, and oracles in numpy."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from emulated import Array, Emulator, same_bits

# What is done with each array of a contract in csrc/nets/pointwise.h, in the order of its fields: r(ead), w(ritten) or
# b(oth).
ROLES = {
    "bias_relu": "br",
    "action_relu": "rrrrw",
    "relu_dot": "rrrrw",
    "relu_gradient": "rbw",
    "action_relu_gradient": "rrrbww",
    "outer_relu_gradient": "rrrrrwwww",
    "conservative_head": "rrrrrwwww",
}


@dataclass
class Case:
    """One call: the name of a contract, and its sizes, arrays and settings in the order of the fields.

    ``shift``: elements by which each array misses an aligned address. A None is a null pointer.
    """

    name: str
    sizes: tuple[int, ...]
    arrays: list[Array | None]
    settings: tuple[float, ...] = ()
    shift: int = 0
    what: str = field(default="", compare=False)


def call(emulator: Emulator, c: Case) -> list[Array | None]:
    """Runs a kernel on copies and returns all arrays as it leaves them."""
    kept = [None if a is None else np.array(a, order="C") for a in c.arrays]
    (kind,) = {a.dtype for a in kept if a is not None}
    emulator.call(
        "emulator_nets",
        c.name.encode(),
        int(kind == np.float64),
        (ctypes.c_int64 * 7)(*c.sizes),
        ROLES[c.name].encode(),
        (ctypes.c_void_p * len(kept))(*[None if a is None else a.ctypes.data for a in kept]),
        (ctypes.c_int64 * len(kept))(*[0 if a is None else a.size for a in kept]),
        ctypes.c_int64(c.shift),
        (ctypes.c_double * 3)(*c.settings),
    )
    return kept


# --- Oracles ----------------------------------------------------------------------------------------------------------


def relu(x: Array) -> Array:
    return np.where(x <= 0, np.zeros_like(x), x)


def masked(grad: Array, h: Array) -> Array:
    return np.where(h <= 0, np.zeros_like(grad), grad)


def expected(c: Case) -> list[tuple[int, Array, bool]]:
    """Position of each result among the arrays, its value, and whether it must be met in every bit."""
    with np.errstate(all="ignore"):
        return {
            "bias_relu": bias_relu,
            "action_relu": action_relu,
            "relu_dot": relu_dot,
            "relu_gradient": relu_gradient,
            "action_relu_gradient": action_relu_gradient,
            "outer_relu_gradient": outer_relu_gradient,
            "conservative_head": conservative_head,
        }[c.name](c)


def bias_relu(c: Case) -> list[tuple[int, Array, bool]]:
    x, bias = c.arrays
    assert x is not None and bias is not None
    return [(0, relu(x + bias[:, None]), True)]


def actions_of(c: Case, action: Array) -> Array:
    """[M, R, inputs]."""
    return np.repeat(action.astype(np.float64), c.sizes[5], 0)


def action_relu(c: Case) -> list[tuple[int, Array, bool]]:
    action, weight, state, bias, h = c.arrays
    assert action is not None and weight is not None and state is not None and bias is not None and h is not None
    nets, _, width, actions, inputs, _, step = c.sizes
    own = weight.reshape(nets, step)[:, : inputs * width].reshape(nets, inputs, width)
    # The sum begins with one number of the array's type.
    begun = np.repeat(state + bias[:, None], actions, 1)
    return [(4, relu((begun + actions_of(c, action) @ own.astype(np.float64)).astype(h.dtype)), False)]


def relu_dot(c: Case) -> list[tuple[int, Array, bool]]:
    x, bias, weight, last_bias, _ = c.arrays
    assert x is not None and weight is not None and last_bias is not None
    h = relu(x if bias is None else x + bias[:, None])
    y = (h.astype(np.float64) * weight[:, None]).sum(-1) + last_bias[:, None]
    return [(0, x, True), (4, y, False)]


def relu_gradient(c: Case) -> list[tuple[int, Array, bool]]:
    h, grad, _ = c.arrays
    assert h is not None and grad is not None
    found = masked(grad, h)
    return [(1, found, True), (2, found.astype(np.float64).sum(1), False)]


def action_relu_gradient(c: Case) -> list[tuple[int, Array, bool]]:
    h, grad, action, weight_grad, _, _ = c.arrays
    assert h is not None and grad is not None and action is not None and weight_grad is not None
    nets, rows, width, actions, inputs, _, step = c.sizes
    found = masked(grad, h).astype(np.float64)
    weights = weight_grad.reshape(nets, step).astype(np.float64)
    weights[:, : inputs * width] = (actions_of(c, action).transpose(0, 2, 1) @ found).reshape(nets, -1)
    state_grad = found.reshape(nets, rows // actions, actions, width).sum(2)
    return [(1, grad, True), (3, weights, False), (4, state_grad, False), (5, found.sum(1), False)]


def outer_relu_gradient(c: Case) -> list[tuple[int, Array, bool]]:
    x, bias, y_grad, factor, weight, _, bias_grad, _, _ = c.arrays
    assert x is not None and y_grad is not None and weight is not None
    h = relu(x if bias is None else x + bias[:, None])
    g = y_grad if factor is None else y_grad * np.repeat(factor, c.sizes[3] if c.sizes[4] else len(h))[:, None]
    grad = masked(g[..., None] * weight[:, None], h)
    if bias_grad is None:
        return [(5, grad, True)]
    g = g.astype(np.float64)
    return [
        (0, x, True),
        (5, grad, True),
        (6, grad.astype(np.float64).sum(1), False),
        (7, (g[..., None] * h).sum(1), False),
        (8, g.sum(1), False),
    ]


def conservative_head(c: Case) -> list[tuple[int, Array, bool]]:
    q, target, offsets, bound, weight = (a.astype(np.float64) for a in c.arrays[:5] if a is not None)
    temperature, floor, include_data = c.settings
    n, batch = c.sizes[3], c.sizes[2]
    data, uniform, policy = q[..., 0], q[..., 1 : n + 1], q[..., n + 1 :]
    b, share = bound[:, None, :, None], weight[:, None, None] / batch
    of_data = data[..., None] if include_data else np.full_like(q[..., :1], -np.inf)
    v = np.concatenate([of_data, np.concatenate([uniform, np.maximum(policy, b)], -1) + offsets[:, None]], -1)
    v = v / temperature
    top = v.max(-1, keepdims=True)
    shift = np.where(np.isinf(top), 0, top)
    total = np.log(np.exp(v - shift).sum(-1, keepdims=True)) + shift
    difference = temperature * total[..., 0] - data
    passes = (difference >= floor) | np.isneginf(floor)
    grad = np.where(passes, share, 0)[..., None] * np.exp(v - total)
    if not include_data:
        grad[..., 0] = 0
    error = data - target[:, None]
    grad[..., 0] += 2 * error / batch - np.where(passes, share, 0)
    grad[..., n + 1 :] = np.where(policy < b, 0, np.where(policy == b, 0.5, 1) * grad[..., n + 1 :])
    gap = np.where(difference < floor, floor, difference).mean(-1)
    means = [uniform.mean((-2, -1)), policy.mean((-2, -1)), (policy < b).mean((-2, -1))]
    statistics = np.stack([(error**2).mean(-1), gap, data.mean(-1), *means])
    loss = (statistics[0] + weight[:, None] * statistics[1]).sum(-1)
    return [(5, loss, False), (6, statistics, False), (7, grad, False)]


def wrong(emulator: Emulator, c: Case) -> str | None:
    """What a kernel gets wrong, or None."""
    got = call(emulator, c)
    for at, want, exact in expected(c):
        result = got[at]
        assert result is not None
        if exact:
            right = same_bits(result, want.astype(result.dtype).reshape(result.shape))
        else:
            tolerance = 3e-5 if result.dtype == np.float32 else 1e-12
            right = np.allclose(result, want.reshape(result.shape), tolerance, tolerance, equal_nan=True)
        if not right:
            return f"{c.name} {c.sizes} {result.dtype} shift {c.shift} {c.what}: array {at}"
    return None


# --- Problems ---------------------------------------------------------------------------------------------------------


def case(name: str, seed: int, dtype: type, sizes: tuple[int, ...] | None = None, shift: int = 0) -> Case:
    """A random problem of one kernel. Which options it has goes by the seed."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(dtype)

    def unwritten(*shape: int) -> Array:
        return np.full(shape, 777, dtype)

    if sizes is None:
        sizes = (2, 3, 70, 4) if name == "conservative_head" else (2, 60, 20, 3)
    if name == "conservative_head":
        return head_case(rng, seed, dtype, sizes, shift)
    nets, rows, width, _ = sizes
    option = seed % 2 == 1
    if name == "bias_relu":
        return Case(name, sizes[:3], [normal(nets, rows, width), normal(nets, width)], (), shift)
    if name == "relu_dot":
        bias = None if seed % 4 == 2 else normal(nets, width)
        arrays = [normal(nets, rows, width), bias, normal(nets, width), normal(nets), unwritten(nets, rows)]
        return Case(name, sizes[:3], arrays, (), shift)
    if name == "relu_gradient":
        h = relu(normal(nets, rows, width))
        return Case(name, sizes[:3], [h, normal(nets, rows, width), unwritten(nets, width)], (), shift)
    if name.startswith("action_relu"):
        return action_case(name, rng, seed, dtype, sizes, shift)
    sums = [unwritten(nets, width), unwritten(nets, width), unwritten(nets)] if seed % 4 != 2 else [None] * 3
    members = max(nets // 2, 1) if seed % 4 == 3 else 1
    step = 1 if seed % 4 == 3 else int(rng.integers(2))
    factor = normal(nets // members if step else 1) if option else None
    bias = None if seed % 4 == 0 else normal(nets, width)
    inputs = [normal(nets, rows, width), bias, normal(nets, rows), factor, normal(nets, width)]
    return Case(name, (nets, rows, width, members, step), [*inputs, unwritten(nets, rows, width), *sums], (), shift)


def action_case(
    name: str, rng: np.random.Generator, seed: int, dtype: type, sizes: tuple[int, ...], shift: int
) -> Case:
    """The first layer of critics, or its gradient: few numbers for each action, more than a thread's, or than are
    staged at a time; all networks share the actions, or pairs do, or each has its own."""
    nets, rows, width, actions = sizes
    inputs = (6, 1, 9, 33)[seed % 4]
    members = nets if seed % 3 == 0 else 2 if seed % 3 == 1 and nets % 2 == 0 else 1
    step = (inputs + seed % 2) * width + (3 if seed % 4 == 3 else 0)  # as in a view of the whole weight, or odd

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(dtype)

    def unwritten(*shape: int) -> Array:
        return np.full(shape, 777, dtype)

    action, states = normal(nets // members, rows, inputs), rows // actions
    if name == "action_relu":
        rest = [normal(nets, states, width), normal(nets, width), unwritten(nets, rows, width)]
        arrays = [action, normal(nets * step), *rest]
    else:
        rest = [unwritten(nets * step), unwritten(nets, states, width), unwritten(nets, width)]
        arrays = [relu(normal(nets, rows, width)), normal(nets, rows, width), action, *rest]
    return Case(name, (*sizes, inputs, members, step), arrays, (), shift)


def head_case(rng: np.random.Generator, seed: int, dtype: type, sizes: tuple[int, ...], shift: int) -> Case:
    seeds, members, batch, n = sizes
    q = (3 * rng.standard_normal((seeds, members, batch, 1 + 3 * n))).astype(dtype)
    bound = rng.standard_normal((seeds, batch)).astype(dtype)
    bound[rng.random(bound.shape) < 0.3] = -np.inf
    q[:, :, ::5, -1] = np.where(np.isinf(bound[:, None, ::5]), 1, bound[:, None, ::5])  # on the bound
    arrays = [
        q,
        rng.standard_normal((seeds, batch)).astype(dtype),
        rng.standard_normal((seeds, batch, 3 * n)).astype(dtype),
        bound,
        np.abs(rng.standard_normal(seeds)).astype(dtype),
        np.full(seeds, 777, dtype),
        np.full((6, seeds, members), 777, dtype),
        np.full_like(q, 777),
        np.full((seeds, members, 6, (batch + 3) // 4), 777, dtype),
    ]
    floor = -np.inf if seed % 3 == 0 else 1.5
    return Case("conservative_head", sizes, arrays, (0.6 if seed % 4 > 1 else 1.0, floor, float(seed % 2)), shift)


def spoilt(seed: int, dtype: type, n: int = 2) -> Case:
    """Values, offsets and bounds that are not finite, in rows of their own."""
    c = head_case(np.random.default_rng(seed), seed, dtype, (2, 2, 30, n), 0)
    q, _, offsets, bound = (a for a in c.arrays[:4] if a is not None)
    for row, bad in enumerate((np.nan, np.inf, -np.inf)):
        for k, place in enumerate((0, 1, n, n + 2, 3 * n)):
            q[0, :, 5 * row + k, place] = bad
        offsets[0, 15 + row, 1], offsets[0, 18 + row, n + 1] = bad, bad
        bound[0, 21 + row] = bad
    offsets[0, 24] = -np.inf  # nothing to add up
    q[0, :, 25, 1], q[0, :, 25, 2] = np.inf, 300  # exp(300) is no float32
    c.what = "not finite"
    return c


@cache
def problems() -> list[Case]:
    """Of every kernel: whole vectors, single elements, addresses that are not aligned, one and many rows."""
    found = []
    shapes = [(1, 1, 1, 1), (2, 12, 8, 3), (1, 33, 7, 11), (3, 130, 40, 1), (1, 280, 12, 28), (2, 66, 132, 2),
              (2, 1300, 8, 1), (1, 2600, 4, 2)]  # fmt: skip
    # From 11 actions on a thread does not have all of its values at a time; from 9 critics on a warp has several.
    heads = [(1, 1, 1, 1), (2, 2, 129, 3), (1, 3, 40, 10), (3, 1, 7, 5), (1, 1, 300, 2), (2, 1, 9, 11), (1, 19, 6, 2),
             (1, 2, 5, 40), (2, 1, 3, 32)]  # fmt: skip
    for dtype in (np.float32, np.float64):
        for number, sizes in enumerate(shapes):
            for name in list(ROLES)[:-1]:
                for option in range(4 if number < 4 else 2):
                    found.append(case(name, 4 * number + option, dtype, sizes, shift=number % 3 % 2))
        found.append(case("outer_relu_gradient", 3, dtype, (4, 20, 8, 1)))  # two networks share a factor
        for number, sizes in enumerate(heads):
            for option in range(3):
                found.append(case("conservative_head", 5 * number + option, dtype, sizes, shift=number % 2))
        found += [spoilt(seed, dtype) for seed in range(6)]
    for width in (300, 260):  # more than one slab forward
        found.append(case("action_relu", 0, np.float32, (2, 70, width, 7)))
    found.append(case("action_relu", 0, np.float32, (1, 12, 68, 4)))
    found.append(case("action_relu", 0, np.float32, (128, 43 * 17, 4, 17)))  # two rounds
    for name in ("bias_relu", "relu_dot"):  # a NaN passes a ReLU
        c = case(name, 1, np.float32)
        assert c.arrays[0] is not None
        c.arrays[0][0, 2, 5], c.arrays[0][0, 3, 5], c.arrays[0][0, 4, 5] = np.nan, np.inf, -np.inf
        found.append(c)
    c = case("action_relu", 0, np.float32)
    assert c.arrays[0] is not None and c.arrays[2] is not None
    c.arrays[0][0, 2, 5] = c.arrays[2][1, 3, 7] = np.nan
    found.append(c)
    for name in ("relu_gradient", "action_relu_gradient"):
        c = case(name, 1, np.float32)
        assert c.arrays[0] is not None and c.arrays[1] is not None
        c.arrays[0][0, 2, 5] = c.arrays[1][0, 3, 6] = c.arrays[1][1, 4, 5] = np.nan
        found.append(c)
    c = case("outer_relu_gradient", 1, np.float32)
    assert c.arrays[0] is not None
    c.arrays[0][0, 2, 5] = np.nan
    found.append(c)
    # Enough networks for wide slabs; last, because they take long.
    for name in ("relu_gradient", "action_relu_gradient", "outer_relu_gradient"):
        for sizes in ((130, 6, 36, 3), (44, 40, 90, 20), (64, 70, 64, 70)):
            found.append(case(name, 3, np.float32 if sizes[2] != 90 else np.float64, sizes))
    return found

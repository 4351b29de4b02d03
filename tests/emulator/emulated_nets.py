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
    "add_relu": "brr",
    "relu_dot": "brrrw",
    "relu_gradient": "rbww",
    "outer_relu_gradient": "rrrrwwww",
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
        (ctypes.c_int64 * 5)(*c.sizes),
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
            "add_relu": add_relu,
            "relu_dot": relu_dot,
            "relu_gradient": relu_gradient,
            "outer_relu_gradient": outer_relu_gradient,
            "conservative_head": conservative_head,
        }[c.name](c)


def add_relu(c: Case) -> list[tuple[int, Array, bool]]:
    x, state, bias = c.arrays
    assert x is not None and bias is not None
    if state is None:
        return [(0, relu(x + bias[:, None]), True)]
    return [(0, relu(x + np.repeat(state + bias[:, None], c.sizes[3], 1)), True)]


def relu_dot(c: Case) -> list[tuple[int, Array, bool]]:
    x, bias, weight, last_bias, _ = c.arrays
    assert x is not None and weight is not None and last_bias is not None
    h = relu(x if bias is None else x + bias[:, None])
    y = (h.astype(np.float64) * weight[:, None]).sum(-1) + last_bias[:, None]
    return [(0, h if c.settings[0] else x, True), (4, y, False)]


def relu_gradient(c: Case) -> list[tuple[int, Array, bool]]:
    h, grad, state_grad, _ = c.arrays
    nets, rows, width, actions = c.sizes
    assert h is not None and grad is not None
    found = masked(grad, h)
    results = [(1, found, True), (3, found.astype(np.float64).sum(1), False)]
    if state_grad is not None:
        sums = found.astype(np.float64).reshape(nets, rows // actions, actions, width).sum(2)
        results.append((2, sums, False))
    return results


def outer_relu_gradient(c: Case) -> list[tuple[int, Array, bool]]:
    h, y_grad, factor, weight, _, bias_grad, _, _ = c.arrays
    assert h is not None and y_grad is not None and weight is not None
    g = y_grad if factor is None else y_grad * np.repeat(factor, c.sizes[3] if c.sizes[4] else len(h))[:, None]
    grad = masked(g[..., None] * weight[:, None], h)
    if bias_grad is None:
        return [(4, grad, True)]
    g = g.astype(np.float64)
    return [
        (4, grad, True),
        (5, grad.astype(np.float64).sum(1), False),
        (6, (g[..., None] * h).sum(1), False),
        (7, g.sum(1), False),
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
    nets, rows, width, actions = sizes
    h = relu(normal(nets, rows, width))
    option = seed % 2 == 1
    if name == "add_relu":
        state = normal(nets, rows // actions, width) if option else None
        return Case(name, sizes, [normal(nets, rows, width), state, normal(nets, width)], (), shift)
    if name == "relu_dot":
        bias = None if seed % 4 == 2 else normal(nets, width)
        arrays = [normal(nets, rows, width), bias, normal(nets, width), normal(nets), unwritten(nets, rows)]
        return Case(name, sizes, arrays, (float(option),), shift)
    if name == "relu_gradient":
        state_grad = unwritten(nets, rows // actions, width) if option else None
        sizes = sizes if option else (*sizes[:3], 1)
        return Case(name, sizes, [h, normal(nets, rows, width), state_grad, unwritten(nets, width)], (), shift)
    sums = [unwritten(nets, width), unwritten(nets, width), unwritten(nets)] if seed % 4 != 2 else [None] * 3
    members = max(nets // 2, 1) if seed % 4 == 3 else 1
    step = 1 if seed % 4 == 3 else int(rng.integers(2))
    factor = normal(nets // members if step else 1) if option else None
    arrays = [h, normal(nets, rows), factor, normal(nets, width), unwritten(nets, rows, width), *sums]
    return Case(name, (nets, rows, width, members, step), arrays, (), shift)


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
            for name in list(ROLES)[:4]:
                for option in range(4 if number < 4 else 2):
                    found.append(case(name, 4 * number + option, dtype, sizes, shift=number % 3 % 2))
        found.append(case("outer_relu_gradient", 3, dtype, (4, 20, 8, 1)))  # two networks share a factor
        for number, sizes in enumerate(heads):
            for option in range(3):
                found.append(case("conservative_head", 5 * number + option, dtype, sizes, shift=number % 2))
        found += [spoilt(seed, dtype, n) for seed in range(6) for n in ((2, 15) if seed < 4 else (2,))]
    for name in ("add_relu", "relu_dot"):  # a NaN passes a ReLU
        c = case(name, 1, np.float32)
        assert c.arrays[0] is not None
        c.arrays[0][0, 2, 5], c.arrays[0][0, 3, 5], c.arrays[0][0, 4, 5] = np.nan, np.inf, -np.inf
        found.append(c)
    c = case("relu_gradient", 1, np.float32)
    assert c.arrays[0] is not None and c.arrays[1] is not None
    c.arrays[0][0, 2, 5] = c.arrays[1][0, 3, 6] = np.nan
    return [*found, c]

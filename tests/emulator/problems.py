"""Random problems for the emulated kernels: small sizes, every option, and data that is hard on floating point."""

from __future__ import annotations

import numpy as np
from emulated import Problem

DATA = "normal ties duplicates constant offset huge tiny mixed line outlier clusters shell".split()


def rows(rng: np.random.Generator, data: str, shape: tuple[int, ...]) -> np.ndarray:
    """States of the named kind, float64."""
    x = rng.standard_normal(shape)
    match data:
        case "normal":
            return x
        case "ties":
            return np.round(x)
        case "duplicates":
            return np.take(x, rng.integers(0, max(1, shape[-2] // 4), shape[-2]), axis=-2)
        case "constant":
            return np.ones(shape)
        case "offset":
            return x + 1e6
        case "huge":
            return x * 1e30  # squares overflow in float32
        case "tiny":
            return x * 1e-30  # squares vanish in float32
        case "mixed":
            return x * 10.0 ** rng.integers(-25, 25, shape[-1])
        case "line":
            return np.sort(x, axis=-2)
        case "outlier":
            x[..., 0, :] *= 1e9  # the others are nothing beside it
            return x
        case "clusters":
            return 1e-5 * x + 100 * rng.integers(0, 3, (*shape[:-1], 1))  # finer than half precision can tell
        case "shell":  # seen from the middle, distances differ in their last bits, if at all
            x /= np.linalg.norm(x, axis=-1, keepdims=True)
            x *= 1 + 2.0**-23 * rng.integers(-3, 4, (*shape[:-1], 1))
            x[..., ::2, :] *= 1e-4
            return x
    raise ValueError(f"data must be one of {DATA}, got {data!r}")


def spoil(rng: np.random.Generator, states: np.ndarray, values: np.ndarray) -> None:
    """Makes some rows not finite, in place."""
    for b in range(states.shape[0]):
        for i in rng.integers(0, states.shape[1], 1 + states.shape[1] // 6):
            bad = rng.choice([np.nan, np.inf, -np.inf])
            if rng.random() < 0.5:
                values[b, i] = bad
            else:
                states[b, i, rng.integers(states.shape[2])] = bad


def draw(seed: int, largest: int = 70) -> tuple[Problem, dict[str, int], str]:
    """A problem, settings of the emulated device, and a line that says what was drawn."""
    rng = np.random.default_rng(seed)
    dtype = rng.choice([np.float32, np.float64])
    data = str(rng.choice(DATA))
    batch = int(rng.choice([1, 1, 1, 2, 3]))
    dim = int(rng.choice([1, 2, 3, 4, 8, 11, 12, 13, 17, 23, 24, 25, 29, 40, 61]))
    queries = int(rng.integers(2, largest))
    kind = str(rng.choice(["self", "self", "references", "indexed"]))
    refs = queries if kind == "self" else int(rng.integers(2, 4 * largest))
    # Several tiles, values that decide the distances, and neighbours that are far apart in sorted order.
    wide = rng.random() < 0.2
    if wide:
        kind = "indexed" if kind == "self" else kind
        dim, queries, refs = int(rng.integers(1, 4)), int(rng.integers(2, 24)), int(rng.integers(300, 1000))
    candidates = refs if kind == "references" else refs - 1
    k = int(rng.integers(1, min(candidates, int(rng.choice([3, 16, 32, 128]))) + 1))
    scale = 10.0 ** rng.integers(-2, 3)
    if data in ("huge", "tiny"):
        scale = 1e30 if data == "huge" else 1e-30

    def draw_set(n: int) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(over="ignore"):
            states = rows(rng, data, (batch, n, dim))
            states = (states * 1e-4 if wide else states).astype(dtype)
            values = (rng.standard_normal((batch, n)) * scale).astype(dtype)
        if data in ("ties", "constant"):
            values = np.round(values)
        return states, values

    states, values = draw_set(queries)
    problem = Problem(states, values, k)
    if kind != "self":
        problem.ref_states, problem.ref_values = draw_set(refs)
        common = min(queries, refs)
        problem.ref_states[:, :common] = states[:, :common]
        problem.ref_values[:, :common] = values[:, :common]
    if kind == "indexed":
        problem.self_index = np.where(rng.random((batch, queries)) < 0.3, -1, np.arange(queries) % refs)
    spoiled = rng.random() < 0.3
    if spoiled:
        spoil(rng, states, values)
        if problem.ref_states is not None and problem.ref_values is not None:
            spoil(rng, problem.ref_states, problem.ref_values)
    device = {
        "multiprocessors": int(rng.choice([1, 8, 200])),
        "shared_bytes": int(rng.choice([99, 163, 227])) * 1024,
    }
    what = f"seed {seed}: {data} {np.dtype(dtype).name} {kind} batch {batch} queries {queries} refs {refs} dim {dim}"
    return problem, device, f"{what} k {k} spoiled {spoiled} {device}"


def directed() -> list[tuple[str, Problem]]:
    """Problems that only a particular mistake gets wrong."""
    rng = np.random.default_rng(11)
    found = []

    # The neighbours are in the tile on the farther side; home and the nearer side hold only states that are far away.
    # A side that is left too early, or judged by the wrong end of its tile, shows.
    states, values = np.zeros((1, 3, 1), np.float32), np.array([[-0.01, 0, 0.01]], np.float32)
    for mirror in (1, -1):
        places = np.concatenate([np.linspace(-3, -1, 256), np.linspace(-0.4, 0.45, 256), np.linspace(0.5, 0.6, 256)])
        far = np.concatenate([np.zeros(256), np.full(512, 1.5)])
        order = rng.permutation(768)
        ref_values, ref_states = (mirror * places[order]).astype(np.float32), far[order].astype(np.float32)
        found.append(("the farther side", Problem(states, values, 12, ref_states[None, :, None], ref_values[None])))

    # Long lists that are filled by a few keys at a time, so that keys move from one register to the next.
    for dtype in (np.float32, np.float64):
        states, values = rng.standard_normal((1, 4, 3)).astype(dtype), rng.standard_normal((1, 4)).astype(dtype)
        ref_states, ref_values = (
            rng.standard_normal((1, 1000, 3)).astype(dtype),
            rng.standard_normal((1, 1000)).astype(dtype),
        )
        found.append(("long lists", Problem(states, values, 100, ref_states, ref_values)))

    # Warps that share a query agree on a bound when all but a few candidates are seen; k does not divide among them.
    states, values = rng.standard_normal((1, 150, 3)).astype(np.float32), np.zeros((1, 150), np.float32)
    ref_states = rng.standard_normal((1, 280, 3)).astype(np.float32)
    found.append(("a shared bound", Problem(states, values, 13, ref_states, np.zeros((1, 280), np.float32))))

    # Bounds whose squares are zero or not normal, and more candidates than one look of a warp.
    for scale in (1e-26, 2e-22):
        states, values = np.zeros((1, 4, 2)), rng.standard_normal((1, 4)) * scale
        ref_states, ref_values = rng.standard_normal((1, 1000, 2)) * scale, rng.standard_normal((1, 1000)) * scale
        parts = [part.astype(np.float32) for part in (states, values, ref_states, ref_values)]
        found.append(("squares that vanish", Problem(parts[0], parts[1], 12, parts[2], parts[3])))

    # A second batch entry that does not begin at a multiple of 16 bytes, in whole tiles.
    states, values = rng.standard_normal((2, 5, 3)).astype(np.float32), rng.standard_normal((2, 5)).astype(np.float32)
    ref_states, ref_values = rng.standard_normal((2, 301, 3)), rng.standard_normal((2, 301))
    references = ref_states.astype(np.float32), ref_values.astype(np.float32)
    found.append(("not aligned", Problem(states, values, 7, *references)))

    # Half precision rounds the query and its last neighbours away from each other, and those seen last are nearest by a
    # hair. Of the references' three parts the first is nearest, the second far, so that the shadows' centre is 0.
    for dtype in (np.float32, np.float64):
        just_above = 1 + 2.0**-11 + 2.0**-20
        hair = 2.0**-20 * np.linspace(1, 0, 80)[:, None] * rng.uniform(0.5, 1, (80, 8))
        ref_states = np.concatenate([np.zeros((70, 8)), np.full((80, 8), -20), just_above + hair])
        ref_values = 1e-3 * np.linspace(0, 1, 230)
        parts = np.full((1, 3, 8), -just_above), np.zeros((1, 3)), ref_states[None], ref_values[None]
        found.append(
            ("rounded apart", Problem(*[a.astype(dtype) for a in parts[:2]], 75, *[a.astype(dtype) for a in parts[2:]]))
        )

    # Half precision holds all of it, and far from the shadows' centre, which is 0, the tensor core may err by more than
    # what parts the first tile's neighbours, 101 away in the square, from the second's, 100 away.
    for dtype in (np.float32, np.float64):
        ref_states, ref_values = np.zeros((256, 8)), 1e-3 * np.linspace(0, 1, 256)
        for tile, offset in ((88, [10, 1]), (216, [10, 0])):
            ref_states[tile : tile + 40] = 1500
            ref_states[tile : tile + 40, :2] += offset
        parts = np.full((1, 3, 8), 1500), np.zeros((1, 3)), ref_states[None], ref_values[None]
        found.append(
            (
                "far from the centre",
                Problem(*[a.astype(dtype) for a in parts[:2]], 25, *[a.astype(dtype) for a in parts[2:]]),
            )
        )

    # Several batch entries are sorted together: values of both signs, both zeros, and magnitudes at either end.
    for dtype in (np.float32, np.float64):
        least, most = np.finfo(dtype).smallest_subnormal, 0.4 * np.finfo(dtype).max
        values = rng.choice(np.array([-most, -3, -1, -least, -0.0, 0.0, least, 1, 3, most]), (5, 40)).astype(dtype)
        values[:, ::2] = rng.standard_normal((5, 20))
        values[1, 3], values[4, 5] = np.inf, -np.inf
        found.append(("five entries", Problem(rng.standard_normal((5, 40, 2)).astype(dtype), values, 6)))

    # Several tiles, so that more is screened than computed, for each kind of the screen's kernels.
    for dtype, dim in ((np.float32, 9), (np.float32, 30), (np.float32, 45), (np.float64, 20), (np.float32, 70)):
        states, ref_states = rng.standard_normal((1, 40, dim)), rng.standard_normal((1, 400, dim))
        values, ref_values = rng.standard_normal((1, 40)), rng.standard_normal((1, 400))
        parts = [a.astype(dtype) for a in (states, values, ref_states, ref_values)]
        found.append(("several tiles", Problem(parts[0], parts[1], 6, parts[2], parts[3])))

    # The neighbours are in the last of many tiles on one side, when every stage has been used more than twice.
    for mirror in (1, -1):
        ref_values, ref_states = mirror * 1e-3 * np.linspace(0, 1, 2100), rng.uniform(5, 6, (2100, 2))
        ref_states[-30:] = rng.uniform(0.1, 0.2, (30, 2))
        parts = [
            a.astype(np.float32) for a in (np.zeros((1, 3, 2)), np.zeros((1, 3)), ref_states[None], ref_values[None])
        ]
        found.append(("the last of many tiles", Problem(parts[0], parts[1], 12, parts[2], parts[3])))

    # A self that is not finite takes no candidate away: k are left, and k - 1 would be too few.
    states, values = rng.standard_normal((1, 5, 3)), rng.standard_normal((1, 5))
    ref_states, ref_values = rng.standard_normal((1, 5, 3)), rng.standard_normal((1, 5))
    ref_values[0, 2] = np.nan
    self_index = np.array([[2, 2, 0, -1, 2]])
    found.append(("self is not finite", Problem(states, values, 4, ref_states, ref_values, self_index)))
    return found


def shared() -> list[tuple[str, Problem]]:
    """Few queries and many references, where a device of many multiprocessors lets blocks share the queries."""
    rng = np.random.default_rng(12)
    found = []
    for dtype, queries, refs, dim, k in [
        (np.float32, 3, 1700, 3, 12),
        (np.float32, 17, 1030, 26, 5),
        (np.float64, 2, 1500, 2, 128),
        (np.float32, 5, 1290, 4, 33),
        (np.float64, 3, 1025, 13, 7),
    ]:
        batch = 2 if k == 5 else 1
        parts = [rng.standard_normal((batch, n, d)) for n, d in ((queries, dim), (queries, 1), (refs, dim), (refs, 1))]
        states, values, ref_states, ref_values = (part.astype(dtype) for part in parts)
        problem = Problem(states, values[..., 0], k, ref_states, ref_values[..., 0])
        if k in (12, 128):  # every block's share has rows that are not finite, and every query is a reference
            problem.self_index = rng.integers(0, refs, (batch, queries))
            for b in range(batch):
                ref_states[b, problem.self_index[b]], ref_values[b, problem.self_index[b]] = states[b], values[b]
            ref_states[:, ::7, 0] = np.nan
        if k == 7:  # a query that is not finite beside others, and neighbours at the ends of the order
            problem.values[0, 1] = np.nan
            problem.values[0, 0], problem.values[0, 2] = -2.9, 2.9
        found.append((f"{queries} queries share {refs} references, k {k}", problem))
    return found

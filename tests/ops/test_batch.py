"""The fused bonus of a training batch against float64 brute force, formula by formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import digamma

from qcse_ext import _C
from qcse_ext.bonus import batch_entropy, batch_entropy_in_torch

OPTIONS = {"k": 3, "count_self": False, "learn": True, "horizon": 5.0, "divisor": 2.0, "offset": 1e-5}


def problem(seed: int, seeds: int = 3, rows: int = 40, dim: int = 4, dtype: torch.dtype = torch.float64) -> dict:
    """Rows drawn with replacement from `rows` transitions, some not eligible, moments from earlier batches."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, rows, (seeds, rows))
    states = rng.normal(1.0, 2.0, (seeds, rows, dim))[np.arange(seeds)[:, None], index]
    values = rng.normal(5.0, 3.0, (seeds, rows))[np.arange(seeds)[:, None], index]
    moments = rng.normal(0.0, 1.0, (seeds, dim + 1)), rng.uniform(0.5, 2.0, (seeds, dim + 1))
    p = {"states": states, "values": values, "mean": moments[0], "variance": moments[1]}
    p = {name: torch.tensor(x, dtype=dtype) for name, x in p.items()}
    p["batches"] = torch.tensor(rng.integers(0, 8, seeds), dtype=dtype)
    p["index"], p["eligible"] = torch.from_numpy(index), torch.from_numpy(rng.random((seeds, rows)) < 0.8)
    return p | OPTIONS


def brute(p: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Entropy, covered, statistics and the moments afterwards, one row and one pair at a time."""
    seeds, rows, dim = p["states"].shape
    mean, variance, batches = (p[name].double().numpy().copy() for name in ("mean", "variance", "batches"))
    entropy, covered, statistics = np.zeros((seeds, rows)), np.zeros((seeds, rows), bool), np.zeros((3, seeds))
    for s in range(seeds):
        points = np.concatenate([p["states"][s].double().numpy(), p["values"][s].double().numpy()[:, None]], 1)
        usable = p["eligible"][s].numpy() & np.isfinite(points).all(1)
        eligible = np.flatnonzero(usable)
        learnt = points[usable & (np.abs(points) <= (1e18 if p["states"].dtype == torch.float32 else 1e140)).all(1)]
        if p["learn"] and len(learnt):
            batches[s] += 1
            rate = 1.0 / min(batches[s], p["horizon"])
            moved = learnt.mean(0) - mean[s]
            variance[s] += rate * (learnt.var(0) + (1.0 - rate) * moved**2 - variance[s])
            mean[s] += rate * moved
        spread = np.where(np.sqrt(variance[s]) > 1e-6, np.sqrt(variance[s]), 1.0)
        scaled = (points - mean[s]) / spread
        scaled[:, :dim] /= p["divisor"]
        index = p["index"][s].numpy()
        candidates = [np.flatnonzero((index == i) & usable)[0] for i in np.unique(index[eligible])]
        finite = [c for c in candidates if np.isfinite(scaled[c]).all()]
        zero_radii = counts = 0
        for i in eligible if len(candidates) > p["k"] else ():
            if not np.isfinite(scaled[i]).all():
                continue
            others = np.array([c for c in finite if index[c] != index[i]])
            away = np.abs(scaled[others, dim] - scaled[i, dim])
            if len(others) < p["k"]:
                continue
            near = np.sqrt(((scaled[others, :dim] - scaled[i, :dim]) ** 2).sum(1))
            radius = np.sort(np.maximum(near, away))[p["k"] - 1]
            count = int((away < radius).sum()) + int(p["count_self"] and radius > 0)
            entropy[s, i] = digamma(count + 1) / dim + math.log(2.0 * radius + p["offset"])
            covered[s, i], zero_radii, counts = True, zero_radii + (radius == 0), counts + count
        found = covered[s].sum()
        statistics[0, s], statistics[1, s] = zero_radii / max(found, 1), found / max(int(p["eligible"][s].sum()), 1)
        statistics[2, s] = counts / max(found * len(candidates), 1)
    return entropy, covered, statistics, {"mean": mean, "variance": variance, "batches": batches}


def check(p: dict, tolerance: float = 1e-10) -> torch.Tensor:
    entropy, covered, statistics, moments = brute(p)
    got = batch_entropy(**p)
    for found, want in zip(got, (entropy, covered, statistics), strict=True):
        np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance)
    for name, want in moments.items():
        np.testing.assert_allclose(p[name], want, rtol=tolerance, atol=tolerance)
    return got[0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count_self", [False, True])
def test_brute_force(seed: int, count_self: bool) -> None:
    assert check(problem(seed) | {"count_self": count_self, "learn": seed % 4 > 0}).any()


def test_float32() -> None:
    check(problem(1, rows=256, dim=17, dtype=torch.float32), tolerance=2e-5)


def test_repeated_states_have_radius_zero() -> None:
    p = problem(2)
    same = p["index"] % 2 == 0
    p["states"][same], p["values"][same] = 1.5, 2.5
    entropy = check(p | {"count_self": True})
    assert torch.isclose(entropy, torch.tensor(digamma(1.0) / 4 + math.log(1e-5)).double()).any()


def test_a_channel_that_hardly_varies_is_only_centred() -> None:
    p = problem(3) | {"learn": False}
    p["variance"][:, 1] = 0.0
    check(p)


def test_few_distinct_transitions() -> None:
    p = problem(4)
    p["index"][0] = p["index"][0] % 3  # no more than k
    p["states"][0] = p["states"][0, :3][p["index"][0]]
    p["values"][0] = p["values"][0, :3][p["index"][0]]
    p["eligible"][1] = False  # nothing to learn from
    entropy = check(p)
    assert not entropy[0].any() and not entropy[1].any() and entropy[2].any()


def test_rows_that_are_not_finite_have_no_entropy() -> None:
    p = problem(5) | {"learn": False}
    p["states"][0][p["index"][0] == p["index"][0, 0]] = float("nan")
    p["values"][1][p["index"][1] == p["index"][1, 3]] = float("nan")
    p["states"][2][~p["eligible"][2]] = float("inf")
    check(p)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channel", ["states", "values"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_that_is_not_finite_is_left_out_of_the_moments(bad: float, channel: str, dtype: torch.dtype) -> None:
    p = problem(10, dtype=dtype)
    p["eligible"][0, 4] = True
    p[channel][0, 4] = bad
    q = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in p.items()}
    q["eligible"][0, 4] = False
    for _ in range(3):
        check(p, tolerance=1e-10 if dtype == torch.float64 else 2e-5)
        batch_entropy(**q)
        assert all(torch.equal(p[name], q[name]) for name in ("mean", "variance", "batches"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share_of_largest", [1.0, 0.5, 1e-10])
def test_huge_rows_do_not_make_the_moments_infinite(dtype: torch.dtype, share_of_largest: float) -> None:
    p = problem(11, dtype=dtype)
    p["states"][1, 3:6] = torch.finfo(dtype).max * share_of_largest
    p["values"][2, 7] = -torch.finfo(dtype).max * share_of_largest
    p["states"][0, :] = 0.99e18 if dtype == torch.float32 else 0.99e140
    p["states"][0, ::2] *= -1
    for _ in range(4):
        batch_entropy(**p)
        assert p["mean"].isfinite().all() and p["variance"].isfinite().all() and (p["variance"] >= 0).all()
    q = problem(11, dtype=dtype)
    q |= {name: p[name] for name in ("mean", "variance", "batches")}
    assert batch_entropy(**q)[1].any(1).all()  # later batches are as ever


def test_a_batch_without_a_finite_row_changes_nothing() -> None:
    p = problem(12, seeds=1)
    p["states"][0, :, 1] = math.nan
    before = [p[name].clone() for name in ("mean", "variance", "batches")]
    entropy, covered, statistics = batch_entropy(**p)
    assert not entropy.any() and not covered.any() and not statistics.any()
    assert all(torch.equal(p[name], x) for name, x in zip(("mean", "variance", "batches"), before, strict=True))


@pytest.mark.parametrize("finite", [3, 4])
def test_too_few_finite_transitions(finite: int) -> None:
    p = problem(9, seeds=1) | {"learn": False}
    p["states"][p["index"] >= sorted(set(p["index"][p["eligible"]].tolist()))[finite]] = float("nan")
    assert check(p).any() == (finite > p["k"])


@pytest.mark.parametrize("seeds", [1, 3])
def test_same_bits_for_every_thread_count(seeds: int) -> None:
    before = torch.get_num_threads()
    results = []
    _C.set_work_per_thread(1)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            p = problem(6, seeds, rows=600, dtype=torch.float32)
            results.append([*batch_entropy(**p), p["mean"], p["variance"], p["batches"]])
    finally:
        _C.set_work_per_thread(0)
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("states", lambda p: p["states"][0], r"states must have shape \[S, N, D\], got \[40, 4\]"),
        ("states", lambda p: p["states"].half(), "states must be float32 or float64"),
        ("values", lambda p: p["values"][:, 1:], r"values must have shape \[3, 40\], got \[3, 39\]"),
        ("values", lambda p: p["values"].float(), "values must have the dtype of states"),
        ("index", lambda p: p["index"].int(), "index must be int64, got int32"),
        ("eligible", lambda p: p["eligible"].int(), "eligible must be bool, got int32"),
        ("mean", lambda p: p["mean"][:, 1:], r"mean must have shape \[3, 5\], got \[3, 4\]"),
        ("variance", lambda p: p["variance"].T.contiguous().T, "must be contiguous"),
        ("k", lambda p: 0, "k must be from 1 to 128, got 0"),
        ("horizon", lambda p: 0.5, "horizon must be at least 1"),
        ("divisor", lambda p: 0.0, "divisor must be above 0"),
    ],
)
def test_errors_name_the_argument(name: str, change, message: str) -> None:
    p = problem(7)
    p[name] = change(p)
    with pytest.raises(RuntimeError, match=message):
        batch_entropy(**p)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("states", lambda p: p["states"][0], r"states must have shape \[S, N, D\], got \[40, 4\]"),
        ("states", lambda p: p["states"].half(), "states must be float32 or float64"),
        ("values", lambda p: p["values"].float(), "values must have the dtype of states"),
        ("index", lambda p: p["index"].int(), "index must be int64, got int32"),
        ("eligible", lambda p: p["eligible"].int(), "eligible must be bool, got int32"),
        ("mean", lambda p: p["mean"][:, 1:], r"mean must have shape \[3, 5\], got \[3, 4\]"),
        ("k", lambda p: 129, "k must be from 1 to 128, got 129"),
        ("horizon", lambda p: 0.5, "horizon must be at least 1"),
        ("divisor", lambda p: 0.0, "divisor must be above 0"),
    ],
)
def test_the_definitions_errors_name_the_argument(name: str, change, message: str) -> None:
    p = problem(7)
    p[name] = change(p)
    with pytest.raises(RuntimeError, match=message):
        batch_entropy_in_torch(**p)


@pytest.mark.parametrize("seed", range(6))
def test_the_definition_equals_brute_force(seed: int, without_kernels: Callable[[], None]) -> None:
    without_kernels()
    p = problem(seed) | {"count_self": seed % 2 == 0, "learn": seed % 3 > 0}
    if seed == 4:
        p["states"][0, 4], p["eligible"][0, 4], p["values"][1, 3] = math.nan, True, math.inf
        p["states"][2, 7] = 1e150  # moves no moments
    if seed == 5:
        p["index"][0] = p["index"][0] % 3  # no more distinct transitions than k
        p["states"][0], p["values"][0] = p["states"][0, :3][p["index"][0]], p["values"][0, :3][p["index"][0]]
    assert check(p).any()


@pytest.mark.parametrize("rows", [2, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_definition_equals_the_kernel(rows: int, dtype: torch.dtype) -> None:
    tolerance = 2e-5 if dtype == torch.float32 else 1e-10
    one, two = (problem(13, rows=rows, dtype=dtype) for _ in range(2))
    for _ in range(3):  # no more rows than k have no entropy, but move the moments
        for got, want in zip(batch_entropy_in_torch(**one), batch_entropy(**two), strict=True):
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
        for name in ("mean", "variance", "batches"):
            torch.testing.assert_close(one[name], two[name], rtol=tolerance, atol=tolerance)


def test_opcheck() -> None:
    p = problem(8)
    order = ("states", "values", "index", "eligible", "mean", "variance", "batches", *OPTIONS)
    torch.library.opcheck(torch.ops.qcse.batch_entropy, tuple(p[name] for name in order))

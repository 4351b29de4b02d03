"""The kernels of csrc/knn/cuda under the emulator against brute force, bit for bit."""

import os

import numpy as np
import pytest
from emulated import Emulator, EmulatorError, Problem, same_bits
from problems import directed, draw, shared

PROBLEMS = int(os.environ.get("QCSE_EMULATED_PROBLEMS", "60"))
FIRST = int(os.environ.get("QCSE_EMULATED_FIRST", "0"))


def check(emulator: Emulator, problem: Problem, path: str, what: str, variant: int = -1) -> None:
    expected = emulator.brute_force(problem)
    got = emulator.knn(problem, path, variant=variant)
    assert got.radius is not None and expected.radius is not None
    assert same_bits(got.radius, expected.radius), what
    assert np.array_equal(got.count, expected.count), what
    assert got.entropy is not None and expected.entropy is not None
    assert same_bits(got.entropy, expected.entropy), what


# Every kernel takes any shape that is small enough to emulate, and all are tested on the same problems.
every_path = pytest.mark.parametrize("path", ["small", "large", "screened"])


@every_path
@pytest.mark.parametrize("seed", range(FIRST, FIRST + PROBLEMS))
def test_random_problem(emulator: Emulator, seed: int, path: str) -> None:
    problem, device, what = draw(seed)
    emulator.configure(seed=seed % 97, **device)
    check(emulator, problem, path, what)


@pytest.mark.parametrize("path", ["large", "screened"])
@pytest.mark.parametrize("seed", range(FIRST, FIRST + PROBLEMS, 4))
def test_random_problem_of_several_tiles(emulator: Emulator, seed: int, path: str) -> None:
    problem, device, what = draw(seed, 140)
    emulator.configure(seed=seed % 97, **device)
    check(emulator, problem, path, what)


@every_path
@pytest.mark.parametrize(("what", "problem"), directed(), ids=lambda x: x if isinstance(x, str) else "")
def test_directed_problem(emulator: Emulator, what: str, problem: Problem, path: str) -> None:
    for multiprocessors in (1, 8):
        emulator.configure(seed=multiprocessors, multiprocessors=multiprocessors)
        check(emulator, problem, path, what)


@pytest.mark.parametrize("multiprocessors", [1, 5, 200])
@pytest.mark.parametrize(("what", "problem"), shared(), ids=lambda x: x if isinstance(x, str) else "")
def test_blocks_that_share_queries(emulator: Emulator, what: str, problem: Problem, multiprocessors: int) -> None:
    tiles = [-1, 0, 3] if problem.k <= 32 and problem.states.dtype == np.float32 else [-1]
    for variant in tiles:
        emulator.configure(seed=multiprocessors, multiprocessors=multiprocessors)
        before = emulator.launches()
        check(emulator, problem, "large", what, variant)
        # Two sorts with their keys, the stages, the search, and a merge where there is something to merge; of several
        # batch entries the values of both sets as well.
        launches = emulator.launches() - before - (2 if problem.states.shape[0] > 1 else 0)
        assert launches in (6, 7) and (multiprocessors < 200 or launches == 7)


@every_path
def test_launches_do_not_grow_with_the_batch(emulator: Emulator, path: str) -> None:
    counts = []
    for batch in (1, 2, 5):
        before = emulator.launches()
        check(emulator, normal(batch, 30, 9, 4, batch=batch), path, f"batch {batch}")
        counts.append(emulator.launches() - before)
    assert counts == {"small": [1, 1, 1], "large": [4, 5, 5], "screened": [6, 7, 7]}[path]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 2, 12, 13, 23, 24, 25, 26, 48, 49, 111])
def test_staged_depths(emulator: Emulator, dim: int, dtype: type) -> None:
    """One chunk and several, of odd and even depth, the last of them narrower, and a tile that is not full."""
    rng = np.random.default_rng(dim)
    problem = normal(dim, 5, dim, 7, dtype, batch=2)
    problem.ref_states = rng.standard_normal((2, 300, dim)).astype(dtype)
    problem.ref_values = rng.standard_normal((2, 300)).astype(dtype)
    for path in ("large", "small"):
        emulator.configure(seed=dim, multiprocessors=1 + dim % 2 * 7)
        check(emulator, problem, path, f"dim {dim}")


def normal(seed: int, n: int, dim: int, k: int, dtype: type = np.float32, batch: int = 1) -> Problem:
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((batch, n, dim)).astype(dtype)
    return Problem(states, rng.standard_normal((batch, n)).astype(dtype), k)


@every_path
@pytest.mark.parametrize("multiprocessors", [1, 8, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n", "dim", "k"),
    [(2, 1, 1), (9, 1024, 5), (129, 7, 128), (150, 17, 12), (110, 26, 33)],
)
def test_shape(emulator: Emulator, n: int, dim: int, k: int, dtype: type, multiprocessors: int, path: str) -> None:
    if path == "screened" and dim > 256:  # it has no room for so many: the choice by shape never names it there
        with pytest.raises(EmulatorError, match="too little shared memory"):
            emulator.knn(normal(n, n, dim, k, dtype), path)
        path = "auto"
    emulator.configure(seed=5, multiprocessors=multiprocessors)
    check(emulator, normal(n, n, dim, k, dtype), path, f"n {n} dim {dim} k {k}")


@every_path
def test_more_than_one_tile_of_references(emulator: Emulator, path: str) -> None:
    rng = np.random.default_rng(3)
    for refs in (255, 256, 257, 511, 1100):
        problem = normal(refs, 9, 5, 12)
        problem.ref_states = rng.standard_normal((1, refs, 5)).astype(np.float32)
        problem.ref_values = rng.standard_normal((1, refs)).astype(np.float32)
        for multiprocessors in (1, 200):
            emulator.configure(seed=refs, multiprocessors=multiprocessors)
            check(emulator, problem, path, f"refs {refs}")


@every_path
def test_a_lone_reference_that_is_the_query_itself_leaves_no_candidate(emulator: Emulator, path: str) -> None:
    problem = normal(0, 1, 3, 1)
    answer = emulator.knn(problem, path)
    assert answer.radius is not None and answer.count is not None and answer.entropy is not None
    assert np.isnan(answer.radius).all() and np.isnan(answer.entropy).all() and (answer.count == -1).all()


@every_path
def test_overflow_is_a_radius_and_a_missing_candidate_is_not(emulator: Emulator, path: str) -> None:
    problem = normal(1, 6, 2, 5)
    problem.states *= np.float32(1e30)
    problem.states[0, 0] = 0
    answer = emulator.knn(problem, path)
    assert answer.radius is not None and np.isposinf(answer.radius).all()
    problem.values[0, 3] = np.nan
    answer = emulator.knn(problem, path)
    assert answer.radius is not None and np.isnan(answer.radius).all()


@every_path
def test_index_out_of_range_means_no_self(emulator: Emulator, path: str) -> None:
    problem = normal(2, 4, 3, 4)
    problem.ref_states, problem.ref_values = problem.states.copy(), problem.values.copy()
    problem.self_index = np.array([[4, 1 << 40, -7, -1]])
    answer = emulator.knn(problem, path)
    problem.self_index = None
    expected = emulator.brute_force(problem)
    assert answer.radius is not None and expected.radius is not None
    assert same_bits(answer.radius, expected.radius)
    assert np.array_equal(answer.count, expected.count)


@every_path
@pytest.mark.parametrize("outputs", ["r", "c", "e", "rc", "re"])
def test_only_what_is_asked_for_is_written(emulator: Emulator, outputs: str, path: str) -> None:
    problem = normal(4, 20, 3, 2)
    everything = emulator.brute_force(problem)
    answer = emulator.knn(problem, path, outputs)
    for letter, got, expected in [
        ("r", answer.radius, everything.radius),
        ("c", answer.count, everything.count),
        ("e", answer.entropy, everything.entropy),
    ]:
        assert (got is not None) == (letter in outputs)
        if got is not None:
            assert np.array_equal(got, expected)


@every_path
@pytest.mark.parametrize("seed", range(12))
def test_the_schedule_does_not_matter(emulator: Emulator, seed: int, path: str) -> None:
    problem = normal(9, 45, 26, 6)
    emulator.configure(seed=seed, multiprocessors=1 + seed % 3 * 15)
    check(emulator, problem, path, f"schedule {seed}")


@every_path
def test_a_launch_that_fails_names_the_kernel_and_the_reason(emulator: Emulator, path: str) -> None:
    emulator.configure(shared_bytes=20 * 1024)
    with pytest.raises(EmulatorError, match=rf"knn_{path}_kernel: (invalid argument|.*too little shared memory)"):
        emulator.knn(normal(0, 20, 500, 1), path)


def test_a_launch_that_failed_leaves_no_error_for_the_next(emulator: Emulator) -> None:
    """CUB takes the thread's last error for its own."""
    emulator.configure(shared_bytes=20 * 1024)
    with pytest.raises(EmulatorError, match="invalid argument"):
        emulator.knn(normal(0, 20, 500, 1), "small")
    emulator.configure()
    check(emulator, normal(0, 20, 5, 1), "large", "after a failure")


@every_path
def test_no_launch_lowers_the_limit_that_another_counts_on(emulator: Emulator, path: str) -> None:
    for dim in (96, 48):  # both of more than 48 KiB, the first of more
        check(emulator, normal(dim, 20, dim, 3), path, f"dim {dim}")


def test_the_small_kernel_is_chosen_where_it_fits(emulator: Emulator) -> None:
    zeros = np.zeros((1, 4096, 1024))
    problem = Problem(zeros, zeros[..., 0], 3)
    assert emulator.choice(problem)[0] == "small"
    emulator.configure(shared_bytes=99 * 1024)  # of compute capability 8.6, 8.9 and 12.0
    assert emulator.choice(problem)[0] != "small"
    assert emulator.choice(Problem(zeros[..., :512], zeros[..., 0], 3))[0] == "small"

    rng = np.random.default_rng(6)
    few = normal(6, 3, 24, 2, np.float64)
    few.ref_states = rng.standard_normal((1, 4096, 24))
    few.ref_values = rng.standard_normal((1, 4096))
    emulator.configure(shared_bytes=60 * 1024)
    check(emulator, few, "auto", "no room for so many values")


def test_the_small_kernel_refuses_what_it_is_not_made_for(emulator: Emulator) -> None:
    problem = normal(0, 2, 1, 1)
    problem.ref_states, problem.ref_values = np.zeros((1, 16385, 1), np.float32), np.zeros((1, 16385), np.float32)
    with pytest.raises(EmulatorError, match="at most 16384"):
        emulator.knn(problem, "small")


def test_the_number_of_references_chooses_the_kernel(emulator: Emulator) -> None:
    rng = np.random.default_rng(8)
    for refs in (4096, 4097):
        problem = normal(refs, 3, 2, 7)
        problem.ref_states = rng.standard_normal((1, refs, 2)).astype(np.float32)
        problem.ref_values = rng.standard_normal((1, refs)).astype(np.float32)
        check(emulator, problem, "auto", f"refs {refs}")


def test_the_search_by_value_skips_tiles(emulator: Emulator) -> None:
    """Where values are far apart and states are close, the gap in value ends the search early."""
    rng = np.random.default_rng(5)
    refs = 16 * 256
    problem = normal(5, 100, 24, 2)
    problem.ref_states = rng.standard_normal((1, refs, 24)).astype(np.float32)
    problem.values = rng.uniform(1000, 1010, (1, 100)).astype(np.float32)

    def work(values: np.ndarray) -> int:
        problem.ref_values = values.astype(np.float32)[None]
        before = emulator.accesses()
        check(emulator, problem, "large", "search by value")
        return emulator.accesses() - before

    # Each block alone, and two that share the queries, each of which sees two tiles at least.
    for multiprocessors, share in ((1, 0.4), (7, 0.5)):
        emulator.configure(multiprocessors=multiprocessors)
        assert work(np.arange(refs)) < share * work(np.full(refs, 1005.0))


@pytest.mark.parametrize(("capability", "kilobytes"), [(80, 163), (86, 99), (90, 227), (100, 227)])
def test_blocks_of_the_screened_kernel_share_a_multiprocessor(
    emulator: Emulator, capability: int, kilobytes: int
) -> None:
    emulator.configure(shared_bytes=kilobytes * 1024)
    for dim, k, dtype in [(17, 12, np.float32), (17, 32, np.float32), (8, 12, np.float32), (32, 1, np.float32)]:
        warps, stages, blocks, size = emulator.screen_division(65536, dim, k, dtype, capability)
        assert warps == 8 and (4 if k < 32 else 3) <= stages <= 6  # red zones make the emulator's blocks larger
        assert blocks == (2 if capability in (80, 90) else 1)
        assert blocks * (size + 1024) <= (kilobytes + 1) * 1024
    # What shares a multiprocessor with no other takes what it has.
    for dim, k, dtype in [(111, 12, np.float32), (17, 128, np.float32), (29, 12, np.float64)]:
        warps, stages, blocks, size = emulator.screen_division(65536, dim, k, dtype, capability)
        assert warps > 0 and 2 <= stages <= 6 and blocks == 1 and size <= kilobytes * 1024


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 12, 32, 33, 128])
def test_lists_of_the_screened_kernel(emulator: Emulator, k: int, dtype: type) -> None:
    """Each length of a list; several keys of one query at a time, equal ones, and queries that want nothing."""
    rng = np.random.default_rng(k)
    refs, dim = 700, 9
    for kind in ("apart", "few queries", "ties", "growing"):
        queries = 3 if kind == "few queries" else 40
        states, ref_states = rng.standard_normal((2, queries, dim)), rng.standard_normal((2, refs, dim))
        values, ref_values = rng.standard_normal((2, queries)), rng.standard_normal((2, refs))
        if kind == "ties":
            states, ref_states, values, ref_values = (np.round(a) for a in (states, ref_states, values, ref_values))
        if kind == "growing":  # the farther in value, the nearer: each tile brings a list's worth of keys
            values, ref_values = 1e-3 * values, 1e-3 * np.linspace(0, 1, refs)[None].repeat(2, 0)
            ref_states *= np.linspace(3, 0.5, refs)[:, None]
        states[0, 1, 2], values[1, 0], ref_states[0, 7, 0], ref_values[1, 9] = np.nan, np.inf, -np.inf, np.nan
        parts = [a.astype(dtype) for a in (states, values, ref_states, ref_values)]
        emulator.configure(seed=k)
        check(emulator, Problem(parts[0], parts[1], k, parts[2], parts[3]), "screened", f"{kind}, k {k}")


VARIANTS = {"small": 16, "large": 16, "screened": 9}


@pytest.mark.parametrize(("path", "variant"), [(path, v) for path, count in VARIANTS.items() for v in range(count)])
def test_every_variant_that_the_laboratory_measures(tuning_library: Emulator, path: str, variant: int) -> None:
    assert tuning_library.variants(path) == VARIANTS[path]
    for seed in range(3 * variant, 3 * variant + 3):
        problem, device, what = draw(seed)
        problem.k = min(problem.k, 32)  # longer lists, and double precision, have the rules' variants alone
        for name in ("states", "values", "ref_states", "ref_values"):
            array = getattr(problem, name)
            setattr(problem, name, None if array is None else array.astype(np.float32))
        tuning_library.configure(seed=seed % 97, multiprocessors=device["multiprocessors"])
        check(tuning_library, problem, path, f"variant {variant} of {path}, {what}", variant)
    with pytest.raises(EmulatorError, match="no such variant"):
        tuning_library.knn(problem, path, variant=VARIANTS[path])

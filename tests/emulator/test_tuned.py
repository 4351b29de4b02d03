"""From the laboratory's records to the kernel and tile that a call gets: tune.py's header, compiled and asked."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated import Emulator, Problem, same_bits
from emulator_build import ROOT, build

sys.path.insert(0, str(ROOT / "benchmarks" / "gpu"))
import tune


def record(queries: int, n: int, dim: int, kernel: str, variant: str, ms: float, **other: Any) -> dict[str, Any]:
    common = {"implementation": "qcse", "device": "made up", "timing": "graph", "exact": True}
    shape = {"batch": 1, "queries": queries, "n": n, "dim": dim, "capability": 0}  # the emulated GPU's
    return {**common, **shape, "kernel": kernel, "variant": variant, "median_ms": ms, **other}


def document(records: list[dict[str, Any]]) -> dict[str, Any]:
    """As `make gpu-run` writes it."""
    return {"machine": {"commit": "0"}, "facts": {}, "records": records}


RECORDS = [
    record(64, 64, 8, "small", "16/1/1/1", 3.0),
    record(64, 64, 8, "small", "8/2/2/2", 2.0),
    record(64, 64, 8, "small", "8/2/1/1", 1.0, exact=False),  # the fastest, and wrong
    record(64, 64, 8, "large", "4/4/4/4", 1.5, timing="eager"),  # not timed in earnest
    record(256, 256, 8, "screened", "4/3/64/32", 1.0),
    record(256, 256, 8, "small", "16/1/4/4", 2.0),
    record(64, 64, 64, "small", "8/2/4/1", 0.99),
    record(64, 64, 64, "small", "16/1/4/1", 1.0),  # within 2 % of the fastest: the rules' own is kept
]


def test_the_fastest_exact_variant_is_taken_and_the_rules_own_where_nothing_is_gained() -> None:
    chosen = tune.fastest(tune.usable(document(RECORDS)))
    assert {shape[1:]: (r["kernel"], r["variant"]) for shape, r in chosen.items()} == {
        (64, 64, 8): ("small", "8/2/2/2"),
        (64, 64, 64): ("small", "16/1/4/1"),
        (256, 256, 8): ("screened", "4/3/64/32"),
    }


def test_the_rules_variants_are_those_of_the_kernels() -> None:
    text = (ROOT / "csrc" / "knn" / "cuda" / "variants.h").read_text()
    for name, kernel in (("EXACT", "small"), ("EXACT", "large"), ("SCREENED", "screened")):
        line = re.search(rf"#define QCSE_RULED_{name}\(X\) (.*)", text)
        assert line is not None
        assert {v.replace(", ", "/") for v in re.findall(r"X\((.+?)\)", line[1])} == tune.RULED[kernel]


def test_the_committed_header_is_what_the_committed_results_say(tmp_path: Path) -> None:
    results = sorted((ROOT / "benchmarks" / "results").glob("tuning_*.json"))
    header = tmp_path / "tuned.h"
    assert tune.main([*map(str, results), "--header", str(header)]) == 0
    assert header.read_text() == (ROOT / "csrc" / "knn" / "cuda" / "tuned.h").read_text()


def test_a_file_without_measurements_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "search.json"
    path.write_text(json.dumps(document([record(64, 64, 8, "small", "rule", 1.0)])))
    with pytest.raises(SystemExit):
        tune.main([str(path), "--header", str(tmp_path / "tuned.h")])
    assert "holds no exact record of a tile variant" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    """The kernels of an ordinary build with a header made from RECORDS."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    (folder / "tuning.json").write_text(json.dumps(document(RECORDS)))
    header = folder / "csrc" / "knn" / "cuda" / "tuned.h"
    assert tune.main([str(folder / "tuning.json"), "--header", str(header)]) == 0
    return Emulator(build(folder / "csrc"))


@pytest.mark.parametrize(
    ("queries", "refs", "dim", "k", "dtype", "expected"),
    [
        (64, 64, 8, 12, np.float32, ("small", (8, 2, 2, 2))),
        (80, 80, 9, 12, np.float32, ("small", (8, 2, 2, 2))),  # the nearest
        (256, 256, 8, 12, np.float32, ("screened", (4, 3, 64, 32))),
        (64, 64, 64, 12, np.float32, ("small", (16, 1, 4, 1))),
        (64, 64, 8, 33, np.float32, ("small", None)),  # longer lists, double precision and far shapes: the rules
        (64, 64, 8, 12, np.float64, ("small", None)),
        (64, 5000, 8, 12, np.float32, ("large", None)),
    ],
)
def test_a_call_gets_what_was_fastest_at_the_nearest_shape(
    tuned: Emulator, queries: int, refs: int, dim: int, k: int, dtype: type, expected: tuple[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    problem = Problem(
        rng.standard_normal((1, queries, dim)).astype(dtype), rng.standard_normal((1, queries)).astype(dtype), k
    )
    if refs != queries:
        problem.ref_states = rng.standard_normal((1, refs, dim)).astype(dtype)
        problem.ref_values = rng.standard_normal((1, refs)).astype(dtype)
    tuned.configure(multiprocessors=8)
    assert tuned.choice(problem) == expected
    got, wanted = tuned.knn(problem), tuned.brute_force(problem)
    assert got.radius is not None and wanted.radius is not None
    assert same_bits(got.radius, wanted.radius) and np.array_equal(got.count, wanted.count)


def test_a_variant_that_does_not_fit_is_passed_over(tuned: Emulator) -> None:
    rng = np.random.default_rng(0)
    problem = Problem(
        rng.standard_normal((1, 256, 8)).astype(np.float32), rng.standard_normal((1, 256)).astype(np.float32), 12
    )
    tuned.configure(multiprocessors=8, shared_bytes=8 * 1024)
    assert tuned.choice(problem)[0] != "screened"

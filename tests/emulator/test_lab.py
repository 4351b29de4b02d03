"""The laboratory (benchmarks/gpu/lab.cu) on the emulated GPU, so that its first run on a real one is not its first."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emulator_build import build_lab

import qcse_ext


@pytest.fixture(scope="module")
def lab() -> Path:
    return build_lab()


def run(lab: Path, *words: str) -> list[dict[str, Any]]:
    done = subprocess.run([str(lab), *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_random_problems_on_every_kernel(lab: Path) -> None:
    (told,) = run(lab, "check", "--problems", "8", "--largest", "60")
    # Three kernels each, and for lists of up to 32 in float32 one of their variants as well.
    assert told["wrong"] == 0 and 24 < told["compared"] <= 48 and told["judge"] == "the CPU operator"


def test_search_measures_every_kernel_warm_and_cold(lab: Path) -> None:
    records = run(lab, "search", "--sizes", "90x5", "2x20x70x9", "--data", "normal", "--k", "3")
    cases = [(r["n"], r["queries"], r["kernel"], r["cache"]) for r in records]
    expected = [(90, 90, kernel, cache) for kernel in ("large", "screened", "small") for cache in ("cold", "warm")]
    # Separate references are held once, so they are warm.
    expected += [(70, 20, kernel, "warm") for kernel in ("large", "screened", "small")]
    assert sorted(cases) == sorted(expected)
    for record in records:
        assert record["exact"] and record["implementation"] == "qcse" and record["timing"] == "graph"
        assert record["median_ms"] > 0 and record["all_pairs_exact_ms"] > 0 and record["k"] == 3
        assert record["chosen"] == (record["kernel"] == "small")


def test_tuning_measures_every_variant_once(lab: Path) -> None:
    records = run(lab, "tune", "--sizes", "40x9", "--k", "3")
    measured = {(r["kernel"], r["variant"]) for r in records}
    assert len(measured) == len(records) == 16 + 16 + 9
    assert all(r["exact"] and r["cache"] == "warm" and r["data"] == "trajectories" for r in records)


def test_facts(lab: Path) -> None:
    (facts,) = run(lab, "facts")
    assert facts["gpu"] == "emulated" and facts["copied_gb_per_s"] > 0 and facts["half_product_flop_per_s"] > 0


@pytest.mark.parametrize("data", ["normal", "trajectories"])
def test_its_judge_is_the_operator(lab: Path, tmp_path: Path, data: str) -> None:
    run(lab, "dump", "--folder", str(tmp_path), "--sizes", "700x11", "--data", data, "--k", "5")
    states = torch.from_numpy(np.fromfile(tmp_path / "states.f32", np.float32).reshape(700, 11))
    values = torch.from_numpy(np.fromfile(tmp_path / "values.f32", np.float32))
    radius, count = qcse_ext.knn(states, values, 5)
    assert np.array_equal(np.fromfile(tmp_path / "radius.f32", np.float32), radius.numpy())
    assert np.array_equal(np.fromfile(tmp_path / "count.i64", np.int64), count.numpy())
    assert abs(float(values.mean())) < 0.2 and 0.8 < float(values.std()) < 1.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a command"),
        (["bogus"], "got the command 'bogus'"),
        (["search", "--sizes", "4x"], "--sizes: got '4x', expected POINTSxDIMENSIONS"),
        (["search", "--sizes", "90x1025"], "--sizes: got '90x1025'"),
        (["search", "--data", "real"], "--data: got 'real', expected normal or trajectories"),
        (["tune", "--k", "129"], "--k: got '129', expected a whole number from 1 to 128"),
        (["check", "--problems", "few"], "--problems: got 'few'"),
        (["check", "--device", "tpu"], "--device: got 'tpu', expected auto or cuda"),
        (["check", "--seed"], "got '--seed' without a value"),
        (["check", "--what", "1"], "got '--what', expected --sizes"),
    ],
)
def test_bad_words_are_refused(lab: Path, words: list[str], message: str) -> None:
    done = subprocess.run([str(lab), *words], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and message in done.stdout + done.stderr

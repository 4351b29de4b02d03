"""The benchmark's own claims: exactness, memory and the hot loop's share of the peak."""

import json
import pathlib
import sys

import pytest

from qcse_ext import _C, bench, build_info


def test_records_say_who_is_exact(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "records.json"
    arguments = ["--n", "600", "--k", "5", "--runs", "1", "--json", str(path)]
    assert bench.main([*arguments, "--implementations", "qcse", "qcse-all", "torch-cdist"]) == 0
    records = {r["implementation"]: r for r in json.loads(path.read_text())["records"]}
    assert set(records) == {"qcse", "qcse-all", "torch-cdist"}
    assert records["qcse"]["exact"] and records["qcse-all"]["exact"]
    assert 0 < records["torch-cdist"]["max_rel_error"] < 1e-3
    assert all(r["median_ms"] > 0 for r in records.values())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_peak_memory_sees_what_comes_and_goes() -> None:
    memory = bench._Memory()
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])
    del block
    rise = memory.rise()
    assert rise is not None and 190 < rise < 260


def test_the_hot_loop_is_below_the_peak() -> None:
    name = build_info()["cpu_instruction_set"]
    for float64 in (False, True):
        tile, peak = _C.hot_loop_speed(17, float64)
        assert 0.05 * peak < tile < 1.05 * peak, name
    with pytest.raises(ValueError, match="dim must be from 1 to 1024, got 0"):
        _C.hot_loop_speed(0)

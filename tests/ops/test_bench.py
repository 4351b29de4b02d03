"""The benchmark's own claims: exactness, what is timed, memory and the hot loop's share of the peak."""

import contextlib
import gc
import json
import math
import pathlib
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from oracle import Problem, oracle_knn
from torch import Tensor

import qcse_ext
from qcse_ext import _C, bench, build_info
from qcse_ext.bench import Answer, Implementation, Judge, Record, data, gpu, implementations, machine, output, timers
from qcse_ext.bench.records import NotCaptured, Solver, plain


def points(n: int, dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator), torch.randn(n, generator=generator)


def test_records_say_who_is_exact(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "records.json"
    arguments = ["--n", "600", "--k", "5", "--runs", "1", "--json", str(path)]
    assert bench.main([*arguments, "--implementations", "qcse", "qcse-all", "torch-cdist"]) == 0
    records = {r["implementation"]: r for r in json.loads(path.read_text())["records"]}
    assert set(records) == {"qcse", "qcse-all", "torch-cdist"}
    assert records["qcse"]["exact"] and records["qcse-all"]["exact"]
    assert 0 < records["torch-cdist"]["max_rel_error"] < 1e-3
    assert all(r["median_ms"] > 0 for r in records.values())
    assert all((r["device"], r["timing"], r["cache"]) == ("cpu", "eager", "warm") for r in records.values())


# --- The judge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 512, 700])
@pytest.mark.parametrize("metric", ["joint", "states"])
def test_the_judge_agrees_with_the_scalar_twin(n: int, metric: str) -> None:
    states, values = points(n)
    judge = Judge(states, values, 3)
    assert len(judge.rows) == min(n, 512) and len(judge.rows.unique()) == len(judge.rows)
    assert torch.equal(judge.rows, Judge(states, values, 3).rows)
    used = values if metric == "joint" else torch.zeros_like(values)
    expected_radius, expected_count = oracle_knn(Problem(states, used, 3))
    radius, count = judge.exact(metric)
    assert torch.equal(radius, expected_radius[judge.rows])
    assert torch.equal(count, expected_count[judge.rows])


def test_the_judge_notices_a_bit_and_a_count() -> None:
    states, values = points(700)
    judge = Judge(states, values, 3)
    radius, count = qcse_ext.knn(states, values, 3)
    assert judge.compare(Answer(radius, count), "joint") == (True, 0.0)
    row = judge.rows[100]
    count[row] += 1
    assert judge.compare(Answer(radius, count), "joint") == (False, 0.0)
    assert judge.compare(Answer(radius), "joint") == (True, 0.0)  # of somebody who gives no count
    radius[row] = torch.nextafter(radius[row], torch.tensor(math.inf))
    exact, error = judge.compare(Answer(radius), "joint")
    assert not exact and 0 < error < 1e-6
    radius[row] = math.nan
    exact, error = judge.compare(Answer(radius), "joint")
    assert not exact and math.isnan(error)


def test_the_judge_looks_at_all_pairs_and_restores_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    monkeypatch.setattr(_C, "set_search_path", paths.append)
    judge = Judge(*points(30), 3)
    judge.exact("joint")
    assert paths == ["all", "auto"]
    judge.k = 30  # one more than there are candidates
    with pytest.raises(RuntimeError):
        judge.exact("states")
    assert paths == ["all", "auto"] * 2


def planted(states: Tensor, values: Tensor, k: int, of: str) -> Solver:
    def run() -> Answer:
        radius, count = qcse_ext.knn(states, values, k)
        row = len(values) // 2
        if of == "radius":
            radius[row] = torch.nextafter(radius[row], torch.tensor(math.inf))
        else:
            count[row] -= 1
        return Answer(radius, count)

    return run


@pytest.mark.parametrize("fault", ["radius", "count"])
def test_a_wrong_answer_of_ours_is_told(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Implementation(lambda s, v, k: planted(s, v, k, fault), "joint", ("cpu",), 2)
    monkeypatch.setitem(bench.IMPLEMENTATIONS, "qcse", wrong)
    arguments = ["--sizes", "300x5", "--runs", "1", "--lines", "--implementations", "qcse", "qcse-boxes"]
    assert bench.main(arguments) == 1
    records = {r["implementation"]: r for r in lines(capsys)}
    assert not records["qcse"]["exact"] and records["qcse-boxes"]["exact"]
    assert (records["qcse"]["max_rel_error"] == 0) == (fault == "count")


def test_recall() -> None:
    n, k = 700, 5
    states, values = points(n)
    states[600:] = states[:100]  # duplicates: a row's twin is a neighbour like any other
    judge = Judge(states, values, k)
    distance = torch.cdist(states.double(), states.double(), compute_mode="donot_use_mm_for_euclid_dist")
    order = distance.argsort(dim=1)
    assert judge.recall(order[:, : k + 1]) == 1.0
    assert judge.recall(order[:, : k + 1].flip(1).to(torch.int32).numpy()) == 1.0
    others = torch.stack([row[row != i] for i, row in enumerate(order)])
    assert judge.recall(others[:, :k]) == judge.recall(others[:, : k + 1]) == 1.0  # without the row itself
    missing = order[:, : k + 1].clone()
    missing[:, 3] = order[:, 300]
    assert judge.recall(missing) == pytest.approx((k - 1) / k)
    repeated = order[:, : k + 1].clone()
    repeated[:, 4:] = repeated[:, 3:4]
    assert judge.recall(repeated) == pytest.approx((k - 2) / k)
    itself = torch.arange(n)[:, None].expand(n, k + 1)
    assert judge.recall(itself) == 0.0
    assert judge.recall(torch.full((n, k + 1), -1)) == 0.0 and judge.recall(torch.full((n, k + 1), n)) == 0.0


# --- The command line -------------------------------------------------------------------------------------------------


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_lines_hold_records_that_say_of_which_commit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("QCSE_COMMIT", "abc-dirty")
    path = tmp_path / "records.json"
    arguments = ["--sizes", "100x3", "60x17", "--runs", "2", "--lines", "--json", str(path)]
    assert bench.main([*arguments, "--implementations", "qcse", "torch-naive"]) == 0
    records = lines(capsys)
    shapes = [(r["n"], r["dim"], r["implementation"]) for r in records]
    assert shapes == [(n, dim, name) for n, dim in [(100, 3), (60, 17)] for name in ["qcse", "torch-naive"]]
    assert all(set(r) == set(Record.__dataclass_fields__) for r in records)
    assert {(r["timing"], r["cache"], r["commit"], r["recall"]) for r in records} == {
        ("eager", "warm", "abc-dirty", None)
    }
    assert json.loads(path.read_text())["records"] == records
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_there_before_the_last_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "records.json"
    load = data.load

    def interrupted(kind: str, rows: int, dim: int | None = None) -> Any:
        if rows == 60:
            raise KeyboardInterrupt
        return load(kind, rows, dim)

    monkeypatch.setattr(data, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--sizes", "50x3", "60x3", "--runs", "1", "--json", str(path), "--implementations", "qcse"])
    assert [r["n"] for r in json.loads(path.read_text())["records"]] == [50]


def test_a_line_is_json_whatever_the_error() -> None:
    (record,) = bench.measure("normal", *points(50), 3, ["qcse"], runs=1)
    record.max_rel_error = math.nan
    assert json.loads(json.dumps(plain(record), allow_nan=False))["max_rel_error"] is None
    assert plain(record) | {"max_rel_error": 0} == asdict(record) | {"max_rel_error": 0}


def test_commit_of_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delenv("QCSE_COMMIT", raising=False)
    file = tmp_path / "bench.py"
    file.write_text("1\n")
    assert machine.commit(file) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert machine.commit(file) is None  # a file that merely lies in somebody's checkout
    subprocess.run([*git, "add", "bench.py"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--no-gpg-sign", "-m", "a"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert machine.commit(file) == head
    file.write_text("2\n")
    assert machine.commit(file) == head + "-dirty"
    monkeypatch.setenv("QCSE_COMMIT", "abc")
    assert machine.commit(file) == "abc"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timing", "eager", "graph"], "--timing graph: CUDA graphs need --device cuda"),
        (["--cache", "cold"], "--cache cold: needs --device cuda, as nothing here empties a CPU's caches"),
        (["--sizes", "4096"], "got '4096', expected points and dimensions, as in 4096x17"),
        (["--sizes", "0x3"], "got '0x3'"),
        (["--data", "hopper", "--sizes", "4096x11"], "--sizes: is of normal data"),
    ],
)
def test_what_does_not_go_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert message in capsys.readouterr().err


def test_budget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sizes", "50x3", "60x3", "--implementations", "qcse", "torch-naive", "--lines", "--runs", "3"]
    assert bench.main([*arguments, "--budget", "0"]) == 0
    told = capsys.readouterr().out
    assert "left out, the budget of 0 s is spent: normal 50 x 3" in told and "60 x 3" in told and "{" not in told

    clock = iter(range(1000))  # each look takes a second: begin, first problem, its dtype, qcse, torch-naive, runs
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    assert bench.main([*arguments, "--budget", "4"]) == 0
    told = capsys.readouterr().out
    (record,) = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert (record["implementation"], record["n"], record["runs"]) == ("qcse", 50, 1)
    assert "torch-naive: no time is left for it" in told and "is spent: normal 60 x 3" in told


def test_a_failing_implementation_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(states: Tensor, values: Tensor, k: int) -> Solver:
        def run() -> Answer:
            raise ZeroDivisionError("of another\npackage")

        return run

    monkeypatch.setitem(bench.IMPLEMENTATIONS, "keops", Implementation(build, "joint", ("cpu",), 2))
    arguments = ["--sizes", "50x3", "--runs", "1", "--lines", "--implementations"]
    assert bench.main([*arguments, "keops", "qcse"]) == 0
    told = capsys.readouterr().out
    assert "  keops: ZeroDivisionError: of another\n" in told and '"implementation": "qcse"' in told
    monkeypatch.setitem(bench.IMPLEMENTATIONS, "qcse", Implementation(build, "joint", ("cpu",), 2))
    assert bench.main([*arguments, "qcse", "torch-naive"]) == 1


# --- A GPU, played ----------------------------------------------------------------------------------------------------


class PlayedGraph:
    def __init__(self, gpu: "PlayedGpu", work: Callable[[], list[Answer]]) -> None:
        self.gpu, self.work, self.result, self.closed = gpu, work, work(), False
        for tensor in self.tensors(self.result):
            tensor.zero_()  # a capture computes nothing

    @staticmethod
    def tensors(answers: list[Answer]) -> Iterator[Tensor]:
        return (x for answer in answers for x in answer if x is not None)

    def replay(self) -> None:
        assert not self.closed
        self.gpu.log.append("replay")
        if self.gpu.replays_work:
            for to, fresh in zip(self.tensors(self.result), self.tensors(self.work())):
                to.copy_(fresh)

    def close(self) -> None:
        self.closed = True


class PlayedGpu:
    """Runs on the CPU what it is given, and says that it took so long."""

    name = "Played GPU"

    def __init__(self, call_ms: float = 0.1) -> None:
        self.call_ms = call_ms
        self.replays_work = True
        self.log: list[str] = []
        self.graphs: list[PlayedGraph] = []
        self.calls: list[int] = []

    def first(self, work: Solver) -> tuple[Answer, float]:
        return work(), 1.5

    def elapsed(self, work: Callable[[], object]) -> float:
        self.log.append("elapsed")
        work()
        return self.call_ms

    def flush(self) -> None:
        self.log.append("flush")

    def warm_up(self, work: Callable[[], object]) -> None:
        self.log.append("warm-up")
        work()

    def capture(self, work: Callable[[], Any]) -> PlayedGraph:
        assert self.log[-1] == "warm-up"
        graph = PlayedGraph(self, work)
        self.calls.append(len(graph.result))
        self.graphs.append(graph)
        return graph


MODES = [("eager", "warm"), ("eager", "cold"), ("graph", "warm"), ("graph", "cold")]


def played(gpu: PlayedGpu, names: list[str], n: int = 300, **options: Any) -> tuple[list[Record], list[str]]:
    told: list[str] = []
    records = list(bench.measure("normal", *points(n), 5, names, 3, tell=told.append, gpu=gpu, **options))
    return records, told


def test_every_mode_has_its_record() -> None:
    gpu = PlayedGpu()
    records, told = played(gpu, ["qcse", "torch-cdist"], modes=MODES, commit="abc")
    assert not told
    assert [(r.timing, r.cache, r.implementation) for r in records] == [
        (*mode, name) for mode in MODES for name in ("qcse", "torch-cdist")
    ]
    for record in records:
        assert (record.device, record.clock, record.commit, record.peak_mb) == ("Played GPU", "events", "abc", 1.5)
        assert record.median_ms == pytest.approx(0.1 if record.timing == "eager" else 0.1 / 20)
        assert record.exact == (record.implementation == "qcse") and record.max_rel_error < 1e-3
    assert gpu.calls == [20] * 4 and all(graph.closed for graph in gpu.graphs)
    table = output.table(records)
    assert all(f"| {timing}, {cache} |" in table for timing, cache in MODES)
    before_timing = [a for a, b in zip(gpu.log, gpu.log[1:]) if b == "elapsed"]
    assert before_timing.count("flush") == gpu.log.count("flush") == 2 * 2 * 3


def test_only_graphs_and_only_cold() -> None:
    gpu = PlayedGpu()
    played(gpu, ["qcse"], modes=[("graph", "warm")])
    assert "flush" not in gpu.log
    records, _ = played(gpu, ["qcse"], modes=[("graph", "cold")])
    assert [(r.timing, r.cache, r.exact) for r in records] == [("graph", "cold", True)]


@pytest.mark.parametrize(("call_ms", "calls"), [(0.001, 20), (1.0, 20), (3.0, 6), (15.0, 1), (50.0, 1)])
def test_slow_calls_are_fewer(call_ms: float, calls: int) -> None:
    gpu = PlayedGpu(call_ms)
    played(gpu, ["qcse"], modes=[("graph", "warm")])
    assert gpu.calls == [calls]


def test_cold_calls_have_inputs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[tuple[int, int]] = []

    def build(states: Tensor, values: Tensor, k: int) -> Solver:
        def run() -> Answer:
            inputs.append((states.data_ptr(), values.data_ptr()))
            return Answer(*qcse_ext.knn(states, values, k))

        return run

    monkeypatch.setitem(bench.IMPLEMENTATIONS, "qcse", Implementation(build, "joint", ("cuda",), 2))
    played(PlayedGpu(), ["qcse"], modes=[("graph", "warm")])
    assert len(set(inputs)) == 1
    inputs.clear()
    records, _ = played(PlayedGpu(), ["qcse"], modes=[("graph", "cold")])
    assert records[0].exact
    assert len(set(inputs)) == len({a for a, _ in inputs}) == 21
    inputs.clear()
    states, values = points(300)
    monkeypatch.setattr(timers, "COPIES", 3 * (states.nbytes + values.nbytes) + 1)
    gpu = PlayedGpu()
    played(gpu, ["qcse"], modes=[("graph", "cold")])
    assert gpu.calls == [3]


def test_a_graph_that_computes_nothing_is_not_exact() -> None:
    gpu = PlayedGpu()
    gpu.replays_work = False
    records, _ = played(gpu, ["qcse"], modes=[("graph", "warm")])
    assert not records[0].exact and math.isnan(records[0].max_rel_error)


def test_one_wrong_call_of_a_graph_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def build(states: Tensor, values: Tensor, k: int) -> Solver:
        nonlocal made
        made += 1
        return planted(states, values, k, "count") if made == 8 else lambda: Answer(*qcse_ext.knn(states, values, k))

    monkeypatch.setitem(bench.IMPLEMENTATIONS, "qcse", Implementation(build, "joint", ("cuda",), 2))
    records, _ = played(PlayedGpu(), ["qcse"], modes=[("graph", "cold")])
    assert not records[0].exact and records[0].max_rel_error == 0


def test_recall_comes_from_the_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(states: Tensor, values: Tensor, k: int) -> Solver:
        def run() -> Answer:
            squared, indices = (torch.cdist(states, states) ** 2).topk(k + 1, largest=False)
            indices[:, 2] = 0  # one neighbour is missed, but for those of which row 0 is one
            return Answer(squared.amax(-1).sqrt(), indices=indices)

        return run

    monkeypatch.setitem(bench.IMPLEMENTATIONS, "flashlib", Implementation(build, "states", ("cuda",), 2))
    records, _ = played(PlayedGpu(), ["flashlib"], modes=MODES)
    assert len(records) == 4
    for record in records:
        assert record.metric == "states" and record.max_rel_error < 1e-3
        assert record.recall is not None and 0.8 <= record.recall < 0.85


def test_flashlib_is_asked_for_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_knn(x: Tensor, c: Tensor, k: int) -> tuple[Tensor, Tensor]:
        squared, indices = ((x[:, None] - c) ** 2).sum(-1).topk(k, largest=False)
        return squared.roll(1, dims=-1), indices.roll(1, dims=-1).to(torch.int32)  # its order is not promised

    monkeypatch.setattr(implementations, "module", lambda name, package: types.SimpleNamespace(flash_knn=flash_knn))
    records, told = played(PlayedGpu(), ["flashlib"], modes=MODES)
    assert not told and [(r.metric, r.recall) for r in records] == [("states", 1.0)] * 4
    assert all(r.max_rel_error < 1e-5 for r in records)


def test_what_cannot_be_captured_is_left_out_of_graphs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(states: Tensor, values: Tensor, k: int) -> Solver:
        return lambda: Answer(*qcse_ext.knn(states, values, k))

    monkeypatch.setitem(bench.IMPLEMENTATIONS, "keops", Implementation(build, "joint", ("cuda",), 2, capturable=False))

    class Refusing(PlayedGpu):
        def capture(self, work: Callable[[], Any]) -> PlayedGraph:
            raise NotCaptured("operation not permitted")

    records, told = played(PlayedGpu(), ["keops", "qcse"], modes=MODES)
    assert [r.implementation for r in records if r.timing == "graph"] == ["qcse", "qcse"]
    assert [r.implementation for r in records if r.timing == "eager"] == ["keops", "qcse"] * 2
    assert len(told) == 1 and told[0].startswith("  keops, graph, warm: can't be captured in a CUDA graph: ")
    failures: list[str] = []
    records, told = played(Refusing(), ["torch-cdist", "qcse"], modes=MODES, failures=failures)
    assert {r.timing for r in records} == {"eager"} and len(records) == 4
    assert [text.split(":")[0] for text in told] == ["  torch-cdist, graph, warm", "  qcse, graph, warm"]
    assert failures == ["qcse, graph, warm: can't be captured in a CUDA graph: operation not permitted"]


def test_forced_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["qcse-small", "qcse-large", "qcse-screened"]
    if not build_info()["cuda"]:
        records, told = played(PlayedGpu(), names, modes=MODES)
        assert not records and told == [f"  {n}, eager, warm: this build holds no CUDA kernels" for n in names]
    chosen: list[str] = []
    monkeypatch.setattr(_C, "set_cuda_path", chosen.append, raising=False)
    records, told = played(PlayedGpu(), names, modes=[("eager", "warm")])
    assert [r.implementation for r in records] == names and all(r.exact for r in records) and not told
    assert set(chosen[::2]) == {"small", "large", "screened"} and set(chosen[1::2]) == {"auto"}
    _, told = played(PlayedGpu(), ["qcse-small"], n=4097, modes=[("eager", "warm")])
    assert told == ["  qcse-small, eager, warm: timed up to 4096 points"]


@pytest.mark.parametrize("where", ["work", "end", "both"])
def test_a_failed_capture_leaves_torch_usable(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []

    class Graph:
        def reset(self) -> None:
            log.append("reset")

    @contextlib.contextmanager
    def capturing(graph: Graph, pool: Any, stream: Any) -> Iterator[None]:
        assert not gc.isenabled()
        yield
        if where != "work":
            raise RuntimeError("capture invalidated\nand more")

    def work() -> None:
        if where != "end":
            raise ValueError("in the call")

    zeros = torch.zeros
    for name, value in {
        "CUDAGraph": Graph,
        "graph": capturing,
        "graph_pool_handle": lambda: (0, 7),
        "current_stream": lambda: "the stream of before",
        "current_device": lambda: 0,
        "Stream": lambda: "another stream",
        "set_stream": lambda stream: log.append(("current", stream)),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    for name in ("end", "release"):
        called = {"end": "_cuda_endAllocateToPool", "release": "_cuda_releasePool"}[name]
        monkeypatch.setattr(torch._C, called, lambda device, pool, name=name: log.append((name, pool)), raising=False)
    cuda = object.__new__(gpu.Cuda)
    cuda._side = "the side stream"  # type: ignore[assignment]
    with pytest.raises(NotCaptured) as caught:
        cuda.capture(work)
    assert str(caught.value) == ("RuntimeError: capture invalidated" if where == "end" else "ValueError: in the call")
    assert gc.isenabled()
    ended = [("current", "the stream of before"), ("end", (0, 7)), ("release", (0, 7))]
    assert log == ([] if where == "work" else ended) + ["reset"]
    assert (cuda._side == "the side stream") == (where == "work")


# --- Memory and the hot loop ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_peak_memory_sees_what_comes_and_goes() -> None:
    memory = timers.Memory()
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

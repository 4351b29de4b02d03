"""What a sweep's processes share: threads, GPUs, time; and the options that they vary."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support import qcse_command, quick

from qcse.cli.train import configuration
from qcse.config import flat
from qcse.errors import ConfigError, QcseError
from qcse.runs import resources
from qcse.runs.estimate import kind_of, measure_all
from qcse.runs.grid import combinations, from_table, from_words, label_of, words_of
from qcse.runs.plan import in_words
from qcse.runs.resources import Job, Places, Queue, Resources, seconds_for


def job(name: str, threads: int = 1, gpu: bool = False, source: str | None = None) -> Job:
    return Job(Path(name), (), 0, 10, threads, gpu, None if source is None else Path(source))


def started(queue: Queue) -> list[str]:
    found = []
    while (one := queue.start()) is not None:
        found.append(one.out.name)
    return found


def test_there_are_never_more_threads_than_cores() -> None:
    queue = Queue([job("a", 2), job("b", 3), job("c", 1), job("d", 9)], Resources(workers=9, cores=4))
    assert started(queue) == ["a", "c"]  # b does not fit beside a; c does
    queue.finish(job("a", 2))
    assert started(queue) == ["b"]
    queue.finish(job("b", 3))
    assert started(queue) == []
    queue.finish(job("c"))
    assert started(queue) == ["d"], "what asks for more than there is gets it alone"
    assert queue.places.environment(job("d", 9))["OMP_NUM_THREADS"] == "9"
    assert Resources(workers=4, cores=9).threads_each(3) == 3 and Resources(4, 9).threads_each(100) == 2
    assert Resources(workers=64, cores=2).threads_each(100) == 1


def test_runs_share_gpus_and_the_rest_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc,3")
    available = resources.resources(None, 8, 2, "auto")
    assert (available.gpus, available.workers) == (("GPU-abc", "3"), 4)
    jobs = [job(name, gpu=True) for name in "abcde"]
    places = Places(resources.resources(9, 8, 2, "cuda"))
    assert [places.take(one) for one in jobs] == [True, True, True, True, False]
    seen = [places.environment(one)["CUDA_VISIBLE_DEVICES"] for one in jobs[:4]]
    assert seen == ["GPU-abc", "3", "GPU-abc", "3"]
    assert places.take(job("on the CPU")) and "CUDA_VISIBLE_DEVICES" not in places.environment(job("on the CPU"))
    places.give_back(jobs[1])
    assert places.take(jobs[4]) and places.environment(jobs[4])["CUDA_VISIBLE_DEVICES"] == "3"
    assert resources.resources(None, 8, 1, "cpu") == Resources(4, 8) == resources.resources(None, 8, 1, "cuda:1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert resources.resources(None, 1, 1, "auto") == Resources(2, 1, ("0", "1"))


def test_a_run_waits_for_its_source_and_the_time_is_known() -> None:
    jobs = [job("pre"), job("a", source="pre"), job("b", source="pre"), job("c", source="trained before")]
    queue = Queue(jobs, Resources(workers=3, cores=3))
    assert started(queue) == ["pre", "c"]
    queue.finish(jobs[0])
    assert started(queue) == ["a", "b"] and queue.start() is None
    seconds = {Path("pre"): 10.0, Path("a"): 3.0, Path("b"): 4.0, Path("c"): 1.0}
    assert seconds_for(jobs, Resources(3, 3), seconds) == 14.0
    assert seconds_for(jobs, Resources(1, 3), seconds) == 18.0
    assert [in_words(t) for t in (4, 89, 100, 5400, 90_000, 3e5)] == [
        "4 s", "89 s", "2 min", "1 h 30 min", "1 d 1 h", "3 d 11 h"]  # fmt: skip


def tasks(process: int) -> dict[int, int]:
    """Thread -> ticks of a processor that it has had."""
    found = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[int(task.name)] = int(fields[11]) + int(fields[12])
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in Linux's /proc")
def test_two_workers_on_two_cores_compute_with_two_threads(hopper_data: Path, tmp_path: Path) -> None:
    command = ["sweep", "--envs", "Hopper-v5", "--datasets", hopper_data, "--algos", "cql", "--bonuses", "none"]
    command += ["--seeds", 2, "--batch-seeds", 1, "--offline-steps", 10**7, "--online-steps", 0, "--workers", 2]
    command += ["--cores", 2, "--no-estimate", "--out", "s", "--", "--device", "cpu", "--log-every", 10]
    # Without OMP_NUM_THREADS, as a user has it, whatever these tests run with.
    free = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    process = subprocess.Popen(qcse_command(*command), cwd=tmp_path, start_new_session=True, env=free)
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("s/*/train.csv"))) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        trainers = [int(mark.name.split("-")[3]) for mark in tmp_path.glob("s/Hopper*/.*.lock")]
        assert len(trainers) == 2
        before = [tasks(trainer) for trainer in trainers]
        time.sleep(3)
        after = [tasks(trainer) for trainer in trainers]
        busy = [
            sum(ticks - old.get(task, 0) > 0.1 * (sum(new.values()) - sum(old.values())) for task, ticks in new.items())
            for old, new in zip(before, after, strict=True)
        ]
        assert busy == [1, 1], f"{sum(busy)} threads compute"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def test_a_grid_becomes_words_and_these_the_same_options() -> None:
    words = ["bonus.k=5,10", "net.policy-hidden=64 64,32", "bonus.count_self=true,false", "policy_every=none,2"]
    grid = from_words([*words, "critic_lr=1e-3", "bonus.squash=none"])
    same = {"bonus": {"k": [5, 10], "count-self": [True, False], "squash": ["none"]}, "critic_lr": [0.001],
            "net.policy_hidden": [[64, 64], [32]]}  # fmt: skip
    read = from_table(same, "file")
    assert {name: grid[name] for name in read} == read and grid["policy_every"] == [None, 2]
    base = ["--algo", "cql", "--env", "Hopper-v5", "--dataset", "d.hdf5", "--bonus", "qcse"]
    plain, found = flat(configuration(base)), combinations(grid, "cql", "qcse")
    assert len(found) == 16
    for settings in found:
        assert flat(configuration([*base, *words_of(settings)])) == plain | settings
    assert label_of(found[0]) == (
        "-bonus.count_self=True-bonus.k=5-bonus.squash=none-critic_lr=0.001-net.policy_hidden=64x64-policy_every=None"
    )


def test_what_a_run_does_not_read_is_not_varied() -> None:
    grid: dict[str, list[Any]] = {"bonus.k": [5, 6], "cql.alpha": [1.0, 5.0], "discount": [0.9]}
    assert len(combinations(grid, "cql", "qcse")) == 4
    assert combinations(grid, "iql", "none") == [{"discount": 0.9}]
    assert combinations(grid, "wsrl", "rnd") == [
        {"cql.alpha": 1.0, "discount": 0.9},
        {"cql.alpha": 5.0, "discount": 0.9},
    ]
    assert combinations({}, "cql", "none") == [{}]
    with pytest.raises(ConfigError, match="1,000,000 combinations"):
        combinations({name: list(range(100)) for name in ("seed", "batch_size", "eval_every")}, "cql", "none")


def test_steps_are_measured(hopper_data: Path) -> None:
    configs = [
        quick(algo, "Hopper-v5", dataset=hopper_data, offline_steps=10, seeds=2) for algo in ("cql", "cql", "iql")
    ]
    configs[1].seed, configs[1].critic_lr = 5, 1e-3
    rates = measure_all(configs, [{}])
    assert rates.keys() == {kind_of(config) for config in configs} and len(rates) == 2
    for rate in rates.values():
        assert 1 < rate.offline < 1e5 and 1 < rate.online < 1e5 and 0 < rate.evaluation < 60
    one = rates[kind_of(configs[0])]
    assert one.seconds(configs[0], 0, 70) > one.seconds(configs[0], 10, 70) > one.seconds(configs[0], 10, 60) > 4
    with pytest.raises(QcseError, match=r"no file at none\.hdf5"):
        measure_all([quick("cql", "Hopper-v5", dataset=Path("none.hdf5"), offline_steps=10)], [{}])


def test_a_dry_run_tells_and_writes_nothing(hopper_data: Path, tmp_path: Path, qcse_here) -> None:
    command = ["sweep", "--envs", "Hopper-v5", "--datasets", hopper_data, "--algos", "cql", "iql", "--seeds", 3]
    command += [
        "--batch-seeds",
        2,
        "--offline-steps",
        100,
        "--online-steps",
        50,
        "--grid",
        "bonus.k=5,10",
        "--cores",
        4,
    ]
    command += ["--grid", "critic_lr=1e-3,3e-4", "--dry-run", "--no-estimate", "--out", "s"]
    _, said = qcse_here(*command, check=True)
    lines = said.splitlines()
    assert lines[0].split() == ["run", "seeds", "offline", "online", "threads"]
    # 2 algorithms x 2 rates x 2 batches of seeds, each pre-trained for (none, k = 5, k = 10)
    assert sum(line.startswith("pretrained/Hopper-v5-") for line in lines) == 8
    assert sum("shared" in line for line in lines) == 24
    assert ["Hopper-v5-iql-qcse-bonus.k=10-critic_lr=0.0003-from2", "2", "shared", "50", "2"] in [
        line.split() for line in lines]  # fmt: skip
    assert "32 runs, 2 at a time at most, 4 CPU threads" in said
    assert "offline updates: 800 instead of 2,400" in said
    assert list(tmp_path.iterdir()) == []

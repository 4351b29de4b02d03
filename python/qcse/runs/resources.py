"""Cores and GPUs of this machine, shared among the runs of a sweep."""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .machine import usable_cores


@dataclass(frozen=True)
class Job:
    """A run that a process of its own is to train.

    Attributes:
        out: its run folder.
        words: options for `qcse train`, without --out and --init-from.
        first, last: the steps between which it trains.
        threads: CPU threads that it computes with.
        gpu: whether it needs a GPU.
        source: run folder of the job whose offline end it starts from.
    """

    out: Path
    words: tuple[str, ...]
    first: int
    last: int
    threads: int = 1
    gpu: bool = False
    source: Path | None = None


@dataclass(frozen=True)
class Resources:
    """What there is for the runs of a sweep.

    Attributes:
        workers: runs at a time, at most.
        cores: the threads of all runs at a time together, at most.
        gpus: names of GPUs, as CUDA_VISIBLE_DEVICES has them.
        runs_per_gpu: runs that share a GPU, at most.
    """

    workers: int
    cores: int
    gpus: tuple[str, ...] = ()
    runs_per_gpu: int = 1

    def threads_each(self, runs: int) -> int:
        """CPU threads of each of so many runs that are as large a part of the machine as possible."""
        return max(1, self.cores // max(1, min(self.workers, runs)))


def resources(workers: int | None, cores: int | None, runs_per_gpu: int, device: str) -> Resources:
    """What this process may use.

    Args:
        workers: runs at a time; None: as many as the GPUs hold, without a GPU one for every two cores.
        cores: threads at a time; None: the cores that this process may use.
        device: of the runs, as their option of that name. Where it names one GPU of several, all use that one.
    """
    cores = cores or usable_cores() or 1
    gpus = visible_gpus() if device in ("auto", "cuda") else ()
    if workers is None:
        workers = len(gpus) * runs_per_gpu or max(1, cores // 2)
    return Resources(workers, cores, gpus, runs_per_gpu)


def visible_gpus() -> tuple[str, ...]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if named is None else named.split(",")
    return tuple(itertools.islice(names, count))


class Places:
    """Who uses what of the resources at the moment."""

    def __init__(self, available: Resources) -> None:
        self.available = available
        self._held: dict[Path, tuple[int, str | None]] = {}  # run folder -> threads and GPU

    def take(self, job: Job) -> bool:
        """Give a job what it asks for; False where that is not free. One that asks for more than there is of cores gets
        them once nothing else runs."""
        threads = [held for held, _ in self._held.values()]
        if threads and (len(threads) >= self.available.workers or sum(threads) + job.threads > self.available.cores):
            return False
        gpu = None
        if job.gpu and self.available.gpus:
            users = [name for _, name in self._held.values()]
            gpu = min(self.available.gpus, key=users.count)
            if users.count(gpu) >= self.available.runs_per_gpu:
                return False
        self._held[job.out] = job.threads, gpu
        return True

    def environment(self, job: Job) -> dict[str, str]:
        """Variables by which a process uses what its job was given, and no more."""
        threads, gpu = self._held[job.out]
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        return variables if gpu is None else variables | {"CUDA_VISIBLE_DEVICES": gpu}

    def give_back(self, job: Job) -> None:
        del self._held[job.out]


class Queue:
    """Jobs in the order in which they may start: once their source is trained, and what they ask for is free.

    Args:
        jobs: in the order in which they are wished for.
        available: what they share.
    """

    def __init__(self, jobs: Sequence[Job], available: Resources) -> None:
        self.waiting = list(jobs)
        self.places = Places(available)
        self._unfinished = {job.out for job in jobs}

    def start(self) -> Job | None:
        """The next job that can start; None: none can at the moment."""
        for job in self.waiting:
            if job.source not in self._unfinished and self.places.take(job):
                self.waiting.remove(job)
                return job
        return None

    def finish(self, job: Job) -> None:
        """A job that was started is done."""
        self.places.give_back(job)
        self._unfinished.discard(job.out)

    def fail(self, job: Job) -> list[Job]:
        """A job that was started has failed; those that would start from it, which are returned, cannot."""
        self.places.give_back(job)
        lost = [other for other in self.waiting if other.source == job.out]
        self.waiting = [other for other in self.waiting if other.source != job.out]
        return lost


def seconds_for(jobs: Sequence[Job], available: Resources, seconds: Mapping[Path, float]) -> float:
    """How long the jobs take together, given how long each of them takes by itself."""
    queue, now, running = Queue(jobs, available), 0.0, list[tuple[float, int, Job]]()
    numbers = itertools.count()
    while queue.waiting or running:
        while (job := queue.start()) is not None:
            heapq.heappush(running, (now + seconds[job.out], next(numbers), job))
        now, _, job = heapq.heappop(running)
        queue.finish(job)
    return now

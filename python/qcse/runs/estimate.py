"""How long runs will take, from a few measured updates, in processes of their own: python -m qcse.runs.estimate."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from ..config import TrainConfig, flat, from_dict, to_dict
from ..envs.episodes import Evaluator
from ..errors import QcseError
from ..learn.update import WARM_UP
from .experiment import Experiment
from .interaction import Interaction

SECONDS = 0.5  # that each kind of step is measured for
EPISODES = 10  # of the evaluation that is measured, at most
START = 4.0  # seconds until a process has imported all and read its data

# Whole numbers and names that do not decide how long a step takes.
NO_MATTER = frozenset({
    "seed", "out", "init_from", "fresh_optimizers", "offline_steps", "online_steps", "eval_every", "eval_episodes",
    "log_every", "keep_checkpoints", "learning_starts", "random_steps", "online_buffer", "update_after", "bonus.k",
})  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """What was measured of a run's steps."""

    offline: float  # updates a second
    online: float  # environment steps, with their updates, a second
    evaluation: float  # seconds of one episode, of all seeds together

    def seconds(self, config: TrainConfig, first: int, last: int) -> float:
        """How long a run takes from one step to another."""
        offline = max(0, min(config.offline_steps, last) - first)
        online = max(0, last - max(config.offline_steps, first))
        episodes = config.eval_episodes * ((last - first) / config.eval_every + 1)
        return START + offline / self.offline + online / self.online + episodes * self.evaluation


def kind_of(config: TrainConfig) -> str:
    """Runs of one kind take equally long a step: they differ in seeds, places, lengths and fractional numbers only."""
    told = {name: value for name, value in flat(config).items() if name not in NO_MATTER}
    whole = {name: value for name, value in told.items() if not isinstance(value, float)}
    return json.dumps([whole, config.offline_steps > 0], sort_keys=True)


def measure_all(configs: Sequence[TrainConfig], environments: Sequence[Mapping[str, str]]) -> dict[str, Rates]:
    """Measure one run of each kind, in as many processes at a time as environments are given.

    Args:
        configs: of the runs, of any kinds.
        environments: variables of each process, such as CUDA_VISIBLE_DEVICES.

    Returns:
        Kind -> rates.

    Raises:
        QcseError: a run's options or data cannot be used.
    """
    kinds = list({kind_of(config): config for config in configs}.values())
    shares = [kinds[i :: len(environments)] for i in range(len(environments))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "qcse.runs.estimate"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | dict(environment),
        )
        for share, environment in zip(shares, environments, strict=True)
        if share
    ]  # fmt: skip
    rates: dict[str, Rates] = {}
    try:
        for process, share in zip(processes, shares, strict=False):
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended; why will be told below
                process.stdin.write(json.dumps([to_dict(config) for config in share]))
                process.stdin.close()
            process.stdin = None
        for process, share in zip(processes, shares, strict=False):
            answer, said = process.communicate()
            if process.returncode != 0:
                last = said.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
                raise QcseError(last[0])
            rates |= {kind_of(c): Rates(*r) for c, r in zip(share, json.loads(answer.splitlines()[-1]), strict=True)}
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return rates


def measure(config: TrainConfig, like: dict[tuple[Any, ...], Experiment]) -> Rates:
    """Do some steps of each phase as a run would.

    Args:
        config: of the run.
        like: data that were read -> experiment that has them; this one's are added.
    """
    data = (config.env, config.dataset, config.d4rl_transitions, config.action_units)
    short = dataclasses.replace(
        config,
        init_from=None,
        online_steps=100_000,
        online_buffer=max(4096, config.bonus.reference_size),
        learning_starts=0,
        random_steps=0,
        update_after="step",
        eval_episodes=min(config.eval_episodes, EPISODES),
    )
    experiment = Experiment(short, dataset_of=like.get(data))
    like.setdefault(data, experiment)
    facts = like[data].data_facts
    agent, buffer, reward = experiment.agent, experiment.buffer, experiment.reward
    offline = 1.0
    if config.offline_steps > 0:
        offline = _rate(lambda: experiment.update_step(online=False), experiment.device)
    agent.updates = config.offline_steps
    reward.start_online()
    interaction, taken = Interaction(experiment), 0

    def step() -> None:
        nonlocal taken
        updates = interaction.step(taken)
        taken += 1
        for _ in range(updates if buffer.added > reward.rows else 0):
            experiment.update_step(online=True)

    for _ in range(reward.rows):
        step()
    online = _rate(step, experiment.device)
    evaluator, began = Evaluator(short.env, short.eval_episodes * len(experiment.seeds)), time.perf_counter()
    steps = float(experiment.evaluate(evaluator, [0] * len(experiment.seeds)).lengths.sum())
    length = facts["rows"] / max(1, facts["episodes"]) if facts else experiment.task.max_episode_steps or 1000
    evaluation = (time.perf_counter() - began) / max(1.0, steps) * length * len(experiment.seeds)
    return Rates(offline, online, evaluation)


def _rate(call: Callable[[], object], device: torch.device) -> float:
    """Calls a second, once warm."""
    for _ in range(2 if device.type == "cpu" else WARM_UP + 2):
        call()
    count, began = 0, _now(device)
    while count < 3 or _now(device) - began < SECONDS:
        call()
        count += 1
    return count / (_now(device) - began)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> int:
    """Measure the configurations, a JSON list on standard input; print a JSON list of rates."""
    like: dict[tuple[Any, ...], Experiment] = {}
    try:
        rates = [dataclasses.astuple(measure(from_dict(data), like)) for data in json.load(sys.stdin)]
    except QcseError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(rates))
    return 0


if __name__ == "__main__":
    sys.exit(main())

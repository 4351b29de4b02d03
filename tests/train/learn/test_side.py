"""What is done beside other work on a GPU never touches memory that the other work needs: streams have twins here."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields

import pytest
import torch
from stream_twin import CaptureTwin, Race, StreamTwin, World

from qcse.bench import configuration, random_transitions
from qcse.config.commands import BenchArgs
from qcse.learn.agents import AGENTS
from qcse.learn.agents.sac import SAC
from qcse.learn.buffer import Batch, BatchInProgress, ReplayBuffer
from qcse.learn.reward import IntrinsicReward
from qcse.learn.side import SideStream
from qcse.learn.streams import Streams
from qcse.learn.update import UpdateStep
from qcse_ext import registration

SHAPES = BenchArgs(batch_size=64, actions=2, policy_hidden=(8, 8), critic_hidden=(8, 8))
SEEDS, ROWS = 2, 60
CPU = torch.device("cpu")


def training(world: World, algo: str, bonus: str, captured: bool = False) -> UpdateStep:
    config = configuration(algo, bonus, SHAPES)
    config.policy_every = 2 if algo == "td3_bc" else 1
    config.bonus.hidden = (8,)  # type: ignore[assignment]
    streams = Streams(list(range(SEEDS)), CPU, counted=True)
    agent = AGENTS[algo](SHAPES.state_dim, SHAPES.action_dim, config, streams)
    generator = torch.Generator().manual_seed(0)
    dataset, online = (random_transitions(n, SHAPES, generator) for n in (ROWS, ROWS * SEEDS))
    buffer = ReplayBuffer(dataset, SEEDS, ROWS, SHAPES.state_dim, SHAPES.action_dim, CPU)
    for name, column in online.items():
        buffer.online[name].copy_(column.view(SEEDS, ROWS, *column.shape[1:]))
    buffer.added = ROWS
    buffer.count_on_device()
    reward = IntrinsicReward(config.bonus, agent, buffer, streams)
    reward.start_online()
    CaptureTwin.world = world
    update = UpdateStep(config, agent, buffer, reward, streams, CaptureTwin if captured else None)
    for side in (agent.side, update._side, update._bonus_side):
        side._stream = StreamTwin(world)  # type: ignore[assignment]
    return update


@pytest.fixture
def world(monkeypatch) -> World:
    monkeypatch.setattr(registration, "has_kernel", lambda name, x: False)  # the path of a GPU
    return World(monkeypatch)


CASES = [*((algo, "qcse") for algo in AGENTS), *(("cal_ql", bonus) for bonus in ("none", "rnd", "se", "vcse"))]


@pytest.mark.parametrize(("algo", "bonus"), CASES)
def test_nothing_is_touched_out_of_order(algo: str, bonus: str, world: World) -> None:
    update = training(world, algo, bonus)
    with world:
        for _ in range(3):
            metrics = update(True)
    assert bonus in ("none", "rnd") or metrics["bonus/covered"].min() > 0  # there was something to compute
    beside = [side._stream for side in (update.agent.side, update._bonus_side)]
    done = [s is not None and world.operations[s.number] > 0 for s in beside]  # type: ignore[attr-defined]
    # Those have losses of their own, whose parts need each other.
    assert done == [algo not in ("iql", "awac", "td3_bc"), bonus != "none"]


@pytest.mark.parametrize(("algo", "bonus"), CASES)
def test_a_capture_waits_for_its_branches_and_no_others(algo: str, bonus: str, world: World) -> None:
    update = training(world, algo, bonus, captured=True)
    with world:
        for _ in range(8):  # three eager ones of each kind, its capture, a replay
            update(True)
    assert any(kind.graph is not None for kind in update.graphs.values())


@pytest.mark.parametrize(("algo", "bonus"), [("cal_ql", "none"), ("iql", "qcse")])
def test_a_missing_wait_is_found(algo: str, bonus: str, world: World, monkeypatch) -> None:
    update = training(world, algo, bonus)
    monkeypatch.setattr(SideStream, "wait", lambda self: None)
    with world, pytest.raises(Race, match="touch the same memory"):
        update(True)


def test_memory_that_the_side_still_reads_is_found(world: World, monkeypatch) -> None:
    def copied(batch: Batch, side: SideStream) -> Batch:
        columns = {f.name: getattr(batch, f.name) for f in fields(batch)}
        return BatchInProgress(Batch(**columns | {"observations": batch.observations.clone()}), side)

    monkeypatch.setattr("qcse.learn.update.BatchInProgress", copied)  # the batch that the bonus reads is dropped
    update = training(world, "cal_ql", "qcse")
    with world, pytest.raises(Race, match="may get the memory"):
        update(True)


@pytest.mark.parametrize("settles", [True, False])
def test_a_step_waits_for_a_bonus_whose_reward_no_loss_reads(settles: bool, world: World, monkeypatch) -> None:
    monkeypatch.setattr(SAC, "bellman_target", lambda self, batch, *_: torch.zeros_like(batch.bootstrap))
    if not settles:
        monkeypatch.setattr(SideStream, "wait", lambda self: None)
    update = training(world, "cal_ql", "qcse")
    monkeypatch.setattr(update.agent, "side", SideStream(CPU))  # the bonus alone is beside
    with world, nullcontext() if settles else pytest.raises(Race):
        update(True)


def test_waiting_for_what_was_not_forked_is_found(world: World, monkeypatch) -> None:
    def careless(self: SideStream) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(CPU).wait_stream(self._stream)

    update = training(world, "iql", "none", captured=True)
    monkeypatch.setattr(SideStream, "wait", careless)
    with world, pytest.raises(Exception, match="no branch of it"):
        for _ in range(4):
            update(True)

"""Whole updates on a GPU: replayed from graphs they leave the bits that eager ones do, and a checkpoint goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_device import DEVICE as DEVICE_NAME
from torch import Tensor

from qcse.bench import configuration, random_transitions
from qcse.config.commands import BenchArgs
from qcse.learn.agents import AGENTS
from qcse.learn.buffer import ReplayBuffer
from qcse.learn.reward import IntrinsicReward
from qcse.learn.streams import Streams
from qcse.learn.update import CudaGraph, UpdateStep

# Torch warns where a leaf's gradient is made on another stream than the leaf was used on: a branch would be lost.
pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("error:.*AccumulateGrad")]
DEVICE = torch.device(DEVICE_NAME)  # on the CPU without graphs
SHAPES = BenchArgs(batch_size=64, actions=3, policy_hidden=(32, 32), critic_hidden=(32, 32))
SEEDS, ROWS, PHASE = 2, 500, 12  # updates of a phase: 3 eager ones of each kind, its capture, replays


class Training:
    def __init__(self, algo: str, bonus: str, captured: bool, **options: Any) -> None:
        config = configuration(algo, bonus, SHAPES)
        config.offline_steps, config.policy_every = PHASE, 2
        if bonus != "none":
            config.bonus.weight, config.bonus.decay = 0.5, 0.1  # a weight that falls from one replay to the next
        for name, value in options.items():
            setattr(config.bonus, name, value)
        streams = Streams(list(range(SEEDS)), DEVICE, counted=True)
        self.agent = AGENTS[algo](SHAPES.state_dim, SHAPES.action_dim, config, streams)
        generator = torch.Generator().manual_seed(0)
        dataset, online = (random_transitions(n, SHAPES, generator) for n in (ROWS, ROWS * SEEDS))
        buffer = ReplayBuffer(dataset, SEEDS, ROWS, SHAPES.state_dim, SHAPES.action_dim, DEVICE)
        for name, column in online.items():
            buffer.online[name].copy_(column.view(SEEDS, ROWS, *column.shape[1:]))
        buffer.added = ROWS
        self.reward, self.streams = IntrinsicReward(config.bonus, self.agent, buffer, streams), streams
        graph = CudaGraph if captured and DEVICE.type == "cuda" else None
        self.update = UpdateStep(config, self.agent, buffer, self.reward, streams, graph)

    def phase(self, online: bool) -> None:
        if online and not self.reward.online:
            self.reward.start_online()
        for _ in range(PHASE):
            self.update(online)

    def state_dict(self) -> dict[str, Any]:
        parts = {"agent": self.agent, "reward": self.reward, "streams": self.streams, "update": self.update}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.reward.load_state_dict(state["reward"])
        self.streams.load_state_dict(state["streams"])
        self.update.load_state_dict(state["update"])


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key, value in a.items():
            assert_same(value, b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


CASES = [*((algo, "qcse", {}) for algo in AGENTS), ("cql", "qcse", {"references": "sample", "reference_size": 100}),
         ("sac", "rnd", {}), ("sac", "se", {}), ("cal_ql", "none", {})]  # fmt: skip


@pytest.mark.parametrize(("algo", "bonus", "options"), CASES, ids=str)
def test_replays_leave_the_bits_of_eager_updates(algo: str, bonus: str, options: dict[str, Any], tmp_path: Any) -> None:
    eager, captured = (Training(algo, bonus, graphs, **options) for graphs in (False, True))
    for training in (eager, captured):
        training.phase(False)
    assert_same(captured.state_dict(), eager.state_dict())
    torch.save(captured.state_dict(), tmp_path / "checkpoint")
    resumed = Training(algo, bonus, True, **options)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint", map_location="cpu"))
    for training in (eager, captured, resumed):
        training.phase(True)
    assert_same(captured.state_dict(), eager.state_dict())
    assert_same(resumed.state_dict(), eager.state_dict())
    if DEVICE.type == "cuda":
        kinds = captured.update.graphs.values()
        assert kinds and all(kind.graph is not None for kind in kinds)


def test_the_policys_loss_is_taken_beside_the_critics(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training("cal_ql", "none", False)
    called: list[tuple[str, int]] = []
    for name in ("policy_loss", "critic_loss"):
        method = getattr(training.agent, name)

        def noted(*args: Any, name: str = name, method: Any = method) -> Any:
            called.append((name, torch.cuda.current_stream().cuda_stream if DEVICE.type == "cuda" else 0))
            return method(*args)

        monkeypatch.setattr(training.agent, name, noted)
    training.phase(False)
    (first, beside), (second, main) = called[-2:]
    assert (first, second) == ("policy_loss", "critic_loss")  # in this order, or the one would wait for the other
    assert (beside != main) == (DEVICE.type == "cuda")

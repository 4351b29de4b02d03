"""Counted streams, which a GPU draws from, on a CPU: the same code with the CPU's kernels."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from graph_twin import GraphTwin
from support import quick
from test_update import everything, run
from torch.utils._python_dispatch import TorchDispatchMode

from qcse.config import preset
from qcse.errors import CheckpointError
from qcse.learn import streams as streams_module
from qcse.learn.agents import AGENTS
from qcse.learn.buffer import COLUMNS, ReplayBuffer
from qcse.learn.nets import BatchedMLP
from qcse.learn.streams import HOST, NAMES, Generators, Streams
from qcse.runs import checkpoint
from qcse.runs.trainer import Trainer

COUNTED = [name for name in NAMES if name not in HOST]
SHAPES = {"a": ("normal", (5, 1, 3)), "b": ("uniform", (7,)), "c": ("normal", (2, 4))}


@pytest.mark.parametrize("counted", [False, True])
def test_a_draw_of_several_is_the_same_beside_other_seeds_and_after_a_restart(counted: bool) -> None:
    a, b = Streams([1, 2], counted=counted), Streams([2], counted=counted)
    drawn = a.draw("update", SHAPES)
    assert {k: tuple(x.shape) for k, x in drawn.items()} == {k: (2, *shape) for k, (_, shape) in SHAPES.items()}
    assert all(x.is_contiguous() and torch.equal(x[1], y[0]) for x, y in zip(drawn.values(),
                                                                             b.draw("update", SHAPES).values(),
                                                                             strict=True))  # fmt: skip
    assert -1 <= drawn["b"].min() < 0 < drawn["b"].max() < 1
    state = copy.deepcopy(a.state_dict())
    first = {name: a.normal(name, (4,)) for name in NAMES}
    assert len({tuple(value.flatten().tolist()) for value in first.values()}) == len(NAMES)
    other = Streams([8, 9], counted=counted)
    for streams in (a, other):
        streams.load_state_dict(state)
        assert all(torch.equal(streams.normal(name, (4,)), first[name]) for name in NAMES)
    assert set(a.integers("sampling", 3, (200,)).unique().tolist()) == {0, 1, 2}
    assert a.uniform("exploration", (500,), 2.0, 3.0).aminmax().min >= 2


def test_torchs_generators_draw_as_ever() -> None:
    a, b = Streams([3, 4]), Streams([3, 4])
    drawn = a.draw("update", SHAPES)
    assert torch.equal(drawn["a"], b.normal("update", (5, 1, 3)))
    assert torch.equal(drawn["b"], b.uniform("update", (7,), -1.0, 1.0))
    assert torch.equal(drawn["c"], b.normal("update", (2, 4)))
    rows = a.rows("sampling", 9, 100, 20, 4)
    expected = [b.integers("sampling", 100, (4,)), b.integers("sampling", 20, (5,)) + 100]
    assert torch.equal(rows, torch.cat(expected, 1))


def test_the_hosts_streams_are_torchs_on_every_device() -> None:
    host, counted = Streams([5]), Streams([5], counted=True)
    for name in HOST:
        assert torch.equal(host.normal(name, (3,)), counted.normal(name, (3,)))
    assert all(len(counted.generators(name)) == 0 for name in COUNTED)
    meta = BatchedMLP([3, 4, 2], Generators(host.generators("initialisation"), torch.device("meta")))
    assert {p.device.type for p in meta.parameters()} == {"meta"}


@pytest.mark.parametrize("counted", [False, True])
def test_a_checkpoint_of_another_kind_of_device_is_refused_and_its_streams_do_not_go_on(counted: bool) -> None:
    one, other = Streams([1, 2], counted=counted), Streams([1, 2], counted=not counted)
    other.normal("update", (4,))
    with pytest.raises(CheckpointError, match=r"another kind of device.*--init-from"):
        one.load_state_dict(other.state_dict())
    one = Streams([1, 2], counted=counted)
    one.go_on(other.state_dict(), {1: 0, 2: 1})
    fresh = Streams([1, 2], counted=counted)
    assert all(torch.equal(one.normal(name, (3,)), fresh.normal(name, (3,))) for name in COUNTED)


def test_some_seeds_go_on() -> None:
    old, new = Streams([1, 2, 3], counted=True), Streams([2, 9], counted=True)
    for name in NAMES:
        old.normal(name, (5,))
    new.go_on(old.state_dict(), {2: 1})
    fresh = Streams([9], counted=True)
    for name in COUNTED:
        drawn = new.normal(name, (4,))
        assert torch.equal(drawn[0], old.normal(name, (4,))[1]) and torch.equal(drawn[1:], fresh.normal(name, (4,)))


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("algo", list(AGENTS))
def test_one_launch_draws_a_batch_and_one_all_noise(algo: str) -> None:
    streams = Streams(range(4), counted=True)
    agent = AGENTS[algo](3, 2, quick(algo, "Hopper-v5"), streams)
    zeros = {"observations": (3,), "next_observations": (3,), "actions": (2,)}
    buffer = ReplayBuffer({c: torch.zeros(9, *zeros.get(c, ())) for c in COLUMNS}, 4, 6, 3, 2, torch.device("cpu"))
    buffer.added = 5
    buffer.count_on_device()
    for fraction in (None, 0.5, 0.0, 1.0):
        with Calls() as calls:
            buffer.sample(streams, 8, fraction)
        assert {name: n for name, n in calls.counts.items() if name != "add"} == {
            "random_rows": 1,
            "gather_transitions": 1,
        }
    with Calls() as calls:
        noise = agent.draw_noise(streams, 8)
    assert calls.counts == ({"random": 1} if noise else {})


@pytest.mark.parametrize("algo", ["cql", "rlpd", "td3_bc"])
def test_replayed_updates_with_counted_streams_equal_eager_ones(
    algo: str, hopper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "by_counter", lambda device: True)
    config = quick(algo, "Hopper-v5", dataset=hopper_data, offline_steps=14, online_steps=24, seeds=2)
    config.learning_starts = 2
    config.bonus.kind, config.bonus.k, config.bonus.references, config.bonus.reference_size = "qcse", 3, "sample", 16
    eager, replayed = (run(config, tmp_path / str(graphs), graphs) for graphs in (False, True))
    want, got = everything(eager), everything(replayed)
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert torch.allclose(value, got[name], rtol=0, atol=0, equal_nan=True), name
    graphs = [c.graph for c in replayed.experiment.update_step.graphs.values()]
    assert any(isinstance(g, GraphTwin) and g.replays > 3 and not g.known for g in graphs)


class Stop(Exception):
    pass


def test_a_resumed_run_with_counted_streams_is_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "by_counter", lambda device: True)

    def trainer(out: Path) -> Trainer:
        config = preset("sac", "Hopper-v5")
        config.net.policy_hidden = config.net.critic_hidden = (8,)
        config.online_steps, config.random_steps, config.learning_starts, config.threads = 30, 4, 4, 1
        config.batch_size, config.eval_every, config.checkpoint_seconds = 16, 30, 1e-9
        path = out / checkpoint.NAME
        return Trainer(config, out, checkpoint.load(path) if path.exists() else None, quiet=True)

    whole, broken = trainer(tmp_path / "whole"), trainer(tmp_path / "broken")
    whole.run()
    original = Trainer.update

    def stops(self: Trainer, *args: object) -> None:
        if self.buffer.added >= 17:
            raise Stop
        original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "update", stops)
        broken.run()
    resumed = trainer(tmp_path / "broken")
    assert 0 < resumed.agent.updates < whole.agent.updates
    resumed.run()
    want, got = everything(whole), everything(resumed)
    assert want.keys() == got.keys() and all(torch.equal(value, got[name]) for name, value in want.items())

"""A replayed update is the update: every algorithm and bonus, trained by a twin of CUDA graphs, against eager."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from graph_twin import GraphTwin
from support import quick
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qcse.bench import our_step
from qcse.config import TrainConfig, bonus_preset
from qcse.config.commands import BenchArgs
from qcse.errors import ConfigError, QcseError
from qcse.learn.agents import AGENTS
from qcse.learn.buffer import Batch, BatchInProgress, ReplayBuffer
from qcse.learn.side import SideStream
from qcse.learn.update import UpdateStep
from qcse.runs.device import resolve_device
from qcse.runs.trainer import Trainer
from qcse_ext import registration
from qcse_ext.nets import critic


def run(config: TrainConfig, out: Path, graphs: bool) -> Trainer:
    trainer = Trainer(config, out, quiet=True)
    parts = (config, trainer.agent, trainer.buffer, trainer.reward, trainer.experiment.streams)
    trainer.buffer.count_on_device()  # both draw by the same law
    trainer.experiment.update_step = UpdateStep(*parts, GraphTwin if graphs else None)
    trainer.run()
    return trainer


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor that training moves."""
    found: dict[str, Tensor] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, part in value.items():
                walk(f"{name}.{key}", part)
        elif isinstance(value, list | tuple):
            for index, part in enumerate(value):
                walk(f"{name}.{index}", part)

    walk("agent", trainer.agent.state_dict())
    walk("reward", trainer.reward.state_dict())
    walk("streams", trainer.experiment.streams.state_dict())
    walk("buffer", {name: column[:, : trainer.buffer.size] for name, column in trainer.buffer.online.items()})
    return found


def equal_runs(config: TrainConfig, tmp_path: Path) -> Trainer:
    eager, replayed = (run(config, tmp_path / str(graphs), graphs) for graphs in (False, True))
    assert replayed.agent.updates == eager.agent.updates and replayed.reward.updates == eager.reward.updates
    want, got = everything(eager), everything(replayed)
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert torch.allclose(value, got[name], rtol=0, atol=0, equal_nan=True), name
    for name in ("train.csv", "eval.csv"):
        skip = {"steps_per_second", "wall_seconds"}
        rows = []
        for trainer in (eager, replayed):
            lines = [line.split(",") for line in (trainer.folder.folders[0] / name).read_text().splitlines()]
            kept = [column not in skip for column in lines[0]]
            rows.append([[cell for cell, keep in zip(line, kept, strict=True) if keep] for line in lines])
        assert rows[0] == rows[1]
    kinds = replayed.experiment.update_step.graphs
    assert kinds and any(c.graph is not None and c.graph.replays > 3 for c in kinds.values())
    return replayed


@pytest.mark.parametrize("algo", list(AGENTS))
def test_replayed_updates_equal_eager_ones(algo: str, hopper_data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(registration, "has_kernel", lambda name, x: False)  # the path of a GPU
    config = quick(algo, "Hopper-v5", dataset=hopper_data, offline_steps=14, online_steps=24, seeds=2)
    config.behaviour_cloning_steps, config.learning_starts, config.log_every = 5, 2, 4
    config.bonus.kind, config.bonus.k, config.bonus.decay = "qcse", 3, 0.05
    if algo == "td3_bc":
        config.policy_every = 2
    replayed = equal_runs(config, tmp_path)
    kinds = len(replayed.experiment.update_step.graphs)
    assert kinds >= (3 if algo == "td3_bc" else 2)  # phases, turns and cloning have graphs of their own


def test_a_gpus_path_copies_no_hidden_activations(monkeypatch) -> None:
    """A ReLU in place on a view makes autograd copy what it is a view of, forward and back."""
    monkeypatch.setattr(registration, "has_kernel", lambda name, x: False)
    args = BenchArgs(batch_size=8, actions=2, policy_hidden=(16,), critic_hidden=(16, 16))
    step = our_step("cal_ql", "none", 2, args, torch.device("cpu"))
    step()
    copied: list[tuple[str, tuple[int, ...]]] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ in ("clone", "copy_", "new_empty_strided") and result.shape[-1:] == (16,):
                copied.append((str(func), tuple(result.shape)))
            return result

    with Copies():
        step()
    assert copied == []


@pytest.mark.parametrize(
    ("bonus", "references"), [("vcse", "batch"), ("se", "sample"), ("rnd", "batch"), ("qcse", "sample")]
)
def test_replayed_bonuses_equal_eager_ones(bonus: str, references: str, hopper_data: Path, tmp_path: Path) -> None:
    config = quick("cql", "Hopper-v5", dataset=hopper_data, offline_steps=8, online_steps=24)
    config.bonus = bonus_preset(bonus)
    config.bonus.k, config.bonus.references, config.bonus.hidden = 3, references, (8,)  # type: ignore[assignment]
    config.bonus.reference_size = 16
    equal_runs(config, tmp_path)


def test_what_cannot_be_captured_names_the_way_out(hopper_data: Path, tmp_path: Path, monkeypatch) -> None:
    plain = ReplayBuffer.sample

    def reading(self, *args):
        batch = plain(self, *args)
        batch.rewards.sum().item()
        return batch

    monkeypatch.setattr(ReplayBuffer, "sample", reading)
    config = quick("cql", "Hopper-v5", dataset=hopper_data, offline_steps=8, online_steps=0)
    with pytest.raises(QcseError, match=r"_local_scalar_dense reads a value.*--cuda-graph off"):
        run(config, tmp_path, graphs=True)


def test_overlap_acts_with_the_policy_of_the_step_before(hopper_data: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def acted(overlap: bool) -> Trainer:
        config = quick("cql", "Hopper-v5", dataset=hopper_data, offline_steps=4, online_steps=6)
        config.overlap = overlap
        trainer = Trainer(config, tmp_path / str(overlap), quiet=True)
        plain = trainer.interaction.choose

        def choose(observations, taken):
            seen.append((taken, trainer.agent.updates))
            return plain(observations, taken)

        trainer.interaction.choose = choose  # type: ignore[method-assign]
        seen.clear()
        trainer.run()
        return trainer

    first = acted(False)
    assert seen == [(t, 4 + t) for t in range(6)]
    second = acted(True)
    assert seen == [(0, 4)] + [(t, 4 + t - 1) for t in range(1, 7)]
    # The first action after an update differs, as it comes from the policy before it.
    rows = [trainer.buffer.online["actions"][0, :2] for trainer in (first, second)]
    assert torch.equal(rows[0][0], rows[1][0]) and not torch.equal(rows[0][1], rows[1][1])


def test_precision_is_refused_where_there_is_none(hopper_data: Path, tmp_path: Path, monkeypatch) -> None:
    config = quick("cql", "Hopper-v5", dataset=hopper_data, offline_steps=4, online_steps=0, device="cpu")
    config.precision = "tf32"
    with pytest.raises(ConfigError, match="precision: got 'tf32'"):
        Trainer(config, tmp_path, quiet=True)
    config.precision = "bf16"
    monkeypatch.setattr(critic, "has_bf16", lambda: False)
    with pytest.raises(ConfigError, match="AVX512-BF16"):
        Trainer(config, tmp_path, quiet=True)


def test_a_named_gpu_becomes_the_current_one(monkeypatch) -> None:
    """A graph captures what the current device launches."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert resolve_device("cpu:0") == torch.device("cpu:0") and not current
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)  # as if there were two GPUs
    assert resolve_device("cuda:1") == torch.device("cuda:1") and current == [torch.device("cuda:1")]


def test_who_reads_the_rewards_waits_for_the_bonus() -> None:
    class Side(SideStream):
        waits = 0

        def wait(self) -> None:
            self.waits += 1

    side, names = Side(torch.device("cpu")), [f.name for f in fields(Batch)]
    batch = Batch(**{name: torch.full((1, 4), float(i)) for i, name in enumerate(names)})
    late = BatchInProgress(batch, side)
    assert all(getattr(late, name) is getattr(batch, name) for name in names if name != "rewards") and side.waits == 0
    assert late.rewards is batch.rewards and side.waits == 1
    assert torch.equal(late.tail(1).rewards, batch.rewards[:, 1:]) and side.waits == 2
    assert late.state_dict().keys() == batch.state_dict().keys() and side.waits == 3

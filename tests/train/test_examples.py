"""The examples, run as a user would, for a few hundred steps with the real libraries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def run(name: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", EXAMPLES / name, *options],
        env=dict(os.environ, PYTHONPATH=str(EXAMPLES), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("name", "needs", "options"),
    [
        ("sb3_replay_buffer.py", "stable_baselines3", ["--steps", "400"]),
        ("torchrl_transform.py", "torchrl", ["--steps", "300"]),
        ("cleanrl_loop.py", "gymnasium", ["--steps", "600"]),
    ],
)
def test_example_runs_and_its_bonus_tells_states_apart(name: str, needs: str, options: list[str]) -> None:
    pytest.importorskip(needs)
    found = re.search(r"mean bonus of the last batch: (\S+)", run(name, *options))
    assert found is not None and -1 < float(found[1]) < 0.99


def test_torchrl_bonus_is_by_the_critics_that_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of the loss's critics, each of which is asked and the smaller value taken, after a change to them."""
    pytest.importorskip("torchrl")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import torchrl_transform as example
    from bonus import qcse_bonus
    from tensordict import TensorDict

    made: dict[str, Any] = {}

    def keep(*arguments: Any, **options: Any) -> Any:
        made["loss"] = loss = example_loss(*arguments, **options)
        made["before"] = [p.detach().clone() for p in loss.qvalue_network_params.values(True, True)]
        return loss

    example_loss = example.SACLoss
    monkeypatch.setattr(example, "SACLoss", keep)
    monkeypatch.setattr(sys, "argv", ["torchrl_transform.py", "--steps", "100"])
    example.main()
    loss = made["loss"]
    learnt = list(loss.qvalue_network_params.values(True, True))
    assert all(not torch.equal(a, b) for a, b in zip(made["before"], learnt, strict=True))

    generator = torch.Generator().manual_seed(0)
    states, actions = torch.randn(64, 3, generator=generator), torch.rand(64, 1, generator=generator)
    batch = TensorDict({"observation": states, "action": actions, "next": {"reward": torch.ones(64, 1)}}, [64])
    nets = loss.qvalue_network_params["module"]
    values = []
    for net in range(2):
        h = torch.cat([states, actions], dim=1)
        for layer in ("0", "2", "4"):
            h = h @ nets[layer, "weight"][net].T + nets[layer, "bias"][net]
            h = h.tanh() if layer != "4" else h
        values.append(h.detach().squeeze(1))
    q = torch.minimum(*values)
    assert (q == values[0]).any() and (q == values[1]).any()
    got = example.QConditionedBonus(loss, weight=0.5, k=5)(batch)["next", "reward"]
    torch.testing.assert_close(got, 1 + 0.5 * qcse_bonus(states, q, 5).unsqueeze(1))


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name


class Trainer:
    """What `corl.py` sees of CORL's trainer: two critics and `train`."""

    def __init__(self) -> None:
        self.critic_1 = lambda states, actions: states[:, :1] + actions
        self.critic_2 = lambda states, actions: 2 * states[:, :1] + actions
        self.batches: list[list[torch.Tensor]] = []

    def train(self, batch: list[torch.Tensor]) -> dict[str, float]:
        self.batches.append(batch)
        return {"loss": 0.0}


def corl_batch() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states, actions = torch.randn(64, 3, generator=generator), torch.randn(64, 1, generator=generator)
    return [states, actions, torch.zeros(64, 1), states, torch.zeros(64, 1)]


def test_corl_recipe_adds_the_bonus_online_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from bonus import qcse_bonus
    from corl import add_bonus

    trainer: Any = Trainer()
    online = False
    add_bonus(trainer, online=lambda: online, weight=0.5, k=5)
    batch = corl_batch()
    assert trainer.train(batch) == {"loss": 0.0} and trainer.batches[-1] is batch
    online = True
    assert set(trainer.train(batch)) == {"loss", "bonus_mean"}
    states, actions = batch[:2]
    q = torch.minimum(states[:, 0], 2 * states[:, 0]) + actions[:, 0]
    torch.testing.assert_close(trainer.batches[-1][2], 0.5 * qcse_bonus(states, q, 5).unsqueeze(1))
    assert torch.equal(batch[2], torch.zeros(64, 1))


@pytest.mark.filterwarnings("error:Using a target size")  # rewards and terminals are columns, as in CORL
def test_corl_recipe_with_corls_own_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = os.environ.get("QCSE_CORL_CHECKOUT")
    if not checkout:
        pytest.skip("runs CORL's own update: set QCSE_CORL_CHECKOUT to the folder of a checkout of tinkoff-ai/CORL")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from corl import add_bonus

    from qcse.bench import corl_module

    corl = corl_module(Path(checkout), "cql")
    critics = [corl.FullyConnectedQFunction(3, 1) for _ in range(2)]
    actor = corl.TanhGaussianPolicy(3, 1, 1.0)
    optimisers = [torch.optim.Adam(net.parameters(), 1e-3) for net in (*critics, actor)]
    trainer = corl.ContinuousCQL(
        critics[0], optimisers[0], critics[1], optimisers[1], actor, optimisers[2], target_entropy=-1.0, device="cpu"
    )
    add_bonus(trainer, online=lambda: True, k=5)
    assert -1 < trainer.train(corl_batch())["bonus_mean"] < 1

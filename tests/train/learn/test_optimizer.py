"""The fused optimiser, its operator's definition standing in for a GPU's kernel, against torch's Adam."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcse.config import preset
from qcse.learn.agents import AGENTS
from qcse.learn.agents.sac import SAC
from qcse.learn.agents.takeover import take_over
from qcse.learn.buffer import Batch
from qcse.learn.optimizer import FusedAdam, make_adam, step_with_targets
from qcse.learn.streams import Streams
from qcse_ext import registration
from qcse_ext.nets.adam import adam_in_torch_

CPU = torch.device("cpu")
SHAPES = [(3, 4), (1,), (2, 5, 1), (7,), (4, 4)]
SEEDS, BATCH, STATE_DIM, ACTION_DIM = 2, 12, 4, 2


@pytest.fixture
def kernel() -> Iterator[list[tuple[int, int]]]:
    """A CPU kernel that computes the definition; how many parameters and targets each call had."""
    library, calls = torch.library.Library("qcse", "IMPL"), list[tuple[int, int]]()

    def stand_in(parameters, grads, first, second, steps, targets, followed, rates, *rest):
        *settings, rate, tickets = rest
        assert tickets.dtype == torch.int32 and len(tickets) >= len(parameters) and not tickets.any()
        calls.append((len(parameters), len(targets)))
        adam_in_torch_(parameters, grads, first, second, steps, rates, *settings, targets, followed, rate)

    library.impl("adam_", stand_in, "CPU")
    yield calls
    library._destroy()
    registration._registered.discard(("adam_", "cpu"))


class Training:
    """Parameters in two groups, some followed, with a gradient that depends on them and the step."""

    def __init__(self, fused: bool, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
        self.targets = [torch.randn(shape, generator=generator) for shape in SHAPES[:3]]
        groups: list[dict[str, Any]] = [
            {"params": self.parameters[:2], "lr": 1e-2},
            {"params": self.parameters[2:], "lr": 3e-3} | options,
        ]
        self.optimizer = FusedAdam(groups) if fused else torch.optim.Adam(groups, fused=True)
        self.step = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            generator = torch.Generator().manual_seed(self.step)
            loss = torch.zeros(())
            for i, p in enumerate(self.parameters):
                if i != 4 or self.step % 3 == 2:  # whose turn is rarer
                    loss = loss + ((p - torch.randn(p.shape, generator=generator)) ** 2).sum()
            loss.backward()
            step_with_targets(self.optimizer, self.targets, self.parameters[:3], 0.05)
            self.step += 1

    def everything(self) -> list[Tensor]:
        state = [self.optimizer.state[p] for p in self.parameters]
        parts = [s[name] for s in state for name in ("step", "exp_avg", "exp_avg_sq")]
        return [*(p.detach() for p in self.parameters), *self.targets, *parts]


def assert_close(got: Training, want: Training) -> None:
    for a, b in zip(got.everything(), want.everything(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_fifty_steps_are_torchs(kernel: list[tuple[int, int]]) -> None:
    fused, plain = Training(True), Training(False)
    fused.run(50), plain.run(50)
    assert_close(fused, plain)
    assert kernel == [(4 + (step % 3 == 2), 3) for step in range(50)]  # one call a step
    assert fused.optimizer.state[fused.parameters[4]]["step"] == 16


def test_groups_with_settings_of_their_own(kernel: list[tuple[int, int]]) -> None:
    options = {"betas": (0.5, 0.9), "eps": 1e-4}
    fused, plain = Training(True, **options), Training(False, **options)
    fused.run(12), plain.run(12)
    assert_close(fused, plain)
    assert kernel[:2] == [(2, 2), (2, 1)]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("fused_first", [False, True])
def test_one_goes_on_with_the_others_state(fused_first: bool) -> None:
    first, second, whole = Training(fused_first), Training(not fused_first), Training(False)
    first.run(20), whole.run(40)
    for p, q in zip([*second.parameters, *second.targets], [*first.parameters, *first.targets], strict=True):
        p.data.copy_(q.data)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.step = first.step
    assert all(g["fused"] for g in second.optimizer.param_groups)
    second.run(20)
    assert_close(second, whole)
    assert first.optimizer.state_dict().keys() == second.optimizer.state_dict().keys()
    saved, groups = second.optimizer.state_dict()["state"], second.optimizer.state_dict()["param_groups"]
    assert sorted(saved) == [0, 1, 2, 3, 4] and [len(g["params"]) for g in groups] == [2, 3]


@pytest.mark.usefixtures("kernel")
def test_a_step_without_targets_and_a_closure() -> None:
    training = Training(True)
    (training.parameters[0] ** 2).sum().backward()
    before = [t.clone() for t in training.targets]
    assert training.optimizer.step(lambda: 7.0) == 7.0
    assert all(torch.equal(a, b) for a, b in zip(before, training.targets, strict=True))
    assert len(training.optimizer.state) == 1


@pytest.mark.usefixtures("kernel")
def test_a_target_of_a_parameter_without_a_gradient_moves() -> None:
    training = Training(True)
    (training.parameters[0] ** 2).sum().backward()
    want = [t.lerp(p.detach(), 0.05) for t, p in zip(training.targets, training.parameters, strict=False)]
    step_with_targets(training.optimizer, training.targets, training.parameters[:3], 0.05)
    assert torch.equal(training.targets[1], want[1]) and torch.equal(training.targets[2], want[2])
    assert not torch.equal(training.targets[0], want[0])  # that of the new parameter


@pytest.mark.usefixtures("kernel")
def test_what_is_not_offered_is_refused() -> None:
    with pytest.raises(ValueError, match="weight_decay"):
        Training(True, weight_decay=0.1)
    saved = torch.optim.Adam(Training(False).optimizer.param_groups, amsgrad=True).state_dict()
    saved["param_groups"][0]["amsgrad"] = True
    with pytest.raises(ValueError, match="amsgrad"):
        Training(True).optimizer.load_state_dict(saved)


def test_the_counters_of_any_adam_come_to_the_parameters_device() -> None:
    """torch's own keeps them on the host unless it is fused or capturable."""
    training = Training(False)
    plain = torch.optim.Adam(training.optimizer.param_groups, fused=False)
    for group in plain.param_groups:
        group["fused"] = False
    training.optimizer = plain
    training.run(3)
    there = [[nn.Parameter(p.detach().to("meta")) for p in group["params"]] for group in plain.param_groups]
    elsewhere = FusedAdam([group | {"params": p} for group, p in zip(plain.param_groups, there, strict=True)])
    elsewhere.load_state_dict(plain.state_dict())
    found = [value for state in elsewhere.state.values() for value in state.values()]
    assert found and all(value.device.type == "meta" for value in found)
    assert all(group["fused"] and group["capturable"] for group in elsewhere.param_groups)
    assert not any(group["fused"] for group in plain.state_dict()["param_groups"])


def test_a_cpu_has_torchs_adam() -> None:
    optimizer = make_adam([{"params": [nn.Parameter(torch.zeros(3))], "lr": 1e-3}], CPU)
    assert type(optimizer) is torch.optim.Adam and optimizer.param_groups[0]["fused"]


# --- Agents -----------------------------------------------------------------------------------------------------------


def agent_of(algo: str) -> tuple[SAC, Streams]:
    config = preset(algo, "Hopper-v5")
    config.net.policy_hidden = config.net.critic_hidden = (16,)
    config.batch_size, config.cql.actions, config.offline_steps, config.policy_every = BATCH, 2, 4, 2
    streams = Streams(list(range(SEEDS)))
    return AGENTS[algo](STATE_DIM, ACTION_DIM, config, streams), streams


def trained(algo: str, updates: int, agent: SAC | None = None) -> SAC:
    fresh, streams = agent_of(algo)
    agent = agent or fresh
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        states, one = (torch.randn(SEEDS, BATCH, *n, generator=generator) for n in ((STATE_DIM,), ()))
        actions = torch.randn(SEEDS, BATCH, ACTION_DIM, generator=generator).tanh()
        index = torch.zeros(SEEDS, BATCH, dtype=torch.int64)
        batch = Batch(states, actions, one, states.roll(1, 1), torch.ones_like(one), one, one, index, index > 0)
        agent.update(batch, agent.draw_noise(streams, BATCH))
    return agent


def tensors_of(agent: SAC) -> list[Tensor]:
    state = agent.state_dict()
    optimizer = state["optimizer"]["state"]
    parts = [t for module in state["modules"].values() for t in module.values()] + list(state["multipliers"].values())
    return parts + [optimizer[key][name] for key in sorted(optimizer) for name in sorted(optimizer[key])]


@pytest.mark.parametrize("algo", list(AGENTS))
def test_every_algorithm_trains_alike(algo: str, kernel: list[tuple[int, int]], monkeypatch) -> None:
    fused = trained(algo, 7)
    assert isinstance(fused.optimizer, FusedAdam) and len(kernel) == 7
    resumed, _ = agent_of(algo)
    resumed.load_state_dict(copy.deepcopy(fused.state_dict()))
    with monkeypatch.context() as patch:
        has_kernel = registration.has_kernel
        patch.setattr(registration, "has_kernel", lambda name, x: name != "adam_" and has_kernel(name, x))
        plain = trained(algo, 7)
    assert type(plain.optimizer) is torch.optim.Adam
    for agent in (fused, resumed):
        for a, b in zip(tensors_of(agent), tensors_of(plain), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    trained(algo, 1, resumed)


@pytest.mark.usefixtures("kernel")
def test_moments_are_taken_over() -> None:
    source, (taker, _) = trained("cal_ql", 4), agent_of("cal_ql")
    take_over(taker, source, [1, 0])
    for name, p in source.critics.named_parameters():
        mine = taker.optimizer.state[dict(taker.critics.named_parameters())[name]]
        theirs = source.optimizer.state[p]["exp_avg"]
        assert torch.equal(mine["exp_avg"], theirs.view(SEEDS, -1, *theirs.shape[1:]).flip(0).flatten(0, 1))
        assert mine["step"] == 4
    trained("cal_ql", 1, taker)
    assert all(taker.optimizer.state[p]["step"] == 5 for p in taker.critics.parameters())

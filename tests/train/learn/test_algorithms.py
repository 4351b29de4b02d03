"""RLPD's and WSRL's losses from their papers; what the algorithms do over several updates; all of them with each bonus.

The references below are written per seed and per critic, in float64, from the papers' formulas (arXiv 2302.02948,
2412.07762), with explicit layer norms and loops; autograd differentiates them.
"""

from __future__ import annotations

import itertools
import json
import math
import signal
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qcse.bench import bench, configuration, our_step
from qcse.config import Algo, BonusKind, TrainConfig, preset, validate
from qcse.config.commands import BenchArgs
from qcse.errors import ConfigError
from qcse.learn.agents import AGENTS
from qcse.learn.agents.sac import SAC
from qcse.learn.buffer import Batch
from qcse.learn.streams import Streams
from qcse.runs import checkpoint
from qcse.runs.trainer import RunInterrupted, Trainer

STATE_DIM, ACTION_DIM, BATCH, CRITICS, SUBSET, SAMPLED, SEEDS = 4, 2, 12, 5, 2, 3, 2


def small(algo: str, **changes: object) -> TrainConfig:
    config = preset(algo, "Hopper-v5")
    config.net.policy_hidden = config.net.critic_hidden = (16,)
    config.batch_size, config.cql.actions, config.eval_episodes, config.threads = 16, 2, 1, 1
    config.offline_steps, config.online_steps, config.learning_starts, config.random_steps = 6, 6, 0, 0
    config.updates_per_step = min(config.updates_per_step, 3)
    config.device, config.log_every, config.bonus.k = "cpu", 4, 2
    for name, value in changes.items():
        setattr(config, name, value)
    return config


# The papers' formulas.


class Reference:
    """One seed's networks, as lists of (weight, bias, scale and shift of the norm or None), leaves of autograd."""

    def __init__(self, agent: SAC, seed: int) -> None:
        self.leaves: dict[str, Tensor] = {}

        def network(name: str, net, row: int) -> list:
            layers = []
            for index, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
                norm = None
                if index < len(net.norm_scales):
                    norm = self.leaf(f"{name}.scale{index}", net.norm_scales[index][row])
                    norm = norm, self.leaf(f"{name}.shift{index}", net.norm_shifts[index][row])
                weight = self.leaf(f"{name}.weight{index}", weight[row])
                layers.append((weight, self.leaf(f"{name}.bias{index}", bias[row]), norm))
            return layers

        self.policy = network("policy", agent.policy.net, seed)
        self.multiplier = self.leaf("policy.multiplier", agent.policy.log_std_multiplier[seed])
        self.offset = self.leaf("policy.offset", agent.policy.log_std_offset[seed])
        rows = range(seed * CRITICS, (seed + 1) * CRITICS)
        self.critics = [network(f"critic{e}", agent.critics.net, row) for e, row in enumerate(rows)]
        self.targets = [network(f"target{e}", agent.targets.net, row) for e, row in enumerate(rows)]
        self.log_temperature = self.leaf("log_temperature", agent.log_temperature[seed])

    def leaf(self, name: str, value: Tensor) -> Tensor:
        self.leaves[name] = value.detach().clone().requires_grad_()
        return self.leaves[name]

    @staticmethod
    def run(layers: list, x: Tensor) -> Tensor:
        for weight, bias, norm in layers[:-1]:
            x = x @ weight + bias
            if norm is not None:
                mean = x.mean(-1, keepdim=True)
                x = (x - mean) / ((x - mean) ** 2).mean(-1, keepdim=True).add(1e-6).sqrt() * norm[0] + norm[1]
            x = torch.where(x > 0, x, 0.0)
        return x @ layers[-1][0] + layers[-1][1]

    def q(self, layers: list, states: Tensor, actions: Tensor) -> Tensor:
        return self.run(layers, torch.cat([states, actions], dim=-1)).squeeze(-1)

    def sample(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """states [B, D], noise [B, A] -> actions, log-densities [B]."""
        mean, log_std = self.run(self.policy, states).split(ACTION_DIM, dim=-1)
        std = (self.multiplier * log_std + self.offset).clamp(-20.0, 2.0).exp()
        before = mean + std * noise
        log_prob = torch.distributions.Normal(mean, std).log_prob(before) - torch.log(1.0 - torch.tanh(before) ** 2)
        return torch.tanh(before), log_prob.sum(-1)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        names = [name for name in self.leaves if not name.startswith("target")]
        found = torch.autograd.grad(loss, [self.leaves[name] for name in names], allow_unused=True)
        return {name: value for name, value in zip(names, found, strict=True) if value is not None}


def drawn(noise: Tensor) -> list[int]:
    """The members with the smallest of E uniform numbers."""
    return sorted(range(CRITICS), key=lambda e: float(noise[e]))[:SUBSET]


def bellman(net: Reference, batch: dict[str, Tensor], noise: dict[str, Tensor], entropy: bool, best: bool) -> Tensor:
    """Sum over critics of the mean squared error against the least target of the members drawn."""
    with torch.no_grad():
        values, log_probs = [], []
        for j in range(noise["backup"].shape[1]):
            actions, log_prob = net.sample(batch["next_observations"], noise["backup"][:, j])
            each = [net.q(net.targets[e], batch["next_observations"], actions) for e in drawn(noise["subset"])]
            values.append(torch.stack(each).amin(0))
            log_probs.append(log_prob)
        value = torch.stack(values).amax(0) if best else values[0]
        if entropy:
            value = value - net.log_temperature.exp() * log_probs[0]
        target = batch["rewards"] + 0.99 * batch["bootstrap"] * value
    errors = [(net.q(layers, batch["observations"], batch["actions"]) - target) ** 2 for layers in net.critics]
    return sum(error.mean() for error in errors)


def policy_and_temperature(
    net: Reference, batch: dict[str, Tensor], noise: dict[str, Tensor], mean: bool, target_entropy: float
) -> tuple[Tensor, Tensor]:
    states = batch["observations"]
    actions, log_prob = net.sample(states, noise["policy"][:, 0])
    constant = [[tuple(x if x is None else _detached(x) for x in layer) for layer in q] for q in net.critics]
    q = torch.stack([net.q(layers, states, actions) for layers in constant])
    q = q.mean(0) if mean else q.amin(0)
    policy = (net.log_temperature.exp().detach() * log_prob - q).mean()
    return policy, -net.log_temperature * (log_prob.mean().detach() + target_entropy)


def _detached(x):
    return tuple(map(_detached, x)) if isinstance(x, tuple) else x.detach()


def conservative(net: Reference, batch: dict[str, Tensor], noise: dict[str, Tensor], calibrated: bool) -> Tensor:
    """E / K times the sum, over the members drawn, of logsumexp Q - log density, minus Q of the data."""
    states, total = batch["observations"], torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        own = [net.sample(states, noise["current"][:, j]) for j in range(SAMPLED)]
        following = [net.sample(batch["next_observations"], noise["next"][:, j]) for j in range(SAMPLED)]
    for e in drawn(noise["subset"]):
        values = []
        for j in range(SAMPLED):
            values.append(net.q(net.critics[e], states, noise["random"][:, j]) + ACTION_DIM * math.log(2.0))
        for actions, log_prob in own + following:
            q = net.q(net.critics[e], states, actions)
            values.append((torch.maximum(q, batch["returns"]) if calibrated else q) - log_prob)
        gap = torch.stack(values).logsumexp(0) - net.q(net.critics[e], states, batch["actions"])
        total = total + gap.mean()
    return CRITICS / SUBSET * total


def problem(algo: str, seeds: int = SEEDS, **changes: object) -> tuple[SAC, Batch, dict[str, Tensor]]:
    """An agent in float64 with random norms and targets, a batch, an update's noise."""
    config = small(algo, critic_subset=SUBSET, **changes)
    config.net.critics, config.net.critic_hidden, config.net.policy_hidden = CRITICS, (16, 8), (16, 8)
    config.cql.actions = SAMPLED
    streams = Streams(list(range(3, 3 + seeds)))
    agent = AGENTS[algo](STATE_DIM, ACTION_DIM, config, streams)
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(seeds, BATCH, *shape, generator=generator, dtype=torch.float64)

    for module in agent.modules().values():
        module.double()
        for parameter in module.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for name, parameter in agent.multipliers().items():
        parameter.data = torch.full((seeds,), {"log_temperature": -0.4, "log_multiplier": 0.0}[name]).double()
    zeros, index = torch.zeros(seeds, BATCH), torch.zeros(seeds, BATCH, dtype=torch.int64)
    batch = Batch(normal(STATE_DIM), normal(ACTION_DIM).tanh(), normal(), normal(STATE_DIM),
                  (normal() > -0.5).double(), normal(), zeros, index, index > 0)  # fmt: skip
    agent.updates = int(changes.get("updates", 0))  # type: ignore[call-overload]
    noise = {name: value.double() for name, value in agent.draw_noise(streams, BATCH).items()}
    return agent, batch, noise


def rows_of(batch: Batch, noise: dict[str, Tensor], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {name: value[seed] for name, value in batch.state_dict().items()}, {k: v[seed] for k, v in noise.items()}


def compare(agent: SAC, batch: Batch, noise: dict[str, Tensor], want) -> None:
    """Losses and gradients against `want(net, batch, noise) -> policy, critic, multipliers` of each seed."""
    losses = agent.losses(batch, noise)
    (losses.policy + losses.critic + losses.multipliers).sum().backward()
    for seed in range(agent.seeds):
        net = Reference(agent, seed)
        policy, critics, multipliers = want(net, *rows_of(batch, noise, seed))
        for got, loss in ((losses.policy, policy), (losses.critic, critics), (losses.multipliers, multipliers)):
            assert got[seed].item() == pytest.approx(loss.item(), rel=1e-9, abs=1e-12)
        got = {"policy.multiplier": agent.policy.log_std_multiplier.grad[seed]}
        got |= {
            "policy.offset": agent.policy.log_std_offset.grad[seed],
            "log_temperature": agent.log_temperature.grad[seed],
        }
        nets = {"policy": (agent.policy.net, seed)}
        nets |= {f"critic{e}": (agent.critics.net, seed * CRITICS + e) for e in range(CRITICS)}
        for name, (module, row) in nets.items():
            kinds = {"weight": module.weights, "bias": module.biases, "scale": module.norm_scales}
            for kind, parameters in (kinds | {"shift": module.norm_shifts}).items():
                got |= {f"{name}.{kind}{i}": parameter.grad[row] for i, parameter in enumerate(parameters)}
        gradients = net.gradients(policy + critics + multipliers)
        assert set(gradients) == set(got)
        for name, value in gradients.items():
            assert torch.allclose(got[name], value, rtol=1e-8, atol=1e-11), name


@pytest.mark.parametrize("entropy_backup", [True, False])
def test_rlpd_equals_its_formulas(entropy_backup: bool) -> None:
    agent, batch, noise = problem("rlpd", entropy_backup=entropy_backup, offline_steps=0, policy_every=1)

    def want(net: Reference, rows: dict[str, Tensor], numbers: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        policy, temperature = policy_and_temperature(net, rows, numbers, mean=True, target_entropy=-0.5 * ACTION_DIM)
        return policy, bellman(net, rows, numbers, entropy_backup, best=False), temperature

    compare(agent, batch, noise, want)


@pytest.mark.parametrize("pretraining", ["cql", "cal_ql"])
@pytest.mark.parametrize("phase", ["offline", "online", "online_max_backup"])
def test_wsrl_equals_its_formulas(phase: str, pretraining: str) -> None:
    config = preset("wsrl", "Hopper-v5").wsrl
    config.pretraining, config.max_target_backup = pretraining, phase == "online_max_backup"  # type: ignore[assignment]
    offline_steps = 5 if phase == "offline" else 0
    agent, batch, noise = problem("wsrl", wsrl=config, offline_steps=offline_steps, policy_every=1)

    def want(net: Reference, rows: dict[str, Tensor], numbers: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        policy, temperature = policy_and_temperature(net, rows, numbers, mean=False, target_entropy=-ACTION_DIM)
        critics = bellman(net, rows, numbers, entropy=False, best=phase != "online")
        if phase == "offline":
            critics = critics + 5.0 * conservative(net, rows, numbers, pretraining == "cal_ql")
        return policy, critics, temperature

    compare(agent, batch, noise, want)
    assert ("random" in noise) == (phase == "offline")


def test_members_are_drawn_without_replacement() -> None:
    agent, _, _ = problem("rlpd")
    streams = Streams([1, 2])
    counts = np.zeros((2, CRITICS))
    for _ in range(1000):
        subset = agent.subset(agent.draw_noise(streams, 1))
        assert subset.shape == (2, SUBSET) and (subset[:, 0] != subset[:, 1]).all()
        for s in range(2):
            counts[s, subset[s]] += 1
    # binomial with p = 2/5 and 1000 draws: spread 15.5
    assert np.abs(counts - 400).max() < 5 * 15.5


# What moves, and when.


def movements(algo: str, updates: int, **changes: object) -> dict[str, list[int]]:
    """For each network the numbers, from 1, of the updates in which it moved."""
    config = small(algo, **changes)
    streams = Streams([0, 1])
    agent = AGENTS[algo](STATE_DIM, ACTION_DIM, config, streams)
    generator = torch.Generator().manual_seed(0)
    shape = (2, BATCH)
    one, index = torch.randn(shape, generator=generator), torch.zeros(shape, dtype=torch.int64)
    states = torch.randn(*shape, STATE_DIM, generator=generator)
    actions = torch.tanh(torch.randn(*shape, ACTION_DIM, generator=generator))
    batch = Batch(states, actions, one, states.roll(1, 1), torch.ones(shape), one, one, index, index > 0)
    moved: dict[str, list[int]] = {}
    for update in range(1, updates + 1):
        state = agent.state_dict()
        before = {name: [t.clone() for t in module.values()] for name, module in state["modules"].items()}
        before |= {name: [value.clone()] for name, value in state["multipliers"].items()}
        agent.update(batch, agent.draw_noise(streams, BATCH))
        state = agent.state_dict()
        after = {name: list(module.values()) for name, module in state["modules"].items()}
        after |= {name: [value] for name, value in state["multipliers"].items()}
        for name in before:
            if any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True)):
                moved.setdefault(name, []).append(update)
    return moved


def test_td3_bc_delays_its_policy_and_its_targets() -> None:
    moved = movements("td3_bc", 6, offline_steps=4)
    assert moved.pop("critics") == [1, 2, 3, 4, 5, 6]
    assert moved == {name: [2, 4, 6] for name in ("policy", "targets", "policy_target")}


def test_rlpd_moves_its_policy_once_for_each_environment_step() -> None:
    # three updates a step; the offline phase is shorter than that, so it has no turn
    moved = movements("rlpd", 7, offline_steps=1)
    assert moved["critics"] == moved["targets"] == list(range(1, 8))
    assert moved["policy"] == moved["log_temperature"] == [4, 7]


def test_wsrl_moves_its_policy_at_each_offline_update() -> None:
    moved = movements("wsrl", 8, offline_steps=2)
    assert moved["critics"] == moved["targets"] == list(range(1, 9))
    assert moved["policy"] == moved["log_temperature"] == [1, 2, 5, 8]


@pytest.mark.parametrize("algo", ["iql", "awac"])
def test_others_move_everything_at_each_update(algo: str) -> None:
    moved = movements(algo, 3)
    names = {"policy", "critics", "targets"} | ({"value"} if algo == "iql" else set())
    assert moved == {name: [1, 2, 3] for name in names}


def test_wsrl_warms_up_with_the_frozen_policy_and_retains_no_data(hopper_data: Path, tmp_path: Path) -> None:
    config = small("wsrl", dataset=hopper_data, offline_steps=4, online_steps=12, learning_starts=8)
    trainer = Trainer(config, tmp_path, quiet=True)
    shares: list[tuple[int, float]] = []
    update = trainer.agent.update

    def noted(batch: Batch, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        shares.append((trainer.step, float(batch.online.float().mean())))
        return update(batch, noise)

    trainer.agent.update = noted  # type: ignore[method-assign]
    trainer.run()
    assert shares[:4] == [(step, 0.0) for step in range(4)]
    # the buffer has 8 transitions after the step that begins at 11
    assert shares[4:] == [(step, 1.0) for step in range(11, 16) for _ in range(3)]


def test_rlpd_samples_half_of_each_batch_from_the_data(hopper_data: Path, tmp_path: Path) -> None:
    trainer = Trainer(small("rlpd", dataset=hopper_data, offline_steps=0), tmp_path, quiet=True)
    trainer.run()
    batch = trainer.buffer.sample(trainer.experiment.streams, 16, trainer.config.offline_fraction)
    assert batch.online.sum(1).tolist() == [8]
    assert preset("rlpd", "Hopper-v5").offline_steps == 0


def test_exploration_of_a_deterministic_policy() -> None:
    agent = AGENTS["td3_bc"](STATE_DIM, ACTION_DIM, small("td3_bc"), Streams([0]))
    states, noise = torch.randn(1, 500, STATE_DIM), torch.randn(1, 500, ACTION_DIM)
    shift = agent.act(states, noise) - agent.act(states)
    assert torch.allclose(shift, 0.1 * noise, atol=1e-6)  # the policy is near 0, so nothing is cut
    assert agent.act(states, 100 * noise).abs().max() == 1.0


# Runs.

ALGORITHMS, BONUSES = typing.get_args(Algo), typing.get_args(BonusKind)


def test_every_name_has_an_algorithm() -> None:
    assert tuple(AGENTS) == ALGORITHMS


@pytest.mark.parametrize(("algo", "bonus"), list(itertools.product(ALGORITHMS, BONUSES)))
def test_every_algorithm_runs_with_every_bonus(algo: str, bonus: BonusKind, hopper_data: Path, tmp_path: Path) -> None:
    config = small(algo, dataset=hopper_data, offline_steps=2, online_steps=6, seeds=2, eval_every=100)
    config.bonus.kind = bonus
    trainer = Trainer(config, tmp_path, quiet=True)
    trainer.run()
    assert trainer.agent.updates == 2 + 6 * config.updates_per_step
    for name, module in trainer.agent.modules().items():
        assert all(torch.isfinite(p).all() for p in module.parameters()), name
    assert trainer.reward.active == (bonus != "none")


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_stopped_run_goes_on_as_if_it_had_not(algo: str, hopper_data: Path, tmp_path: Path) -> None:
    """Stopped amid a step's updates of the online phase, where the policy's turn is between two."""
    config = small(algo, dataset=hopper_data, offline_steps=3, online_steps=6, seeds=2, updates_per_step=3)
    whole = Trainer(config, tmp_path / "whole", quiet=True)
    whole.run()
    first = Trainer(config, tmp_path / "broken", quiet=True)
    update, left = first.agent.update, [3 + 7]

    def stopping(batch: Batch, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return update(batch, noise)

    first.agent.update = stopping  # type: ignore[method-assign]
    with pytest.raises(RunInterrupted):
        first.run()
    second = Trainer(config, tmp_path / "broken", checkpoint.load(tmp_path / "broken" / checkpoint.NAME), quiet=True)
    assert second.agent.updates == 10 and second.pending > 0
    second.run()
    for name, module in whole.agent.modules().items():
        for a, b in zip(module.parameters(), second.agent.modules()[name].parameters(), strict=True):
            assert torch.equal(a, b), name
    rows = [(tmp_path / name / "seed1" / "train.csv").read_text().splitlines() for name in ("whole", "broken")]
    strip = [[",".join(line.split(",")[:3] + line.split(",")[4:]) for line in lines] for lines in rows]  # not the speed
    assert strip[0] == strip[1]


def test_the_benchmark_times_every_algorithm_with_its_own_ensemble(tmp_path: Path) -> None:
    args = BenchArgs(algos=ALGORITHMS, batch_size=32, actions=2, policy_hidden=(16,), critic_hidden=(16,), device="cpu")
    args.threads = args.rounds = args.updates = args.warm_up = 1
    args.json = tmp_path / "bench.json"
    bench(args)
    records = json.loads(args.json.read_text())["records"]
    assert [(r["algo"], r["bonus"]) for r in records] == list(itertools.product(ALGORITHMS, ("none", "qcse")))
    assert all(record["updates_per_second"] > 0 for record in records)
    assert configuration("rlpd", "none", args).net.critics == 10
    args.corl, args.policy_hidden = tmp_path, (256, 256, 256)
    with pytest.raises(ConfigError, match="algos: got sac, iql, awac, td3_bc, rlpd, wsrl with --corl"):
        bench(args)


def test_the_benchmark_times_the_bonus_and_nothing_else() -> None:
    """With it or without, an update's other work is the same, that which depends on the data included."""
    args = BenchArgs(batch_size=32, actions=2, policy_hidden=(16,), critic_hidden=(16,), device="cpu")
    without, bonus = (our_step("cal_ql", kind, 1, args, torch.device("cpu")) for kind in ("none", "qcse"))
    for _ in range(3):
        metrics = bonus()
        assert metrics["bonus/mean"].abs() > 1e-3
        assert all(torch.equal(value, metrics[name]) for name, value in without().items())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"net.critics": 0}, "net.critics"),
        ({"critic_subset": 3}, "critic_subset"),
        ({"policy_every": 0}, "policy_every"),
        ({"iql.expectile": 1.0}, "iql.expectile"),
        ({"awac.temperature": 0.0}, "awac.temperature"),
        ({"td3_bc.noise_clip": -1.0}, "td3_bc.noise_clip"),
    ],
)
def test_values_that_cannot_work_are_refused(changes: dict[str, object], word: str) -> None:
    config = small("sac")
    config.dataset = Path("data.hdf5")
    for name, value in changes.items():
        owner, _, leaf = name.rpartition(".")
        setattr(getattr(config, owner) if owner else config, leaf, value)
    with pytest.raises(ConfigError, match=word.replace(".", r"\.")):
        validate(config)


def test_published_constants() -> None:
    rlpd, maze = preset("rlpd", "Hopper-v5"), preset("rlpd", "qcse/antmaze-umaze-v2")
    assert (rlpd.updates_per_step, rlpd.policy_every, rlpd.net.critics, rlpd.critic_subset) == (20, None, 10, 2)
    assert (maze.critic_subset, maze.entropy_backup, maze.net.critic_hidden) == (1, False, (256,) * 3)
    wsrl = preset("wsrl", "Hopper-v5")
    assert (wsrl.updates_per_step, wsrl.learning_starts, wsrl.offline_fraction) == (4, 5000, 0.0)
    assert preset("wsrl", "qcse/antmaze-umaze-v2").wsrl.pretraining == "cal_ql"
    iql = preset("iql", "qcse/antmaze-umaze-v2", "corl")
    assert (iql.iql.expectile, iql.iql.beta, iql.reward_bias) == (0.9, 10.0, -1.0)
    assert preset("awac", "qcse/pen-v1", "corl").awac.temperature == 0.1
    assert preset("td3_bc", "Hopper-v4", "corl").policy_every == 2
    with pytest.raises(ConfigError, match="'corl' has no constants for rlpd"):
        preset("rlpd", "qcse/antmaze-umaze-v2", "corl")

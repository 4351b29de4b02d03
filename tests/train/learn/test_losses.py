"""Losses and gradients: against CORL's own, recorded by `record_corl_vectors.py`, where it has the algorithm; those of
RLPD and WSRL against their papers' formulas."""

from __future__ import annotations

import json
from pathlib import Path

import loss_cases
import numpy as np
import pytest
import torch

from qcse.config import NetworkConfig, preset
from qcse.learn.agents import AGENTS
from qcse.learn.agents.sac import SAC
from qcse.learn.buffer import Batch
from qcse.learn.nets import tanh_gaussian_log_prob
from qcse.learn.streams import Streams
from qcse_ext import registration
from qcse_ext.nets.tanh_gaussian import tanh_gaussian

VECTORS = json.loads((Path(__file__).parent / "corl_vectors.json").read_text())["cases"]
RELATIVE = 1e-6


def build(case: loss_cases.Case, seeds: int) -> SAC:
    config = preset(case.algo, "Hopper-v5")
    config.net = NetworkConfig(*case.hidden)
    config.entropy_backup = case.entropy_backup
    config.cql.alpha, config.cql.actions, config.cql.temperature = case.alpha, loss_cases.ACTIONS, case.temperature
    config.cql.lagrange, config.cql.max_target_backup = case.lagrange, case.max_target_backup
    config.cql.importance_sampling, config.cql.clip_difference = case.importance_sampling, case.clip_difference
    config.iql.expectile, config.iql.beta = case.expectile, case.beta
    config.awac.temperature, config.td3_bc.alpha = case.temperature, case.alpha
    config.td3_bc.policy_noise = case.policy_noise
    agent = AGENTS[case.algo](loss_cases.STATE_DIM, loss_cases.ACTION_DIM, config, Streams(list(range(seeds))))
    weights = loss_cases.weights(case)
    nets = {"policy": agent.policy.net, "critic": agent.critics.net, "target": agent.targets.net}
    for name, module in agent.modules().items():
        module.double()
        if name in ("value", "policy_target"):
            nets[name] = getattr(module, "net", module)
    for prefix, net in nets.items():
        members = [weights[name] for name in weights if name.rstrip("12") == prefix]
        for layer in range(len(net.weights)):
            weight = torch.from_numpy(np.stack([m[layer][0] for m in members] * seeds))
            bias = torch.from_numpy(np.stack([m[layer][1][None] for m in members] * seeds))
            assert net.weights[layer].shape == weight.shape and net.biases[layer].shape == bias.shape
            net.weights[layer].data, net.biases[layer].data = weight, bias
    values = {"log_temperature": loss_cases.LOG_TEMPERATURE, "log_multiplier": loss_cases.LOG_MULTIPLIER}
    for name, parameter in agent.multipliers().items():
        parameter.data = torch.full((seeds,), values[name], dtype=torch.float64)
    if hasattr(agent.policy, "log_std"):
        agent.policy.log_std.data = torch.from_numpy(np.stack([loss_cases.log_std()[None]] * seeds))
    agent.updates = config.policy_every - 1  # the next update is one of the policy as well
    return agent


def tensors(arrays: dict[str, np.ndarray], seeds: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.stack([value] * seeds)) for name, value in arrays.items()}


def batch_of(seeds: int) -> Batch:
    columns = tensors(loss_cases.batch(), seeds)
    index = torch.zeros(seeds, loss_cases.BATCH, dtype=torch.int64)
    return Batch(**columns, bonus=torch.zeros_like(columns["rewards"]), index=index, online=index > 0)


def gradient_norms(agent: SAC, seed: int) -> dict[str, float]:
    """By the names of the recording."""
    norms = {}
    nets = {"policy": (agent.policy.net, seed)}
    nets |= {f"critic{member + 1}": (agent.critics.net, 2 * seed + member) for member in range(2)}
    if "value" in agent.modules():
        nets["value"] = agent.modules()["value"], seed
    for name, (net, row) in nets.items():
        for index, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            norms[f"{name}.weight{index}"], norms[f"{name}.bias{index}"] = (
                weight.grad[row].norm(),
                bias.grad[row].norm(),
            )
    for name, parameter in agent.policy.named_parameters():
        if name.startswith("log_std"):
            norms[f"policy.{name}"] = parameter.grad[seed].norm()
    for name, parameter in agent.multipliers().items():
        if parameter.grad is not None:
            norms[name] = parameter.grad[seed].abs()
    return {name: float(value) for name, value in norms.items()}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("name", loss_cases.CASES)
def test_losses_and_gradients_equal_corl(name: str, seeds: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:  # what runs where the fused step can't
        monkeypatch.setattr(registration, "has_kernel", lambda name, x: False)
    case, want = loss_cases.CASES[name], VECTORS[name]
    agent = build(case, seeds)
    losses = agent.losses(batch_of(seeds), tensors(loss_cases.noise(case), seeds))
    (losses.policy + losses.critic + losses.multipliers).sum().backward()
    for seed in range(seeds):
        got = {"policy": losses.policy, "critic": losses.critic}
        for loss, value in got.items():
            assert value[seed].item() == pytest.approx(want["losses"][loss], rel=RELATIVE), loss
        if "value" in want["losses"]:
            assert losses.metrics["loss/value"][seed].item() == pytest.approx(want["losses"]["value"], rel=RELATIVE)
        multipliers = want["losses"].get("temperature", 0.0) + want["losses"].get("multiplier", 0.0)
        assert losses.multipliers[seed].item() == pytest.approx(multipliers, rel=RELATIVE)
        norms = gradient_norms(agent, seed)
        assert set(norms) == set(want["gradient_norms"])
        assert norms == pytest.approx(want["gradient_norms"], rel=RELATIVE)


def test_weights_are_cut_on_some_rows_only() -> None:
    """Else the recorded cases of iql and awac would not tell a bound of the weights from none."""
    for name in ("iql_antmaze", "awac"):
        agent = build(loss_cases.CASES[name], 1)
        losses = agent.losses(batch_of(1), tensors(loss_cases.noise(loss_cases.CASES[name]), 1))
        mean = float(losses.metrics["policy/weight"])
        assert 100 / loss_cases.BATCH < mean < 99, (name, mean)


def test_the_bound_binds_on_some_rows_only() -> None:
    """Else the recorded Cal-QL case would not tell a bound from none."""
    plain, bounded = VECTORS["cql"]["losses"]["critic"], VECTORS["cal_ql"]["losses"]["critic"]
    assert bounded > plain * (1 + 1e-3)


def test_an_unknown_return_bounds_nothing() -> None:
    case = loss_cases.CASES["cal_ql"]
    batch = batch_of(1)
    batch.returns = torch.full_like(batch.returns, float("-inf"))
    losses = build(case, 1).losses(batch, tensors(loss_cases.noise(case), 1))
    assert losses.critic.item() == pytest.approx(VECTORS["cql"]["losses"]["critic"], rel=RELATIVE)
    assert float(losses.metrics["cal_ql/bound_share"]) == 0.0


def test_log_densities_equal_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    # Small enough that tanh stays clear of 1, where torch's density, which inverts it, loses its digits.
    mean, log_std = (0.3 * torch.randn(2, 7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    noise = torch.randn(2, 7, 5, 3, generator=generator, dtype=torch.float64)
    actions, log_prob = tanh_gaussian(mean, log_std, noise)
    base = torch.distributions.Normal(mean.unsqueeze(-2), log_std.exp().unsqueeze(-2))
    law = torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform())
    assert torch.allclose(log_prob, law.log_prob(actions).sum(-1), rtol=1e-6, atol=1e-6)
    single = tanh_gaussian_log_prob(mean, log_std, actions[:, :, 0])
    assert torch.allclose(single, log_prob[:, :, 0], rtol=1e-6, atol=1e-6)

"""Run CORL's own updates of each algorithm that it has and record their losses and gradient norms.

    python tests/train/learn/record_corl_vectors.py --corl PATH_OF_A_CORL_CHECKOUT

writes corl_vectors.json beside this file: numbers only. CORL's optional imports (d4rl, gym, pyrallis, wandb) are
replaced by empty stand-ins; its sampling takes the noise of `loss_cases.py`; its optimisers are replaced by ones that
note the gradients and change nothing, so that every loss is that of the given weights. All in float64.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import loss_cases
import numpy as np
import torch

HERE = Path(__file__).parent


def load_module(path: Path):
    for name in ("d4rl", "gym", "pyrallis", "wandb"):
        sys.modules[name] = MagicMock()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Noted:
    """Stands where an optimiser stood: notes each parameter's gradient norm when it would have moved them."""

    def __init__(self, named: dict[str, torch.nn.Parameter], notes: dict[str, float]) -> None:
        self.named, self.notes = named, notes

    def zero_grad(self) -> None:
        for parameter in self.named.values():
            parameter.grad = None

    def step(self) -> None:
        self.notes.update({name: float(p.grad.norm()) for name, p in self.named.items()})


def set_layers(net: torch.nn.Sequential, layers) -> None:
    for module, (weight, bias) in zip(net[::2], layers, strict=True):
        module.weight.data = torch.from_numpy(weight.T.copy())
        module.bias.data = torch.from_numpy(bias)


def names(net: torch.nn.Sequential, prefix: str) -> dict[str, torch.nn.Parameter]:
    out = {}
    for index, module in enumerate(net[::2]):
        out[f"{prefix}.weight{index}"], out[f"{prefix}.bias{index}"] = module.weight, module.bias
    return out


def run(corl: Path, case: loss_cases.Case) -> dict[str, dict[str, float]]:
    return {"iql": run_iql, "awac": run_awac, "td3_bc": run_td3_bc}.get(case.algo, run_sac)(corl, case)


def transition() -> list[torch.Tensor]:
    """States, actions, rewards, next states, ends, the scalars as columns: what CORL's updates take."""
    column = {name: torch.from_numpy(value) for name, value in loss_cases.batch().items()}
    parts = [column["observations"], column["actions"], column["rewards"].unsqueeze(1)]
    return [*parts, column["next_observations"], 1.0 - column["bootstrap"].unsqueeze(1)]


@contextmanager
def drawn(queue: list[np.ndarray]) -> Iterator[None]:
    """Normal.rsample and randn_like take these arrays, in this order, and all of them."""
    remaining = [torch.from_numpy(array) for array in queue]

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * remaining.pop(0).reshape(self.loc.shape)

    saved = torch.distributions.Normal.rsample, torch.randn_like
    torch.distributions.Normal.rsample, torch.randn_like = rsample, lambda like: remaining.pop(0).reshape(like.shape)
    try:
        yield
    finally:
        torch.distributions.Normal.rsample, torch.randn_like = saved
    assert not remaining, "CORL drew less noise than expected"


def run_iql(corl: Path, case: loss_cases.Case) -> dict[str, dict[str, float]]:
    module, weights = load_module(corl / "algorithms" / "finetune" / "iql.py"), loss_cases.weights(case)
    state_dim, action_dim = loss_cases.STATE_DIM, loss_cases.ACTION_DIM
    q, v = module.TwinQ(state_dim, action_dim), module.ValueFunction(state_dim)
    actor = module.GaussianPolicy(state_dim, action_dim, 1.0)
    agent = module.ImplicitQLearning(
        1.0, actor, torch.optim.Adam(actor.parameters()), q, None, v, None, iql_tau=case.expectile, beta=case.beta
    )
    nets = {"policy": actor.net, "critic1": q.q1, "critic2": q.q2, "value": v.v}
    nets |= {"target1": agent.q_target.q1, "target2": agent.q_target.q2}
    for name, net in nets.items():
        # CORL's Squeeze behind the last layer has no weights
        set_layers(linear(net.net), weights[name])
    actor.log_std.data = torch.from_numpy(loss_cases.log_std())
    notes: dict[str, float] = {}
    agent.actor_optimizer = Noted(names(linear(actor.net.net), "policy") | {"policy.log_std": actor.log_std}, notes)
    agent.actor_lr_schedule = MagicMock()
    both = names(linear(q.q1.net), "critic1") | names(linear(q.q2.net), "critic2")
    agent.q_optimizer, agent.v_optimizer = Noted(both, notes), Noted(names(linear(v.v.net), "value"), notes)
    log = agent.train(transition())
    losses = {"policy": log["actor_loss"], "critic": log["q_loss"] + log["value_loss"], "value": log["value_loss"]}
    return {"losses": losses, "gradient_norms": notes}


def run_awac(corl: Path, case: loss_cases.Case) -> dict[str, dict[str, float]]:
    module, weights = load_module(corl / "algorithms" / "finetune" / "awac.py"), loss_cases.weights(case)
    sizes = (loss_cases.STATE_DIM, loss_cases.ACTION_DIM, 256)
    actor, critics = module.Actor(*sizes), [module.Critic(*sizes) for _ in range(2)]
    agent = module.AdvantageWeightedActorCritic(
        actor, None, critics[0], None, critics[1], None, awac_lambda=case.temperature
    )
    nets = {"policy": actor, "critic1": critics[0], "critic2": critics[1]}
    nets |= {"target1": agent._target_critic_1, "target2": agent._target_critic_2}
    for name, net in nets.items():
        set_layers(linear(net._mlp), weights[name])
    actor._log_std.data = torch.from_numpy(loss_cases.log_std())
    notes: dict[str, float] = {}
    agent._actor_optimizer = Noted(names(linear(actor._mlp), "policy") | {"policy.log_std": actor._log_std}, notes)
    agent._critic_1_optimizer = Noted(names(linear(critics[0]._mlp), "critic1"), notes)
    agent._critic_2_optimizer = Noted(names(linear(critics[1]._mlp), "critic2"), notes)
    states, actions, rewards, next_states, ends = transition()
    noise = loss_cases.noise(case)
    with drawn([noise["backup"], noise["policy"]]):
        log = agent.update([states, actions, rewards, next_states, ends])
    return {"losses": {"policy": log["actor_loss"], "critic": log["critic_loss"]}, "gradient_norms": notes}


def run_td3_bc(corl: Path, case: loss_cases.Case) -> dict[str, dict[str, float]]:
    module, weights = load_module(corl / "algorithms" / "offline" / "td3_bc.py"), loss_cases.weights(case)
    state_dim, action_dim = loss_cases.STATE_DIM, loss_cases.ACTION_DIM
    actor = module.Actor(state_dim, action_dim, 1.0)
    critics = [module.Critic(state_dim, action_dim) for _ in range(2)]
    agent = module.TD3_BC(
        1.0, actor, None, critics[0], None, critics[1], None, alpha=case.alpha, policy_noise=case.policy_noise
    )
    nets = {"policy": actor, "policy_target": agent.actor_target, "critic1": critics[0], "critic2": critics[1]}
    nets |= {"target1": agent.critic_1_target, "target2": agent.critic_2_target}
    for name, net in nets.items():
        set_layers(linear(net.net), weights[name])
    notes: dict[str, float] = {}
    agent.actor_optimizer = Noted(names(linear(actor.net), "policy"), notes)
    agent.critic_1_optimizer = Noted(names(linear(critics[0].net), "critic1"), notes)
    agent.critic_2_optimizer = Noted(names(linear(critics[1].net), "critic2"), notes)
    agent.total_it = 1  # the next update is one of the policy as well
    with drawn([loss_cases.noise(case)["backup"]]):
        log = agent.train(transition())
    return {"losses": {"policy": log["actor_loss"], "critic": log["critic_loss"]}, "gradient_norms": notes}


def linear(net: torch.nn.Sequential) -> torch.nn.Sequential:
    """The network without what stands behind its last layer (a tanh, a squeeze)."""
    last = max(index for index, module in enumerate(net) if isinstance(module, torch.nn.Linear))
    return net[: last + 1]


def run_sac(corl: Path, case: loss_cases.Case) -> dict[str, dict[str, float]]:
    """SAC, CQL and Cal-QL."""
    calibrated = case.algo == "cal_ql"
    module = load_module(corl / "algorithms" / "finetune" / ("cal_ql.py" if calibrated else "cql.py"))
    weights = loss_cases.weights(case)
    state_dim, action_dim = loss_cases.STATE_DIM, loss_cases.ACTION_DIM
    critics = [module.FullyConnectedQFunction(state_dim, action_dim, n_hidden_layers=2) for _ in range(2)]
    actor = module.TanhGaussianPolicy(state_dim, action_dim, 1.0)
    for net, name in zip(critics, ("critic1", "critic2"), strict=True):
        set_layers(net.network, weights[name])
    set_layers(actor.base_network, weights["policy"])
    agent = (module.CalQL if calibrated else module.ContinuousCQL)(
        critics[0], None, critics[1], None, actor, None,
        target_entropy=-float(action_dim), discount=0.99, backup_entropy=case.entropy_backup, bc_steps=0,
        cql_n_actions=loss_cases.ACTIONS, cql_importance_sample=case.importance_sampling,
        cql_lagrange=case.lagrange, cql_target_action_gap=0.8, cql_temp=case.temperature, cql_alpha=case.alpha,
        cql_max_target_backup=case.max_target_backup,
        cql_clip_diff_min=-np.inf if case.clip_difference is None else case.clip_difference,
    )  # fmt: skip
    set_layers(agent.target_critic_1.network, weights["target1"])
    set_layers(agent.target_critic_2.network, weights["target2"])
    for part in (actor, *critics, agent.target_critic_1, agent.target_critic_2, agent.log_alpha, agent.log_alpha_prime):
        part.double()
    agent.log_alpha.constant.data.fill_(loss_cases.LOG_TEMPERATURE)
    agent.log_alpha_prime.constant.data.fill_(loss_cases.LOG_MULTIPLIER)
    notes: dict[str, float] = {}
    policy = names(actor.base_network, "policy")
    policy |= {"policy.log_std_multiplier": actor.log_std_multiplier.constant}
    policy |= {"policy.log_std_offset": actor.log_std_offset.constant}
    agent.actor_optimizer = Noted(policy, notes)
    agent.critic_1_optimizer = Noted(names(critics[0].network, "critic1"), notes)
    agent.critic_2_optimizer = Noted(names(critics[1].network, "critic2"), notes)
    agent.alpha_optimizer = Noted({"log_temperature": agent.log_alpha.constant}, notes)
    agent.alpha_prime_optimizer = Noted({"log_multiplier": agent.log_alpha_prime.constant}, notes)

    noise = loss_cases.noise(case)

    def uniform(self, low, high):
        assert (low, high) == (-1, 1)
        return self.copy_(torch.from_numpy(noise["random"]))

    losses: dict[str, float] = {}
    whole_q_loss = agent._q_loss

    def q_loss(*args):
        result = whole_q_loss(*args)
        losses["critic"] = result[0].item()
        losses["multiplier"] = result[2].item()
        return result

    agent._q_loss = q_loss
    returns = [torch.from_numpy(loss_cases.batch()["returns"]).unsqueeze(1)] if calibrated else []
    saved, torch.Tensor.uniform_ = torch.Tensor.uniform_, uniform
    agent.total_it = 1  # past the (zero) behaviour-cloning steps
    try:
        with drawn([noise[name] for name in ("policy", "backup", "current", "next")]):
            log = agent.train(transition() + returns)
    finally:
        torch.Tensor.uniform_ = saved
    losses |= {"policy": log["policy_loss"], "temperature": log["alpha_loss"]}
    return {"losses": losses, "gradient_norms": notes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corl", type=Path, required=True, help="a checkout of CORL")
    corl = parser.parse_args().corl
    torch.set_default_dtype(torch.float64)
    commit = subprocess.run(["git", "-C", corl, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    record = {"source": "CORL", "commit": commit.stdout.strip(), "torch": torch.__version__, "dtype": "float64"}
    record["cases"] = {name: run(corl, case) for name, case in loss_cases.CASES.items()}
    (HERE / "corl_vectors.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Inputs of the loss comparison: configurations, weights, a batch and the noise, all from seeded float64 numbers.

Both sides use them: `record_corl_vectors.py`, which runs CORL's own update, and `test_losses.py`, which runs ours.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

STATE_DIM, ACTION_DIM, BATCH, ACTIONS = 5, 3, 16, 4
LOG_TEMPERATURE, LOG_MULTIPLIER = -0.3, 0.4
# Hidden layers of policy and critics: CORL's classes have no others.
HIDDEN = {"iql": ((256,) * 2, (256,) * 2), "awac": ((256,) * 3, (256,) * 3), "td3_bc": ((256,) * 2, (256,) * 2)}
OF_SAC = ((256,) * 3, (256,) * 2)


@dataclass(frozen=True)
class Case:
    algo: str
    alpha: float = 5.0
    lagrange: bool = False
    max_target_backup: bool = True
    importance_sampling: bool = True
    clip_difference: float | None = None
    entropy_backup: bool = False
    temperature: float = 1.0
    expectile: float = 0.7
    beta: float = 3.0
    policy_noise: float = 0.2
    q_shift: float = 0.0  # added to every critic's last bias

    @property
    def hidden(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return HIDDEN.get(self.algo, OF_SAC)


CASES = {
    # CORL has no plain SAC: its CQL with a conservative weight of zero is one.
    "sac": Case("sac", alpha=0.0, max_target_backup=False, entropy_backup=True),
    "cql": Case("cql"),
    "cql_single_backup": Case("cql", max_target_backup=False, entropy_backup=True),
    "cql_no_importance_sampling": Case("cql", importance_sampling=False, temperature=0.7),
    "cql_lagrange_clipped": Case("cql", lagrange=True, clip_difference=5.5),
    "cal_ql": Case("cal_ql"),
    "cal_ql_lagrange_clipped": Case("cal_ql", lagrange=True, clip_difference=5.5),
    "iql": Case("iql"),
    "iql_antmaze": Case("iql", expectile=0.9, beta=10.0),
    "awac": Case("awac", temperature=1.0 / 3.0),
    "td3_bc": Case("td3_bc", alpha=2.5),
    # Noise that is cut more often than not, and values of both signs.
    "td3_bc_cut": Case("td3_bc", alpha=2.5, policy_noise=0.8, q_shift=-2.0),
}


def network(rng: np.random.Generator, sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight [in, out], bias [out]) of each layer."""
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers.append(
            (rng.standard_normal((fan_in, fan_out)) * math.sqrt(2.0 / fan_in), rng.standard_normal(fan_out) * 0.1)
        )
    return layers


def weights(case: Case) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Layers of every network, by name."""
    rng, algo = np.random.default_rng(1), case.algo
    policy_hidden, critic_hidden = case.hidden
    q = [STATE_DIM + ACTION_DIM, *critic_hidden, 1]
    policy = [STATE_DIM, *policy_hidden, ACTION_DIM if algo in HIDDEN else 2 * ACTION_DIM]
    nets = {"policy": network(rng, policy)}
    nets |= {name: network(rng, q) for name in ("critic1", "critic2", "target1", "target2")}
    for name in ("critic1", "critic2", "target1", "target2"):
        weight, bias = nets[name][-1]
        nets[name][-1] = weight, bias + case.q_shift
    if algo == "iql":
        nets["value"] = network(rng, [STATE_DIM, *critic_hidden, 1])
    if algo == "td3_bc":
        nets["policy_target"] = network(rng, policy)
    return nets


def log_std() -> np.ndarray:
    """Of the policies of iql and awac."""
    return np.random.default_rng(4).uniform(-1.0, 0.5, ACTION_DIM)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {
        "observations": rng.standard_normal((BATCH, STATE_DIM)),
        "actions": rng.uniform(-0.95, 0.95, (BATCH, ACTION_DIM)),
        "rewards": rng.standard_normal(BATCH),
        "next_observations": rng.standard_normal((BATCH, STATE_DIM)),
        "bootstrap": (rng.uniform(size=BATCH) > 0.3).astype(np.float64),
        "returns": rng.standard_normal(BATCH),  # about the size of Q, so that the bound binds on some rows only
    }


def noise(case: Case) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    if case.algo in HIDDEN:
        return {name: rng.standard_normal((BATCH, ACTION_DIM)) for name in ("policy", "backup")}
    backup = ACTIONS if case.max_target_backup else 1
    return {
        "policy": rng.standard_normal((BATCH, 1, ACTION_DIM)),
        "backup": rng.standard_normal((BATCH, backup, ACTION_DIM)),
        "random": rng.uniform(-1.0, 1.0, (BATCH, ACTIONS, ACTION_DIM)),
        "current": rng.standard_normal((BATCH, ACTIONS, ACTION_DIM)),
        "next": rng.standard_normal((BATCH, ACTIONS, ACTION_DIM)),
    }

"""Data sets for the benchmark: normal numbers, and real trajectories of seeded random policies in MuJoCo.

An episode has at most 1,000 steps and a policy of its own: a tanh-linear feedback with random gain and bias, plus a
sinusoid of random frequency, phase and amplitude per joint, plus noise. Rows are shuffled. The value of a row is its
discounted return, standardised. What was made is kept in a cache folder and is the same on every machine with the
same Gymnasium and MuJoCo.
"""

import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["KINDS", "cache_folder", "load"]

DISCOUNT = 0.99
TASKS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "ant": "Ant-v5", "ant29": "Ant-v5"}
#: name -> what it is
KINDS = {
    "normal": "independent standard normal states and values",
    "hopper": "Hopper-v5 trajectories, 11 dimensions, raw states",
    "halfcheetah": "HalfCheetah-v5 trajectories, 17 dimensions, raw states",
    "ant": "Ant-v5 trajectories, 105 dimensions, raw states",
    "ant29": "Ant-v5 trajectories, the 29 numbers of qpos and qvel",
    "hopper-vcse": "as hopper, states divided by their dimension (the scaling of VCSE's code)",
    "halfcheetah-vcse": "as halfcheetah, states divided by their dimension",
    "ant-vcse": "as ant, states divided by their dimension",
}


def cache_folder() -> pathlib.Path:
    """``$QCSE_CACHE``, else ``$XDG_CACHE_HOME/qcse``, else ``~/.cache/qcse``."""
    if "QCSE_CACHE" in os.environ:
        return pathlib.Path(os.environ["QCSE_CACHE"])
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "qcse"


def _trajectories(task: str, rows: int, seed: int, full_state: bool) -> tuple[np.ndarray, np.ndarray]:
    try:
        import gymnasium
    except ImportError as error:
        raise SystemExit("trajectory data need Gymnasium with MuJoCo: pip install 'gymnasium[mujoco]'") from error
    env: Any = gymnasium.make(task)
    rng = np.random.default_rng(seed)
    joints, inputs = env.action_space.shape[0], env.observation_space.shape[0]
    states: list[np.ndarray] = []
    returns: list[np.ndarray] = []
    total = 0
    while total < rows:
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        gain = rng.standard_normal((joints, inputs)) * rng.uniform(0, 1) / np.sqrt(inputs)
        bias, noise = 0.5 * rng.standard_normal(joints), rng.uniform(0, 0.5)
        amplitude, phase = rng.uniform(0, 1, joints), rng.uniform(0, 2 * np.pi, joints)
        frequency = rng.uniform(0.02, 0.5, joints)
        rewards = []
        for step in range(1000):
            if full_state:
                data = env.unwrapped.data
                states.append(np.concatenate([data.qpos, data.qvel]).astype(np.float32))
            else:
                states.append(observation.astype(np.float32))
            action = np.tanh(gain @ observation + bias) + amplitude * np.sin(frequency * step + phase)
            action = np.clip(action + noise * rng.standard_normal(joints), -1, 1)
            observation, reward, terminated, truncated, _ = env.step(action)
            rewards.append(float(reward))
            if terminated or truncated:
                break
        tail = np.empty(len(rewards))
        future = 0.0
        for i in range(len(rewards) - 1, -1, -1):
            tail[i] = future = rewards[i] + DISCOUNT * future
        returns.append(tail)
        total += len(rewards)
    env.close()
    order = rng.permutation(total)[:rows]
    values = np.concatenate(returns)[order]
    return np.stack(states)[order], ((values - values.mean()) / values.std()).astype(np.float32)


def load(
    kind: str, rows: int, dim: int | None = None, seed: int = 0, tell: Callable[[str], None] = print
) -> tuple[np.ndarray, np.ndarray]:
    """``(states [rows, D], values [rows])`` in float32.

    Args:
        kind: a key of KINDS.
        rows: how many points.
        dim: number of dimensions of normal data; trajectories have their own.
        seed: of the generator, and of the policies.
        tell: is told when something slow begins.
    """
    if kind == "normal":
        rng = np.random.default_rng(seed)
        return rng.standard_normal((rows, dim or 17), dtype=np.float32), rng.standard_normal(rows, dtype=np.float32)
    if kind not in KINDS:
        raise SystemExit(f"unknown data kind '{kind}'; known: {', '.join(KINDS)}")
    name, _, scaling = kind.partition("-")
    path = cache_folder() / f"{name}-{rows}-{seed}.npz"
    if not path.exists():
        tell(f"recording {rows} rows of {TASKS[name]}, once; kept in {path}")
        states, values = _trajectories(TASKS[name], rows, seed, name == "ant29")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez(file, states=states, values=values)
        os.replace(file.name, path)
    with np.load(path, allow_pickle=False) as archive:
        states, values = archive["states"], archive["values"]
    if scaling == "vcse":
        states = states / np.float32(states.shape[1])
    return states, values

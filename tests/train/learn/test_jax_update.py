"""The update in JAX that ours is timed against does the same mathematics: losses, gradients, parameters, in float64."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from qcse.bench import configuration, random_transitions
from qcse.config import TrainConfig
from qcse.config.commands import BenchArgs
from qcse.learn.agents import AGENTS
from qcse.learn.agents.sac import SAC, Noise
from qcse.learn.buffer import Batch
from qcse.learn.streams import Streams
from qcse_ext import registration

jax = pytest.importorskip("jax")

RELATIVE = 1e-9
SEEDS, UPDATES = 2, 3
ARGS = BenchArgs(
    state_dim=5, action_dim=3, batch_size=16, actions=4, policy_hidden=(16, 16, 16), critic_hidden=(16, 16)
)


@pytest.fixture(scope="module")
def jax_update() -> Iterator[ModuleType]:
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu" / "jax_update.py"
    spec = importlib.util.spec_from_file_location("jax_update", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["jax_update"] = module  # dataclasses look their module up there
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        jax.config.update("jax_enable_x64", before)
        del sys.modules["jax_update"]


@pytest.fixture(scope="module")
def both(jax_update: ModuleType) -> Callable[..., Any]:
    """(gradients, losses), (state, losses) of all seeds; compiled once for each case."""

    def of_one(state: Any, batch: Any, noise: Any, options: Any) -> tuple[Any, Any]:
        return jax_update.gradients(state, batch, noise, options), jax_update.step(state, batch, noise, options)

    def of_all(state: Any, batch: Any, noise: Any, options: Any) -> tuple[Any, Any]:
        return jax.vmap(lambda *given: of_one(*given, options))(state, batch, noise)

    return jax.jit(of_all, static_argnums=3)


def make_agent(config: TrainConfig) -> SAC:
    """In float64, with weights of which no two are alike: targets differ from critics, seeds from each other."""
    agent = AGENTS["cal_ql"](ARGS.state_dim, ARGS.action_dim, config, Streams(list(range(SEEDS))))
    agent.updates = config.offline_steps
    generator = torch.Generator().manual_seed(1)
    parameters = [p for module in agent.modules().values() for p in module.parameters()]
    for parameter in [*parameters, *agent.multipliers().values()]:
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data.double() + 0.2 * noise
    return agent


def make_batch(returns: float, generator: torch.Generator) -> Batch:
    """Random transitions; `returns` is added to their returns, and one of each seed's is unknown."""
    columns = random_transitions(SEEDS * ARGS.batch_size, ARGS, generator)
    columns = {name: c.view(SEEDS, ARGS.batch_size, *c.shape[1:]).double() for name, c in columns.items()}
    columns["returns"] += returns
    columns["returns"][:, 0] = float("-inf")
    index = torch.zeros(SEEDS, ARGS.batch_size, dtype=torch.int64)
    return Batch(**columns, index=index, online=index > 0)


def make_noise(agent: SAC, generator: torch.Generator) -> Noise:
    noise = {}
    for name, (law, shape) in agent.noise_shapes(ARGS.batch_size).items():
        draw = torch.randn if law == "normal" else torch.rand
        noise[name] = draw(SEEDS, *shape, generator=generator, dtype=torch.float64)
        if law == "uniform":
            noise[name] = 2.0 * noise[name] - 1.0
    return noise


def of_gradients(agent: SAC, jax_update: ModuleType) -> Any:
    """An agent's gradients in the form of JAX's parameters."""
    parameters = [*agent.policy.parameters(), *agent.critics.parameters(), *agent.multipliers().values()]
    held = [p.data for p in parameters]
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.data = parameter.grad
    tree = jax_update.params_of(agent)
    for parameter, data in zip(parameters, held, strict=True):
        parameter.data = data
    return tree


def assert_alike(got: Any, want: Any) -> None:
    """Up to RELATIVE times each array's largest number."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype == np.float64 and a.shape == b.shape
        assert np.abs(a - b).max() <= RELATIVE * np.abs(b).max()


CASES = {
    "preset": {},
    "lagrange": {"lagrange": True},
    "lagrange_clipped": {"lagrange": True, "clip_difference": 5.5, "temperature": 0.7},
    "single_backup": {"max_target_backup": False},
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("returns", "share"), [(-100.0, (0.0, 0.0)), (0.0, (0.1, 0.9)), (100.0, (0.9, 0.99))])
@pytest.mark.parametrize("name", CASES)
def test_losses_gradients_and_updates_equal_ours(
    name: str,
    returns: float,
    share: tuple[float, float],
    fused: bool,
    jax_update: ModuleType,
    both: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The share of actions below Cal-QL's bound is none, some, and all but those of the unknown return."""
    if not fused:  # what runs on a GPU
        monkeypatch.setattr(registration, "has_kernel", lambda name, x: False)
    config = configuration("cal_ql", "none", ARGS)
    for option, value in CASES[name].items():
        setattr(config.cql, option, value)
    agent, generator = make_agent(config), torch.Generator().manual_seed(2)
    options, state = jax_update.Options.of(config, ARGS.action_dim), jax_update.state_of(agent)
    for _ in range(UPDATES):
        batch, noise = make_batch(returns, generator), make_noise(agent, generator)
        theirs = jax_update.Batch(*(jax_update.copied(getattr(batch, n)) for n in jax_update.Batch._fields))
        draws = {n: jax_update.copied(value) for n, value in noise.items()}

        ours = agent.losses(batch, noise)
        agent.optimizer.zero_grad(set_to_none=True)
        (ours.policy + ours.critic + ours.multipliers).sum().backward()
        (grads, values), (state, again) = both(state, theirs, draws, options)
        want = [jax_update.copied(loss) for loss in (ours.policy, ours.critic, ours.multipliers)]
        assert_alike(list(values), want)
        assert_alike(grads, of_gradients(agent, jax_update))
        assert share[0] <= float(ours.metrics["cal_ql/bound_share"].mean()) <= share[1]

        agent.update(batch, noise)
        assert_alike(list(again), want)
        assert_alike(state.params, jax_update.params_of(agent))
        assert_alike(state.targets, jax_update.layers_of(agent.targets.net, agent.targets.members))


def test_the_whole_update_samples_and_learns(jax_update: ModuleType) -> None:
    """Rows come from the dataset first and then from the seed's own ring, each with its laws; the state moves."""
    config = configuration("cal_ql", "none", ARGS)
    options = jax_update.Options.of(config, ARGS.action_dim)
    generator = torch.Generator().manual_seed(3)
    dataset = random_transitions(50, ARGS, generator)
    online = {n: c.view(SEEDS, 20, *c.shape[1:]) for n, c in random_transitions(SEEDS * 20, ARGS, generator).items()}
    dataset["rewards"], online["rewards"] = torch.arange(50.0), 1000.0 + torch.arange(20.0 * SEEDS).view(SEEDS, 20)
    dataset, online = ({n: c.double() for n, c in side.items()} for side in (dataset, online))
    buffer, state = jax_update.buffer_of(dataset, online), jax_update.state_of(make_agent(config))

    axes = jax_update.Buffer(None, 0, None)
    draw = jax.jit(jax.vmap(lambda b, k: jax_update.sample(b, k, options, ARGS.state_dim), in_axes=(axes, 0)))
    seen: list[set[float]] = [set() for _ in range(SEEDS)]
    for number in range(50):
        batch = draw(buffer, jax.random.split(jax.random.key(number), SEEDS))
        columns = {name: np.asarray(column) for name, column in batch._asdict().items()}
        for seed in range(SEEDS):
            rewards = columns["rewards"][seed].astype(int)
            head, tail = rewards[: options.offline], rewards[options.offline :] - 1000 - 20 * seed
            for name, column in columns.items():
                want = np.concatenate([dataset[name].numpy()[head], online[name].numpy()[seed][tail]])
                assert np.array_equal(column[seed], want), name
            assert head.max() < 50 and 0 <= tail.min() and tail.max() < 20
            seen[seed].update(rewards.tolist())
    assert all(len(values) == 50 + 20 for values in seen)

    noise = jax_update.draw_noise(jax.random.key(0), options, np.float64)
    agent = make_agent(config)
    assert {n: v.shape for n, v in noise.items()} == {n: s for n, (_, s) in agent.noise_shapes(ARGS.batch_size).items()}
    assert abs(np.asarray(noise["random"])).max() <= 1.0 < abs(np.asarray(noise["current"])).max()

    before = jax_update.state_of(agent)
    update = jax_update.make_update(options, ARGS.state_dim)
    for _ in range(2):
        state, values = update(state, buffer)
    assert all(np.isfinite(np.asarray(loss)).all() and loss.shape == (SEEDS,) for loss in values)
    assert np.asarray(state.count).tolist() == [2] * SEEDS
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), (state.params, state.targets), (before.params, before.targets)
    )
    assert all(jax.tree.leaves(moved))
    assert not np.array_equal(jax.random.key_data(state.key), jax.random.key_data(before.key))


def test_what_is_not_written_in_jax_is_refused(jax_update: ModuleType) -> None:
    config = configuration("cal_ql", "qcse", ARGS)
    with pytest.raises(ValueError, match="bonus: got 'qcse'"):
        jax_update.Options.of(config, ARGS.action_dim)

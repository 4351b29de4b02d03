"""One online update of Cal-QL in JAX, what `qcse bench` times of ours in torch: the baseline from the other camp.

Sampling from a buffer on the device, policy, critics with the conservative term and Cal-QL's bound, policy, temperature
and multiplier losses, Adam, targets: one jitted function of a donated state, for all seeds at once. The mathematics is
that of `qcse.learn.agents.cal_ql.CalQL` (tests/train/learn/test_jax_update.py compares losses, gradients, updates); it
has no bonus.
Nothing is done here that ours leaves out, and less bookkeeping: the three losses are returned, other metrics are not
computed. As in ours the policy is evaluated once per state, a state's actions share its half of the critics' first
layer, and both critics are one product.

All functions but `state_of`, `buffer_of` and `make_update` treat one seed; `make_update` maps them over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from torch import Tensor

    from qcse.config import TrainConfig
    from qcse.learn.agents.sac import SAC
    from qcse.learn.nets import BatchedMLP

Array = jax.Array
Layers = list[tuple[Array, Array]]  # weight [in, out] and bias [1, out] of each; the critics' have [E, ...] before
Tree = dict[str, Any]
Precision = Literal["float32", "tf32"]

PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32"}  # JAX's own default on a GPU is TF32
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Options:
    """What `qcse.config.TrainConfig` says of an update; part of the compiled function."""

    batch_size: int
    offline: int  # rows of a batch that the dataset gives
    action_dim: int
    critics: int
    actions: int
    max_target_backup: bool
    alpha: float
    temperature: float
    clip_difference: float | None
    lagrange: bool
    target_gap: float
    target_entropy: float
    discount: float
    target_rate: float
    policy_lr: float
    critic_lr: float

    @classmethod
    def of(cls, config: TrainConfig, action_dim: int) -> Options:
        """ValueError where the configuration asks for something that is not written here."""
        cql, net = config.cql, config.net
        needed = {
            "algo": (config.algo, "cal_ql"),
            "bonus": (config.bonus.kind, "none"),
            "cql.importance_sampling": (cql.importance_sampling, True),
            "cql.calibration_online": (cql.calibration_online, "task_return"),
            "net.critic_layer_norm": (net.critic_layer_norm, False),
            "net.policy_layer_norm": (net.policy_layer_norm, False),
            "entropy_backup": (config.entropy_backup, False),
            "critic_subset": (config.critic_subset, None),
            "policy_value": (config.policy_value, "min"),
            "policy_every": (config.policy_every, 1),
            "behaviour_cloning_steps": (config.behaviour_cloning_steps, 0),
        }
        for name, (got, expected) in needed.items():
            if got != expected:
                raise ValueError(f"{name}: got {got!r}, but JAX's update is written for {expected!r} only")
        if config.offline_fraction is None:
            raise ValueError("offline_fraction: got None, but JAX's update needs a share of the batch")
        return cls(
            batch_size=config.batch_size,
            offline=round(config.offline_fraction * config.batch_size),
            action_dim=action_dim,
            critics=net.critics,
            actions=cql.actions,
            max_target_backup=cql.max_target_backup,
            alpha=cql.alpha,
            temperature=cql.temperature,
            clip_difference=cql.clip_difference,
            lagrange=cql.lagrange,
            target_gap=cql.target_gap,
            target_entropy=-float(action_dim) if config.target_entropy is None else config.target_entropy,
            discount=config.discount,
            target_rate=config.target_rate,
            policy_lr=config.policy_lr,
            critic_lr=config.critic_lr,
        )


class Batch(NamedTuple):
    """B transitions, as `qcse.learn.buffer.Batch`."""

    observations: Array  # [B, D]
    actions: Array  # [B, A]
    rewards: Array  # [B]
    next_observations: Array  # [B, D]
    bootstrap: Array  # [B]
    returns: Array  # [B], -inf where unknown


class Buffer(NamedTuple):
    """A transition is one row, its columns side by side, so that a batch is gathered at one go."""

    dataset: Array  # [N, columns], shared by all seeds
    online: Array  # [capacity, columns]
    held: Array  # int32: rows of `online` that are filled


class Losses(NamedTuple):
    policy: Array
    critic: Array
    multipliers: Array


class State(NamedTuple):
    """All that an update changes. `params`: policy, critics, log_temperature, and log_multiplier where it is learnt."""

    params: Tree
    targets: Layers
    first: Tree  # Adam's moments, like params
    second: Tree
    count: Array  # updates done
    key: Array


def policy_law(policy: Tree, states: Array) -> tuple[Array, Array]:
    """Mean and log standard deviation before the tanh, [B, A] each."""
    x = states
    for index, (weight, bias) in enumerate(policy["layers"]):
        x = x @ weight + bias
        if index + 1 < len(policy["layers"]):
            x = jax.nn.relu(x)
    mean, log_std = jnp.split(x, 2, axis=-1)
    log_std = policy["log_std_multiplier"] * log_std + policy["log_std_offset"]
    return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


def sample_actions(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """Actions [B, n, A] and their log-densities [B, n] from standard normal noise [B, n, A]."""
    mean, log_std = mean[:, None], log_std[:, None]
    before = mean + jnp.exp(log_std) * noise
    log_prob = -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2.0 * math.pi)
    log_prob = log_prob - 2.0 * (math.log(2.0) - before - jax.nn.softplus(-2.0 * before))
    return jnp.tanh(before), log_prob.sum(-1)


def critic_values(critics: Layers, states: Array, actions: Array) -> Array:
    """states [B, D], actions [B, n, A] -> [E, B, n]; the n actions share the state's half of the first layer."""

    def of_one(layers: Layers) -> Array:
        (weight, bias), *rest = layers
        state_dim = states.shape[-1]
        x = (states @ weight[:state_dim] + bias)[:, None] + actions @ weight[state_dim:]
        for weight, bias in rest:
            x = jax.nn.relu(x) @ weight + bias
        return x.squeeze(-1)

    return jax.vmap(of_one)(critics)


def losses(params: Tree, targets: Layers, batch: Batch, noise: Mapping[str, Array], options: Options) -> Losses:
    """The losses at given noise, named and shaped as `CalQL.draw_noise` does for one seed.

    No parameter gets gradient from more than one of them, so that the gradient of their sum is that of each.
    """
    stop = jax.lax.stop_gradient
    mean, log_std = policy_law(params["policy"], batch.observations)
    temperature = stop(jnp.exp(params["log_temperature"]))

    next_mean, next_log_std = policy_law(stop(params["policy"]), batch.next_observations)
    backup, _ = sample_actions(next_mean, next_log_std, noise["backup"])
    best = critic_values(targets, batch.next_observations, backup).min(0).max(-1)
    target = stop(batch.rewards + options.discount * batch.bootstrap * best)
    current, current_log_prob = sample_actions(stop(mean), stop(log_std), noise["current"])
    following, following_log_prob = sample_actions(next_mean, next_log_std, noise["next"])

    actions = jnp.concatenate([batch.actions[:, None], noise["random"], following, current], axis=1)
    q = critic_values(params["critics"], batch.observations, actions)
    n = options.actions
    q_data, q_uniform, q_policy = q[..., 0], q[..., 1 : n + 1], q[..., n + 1 :]
    q_policy = jnp.maximum(q_policy, batch.returns[:, None])
    # Minus the actions' log-densities; that of a uniform one in [-1, 1]^A is A log 1/2.
    density = jnp.concatenate([following_log_prob, current_log_prob], axis=1)
    out_of_data = jnp.concatenate([q_uniform + options.action_dim * math.log(2.0), q_policy - density], axis=-1)
    difference = options.temperature * jax.nn.logsumexp(out_of_data / options.temperature, axis=-1) - q_data
    if options.clip_difference is not None:
        difference = jnp.maximum(difference, options.clip_difference)
    gap = difference.mean()
    error = jnp.square(q_data - target).mean(-1).sum()

    multiplier_loss = jnp.zeros_like(error)
    weight: Array | float = options.alpha
    if options.lagrange:
        multiplier = jnp.minimum(jnp.exp(params["log_multiplier"]), 1e6)
        weight = options.alpha * stop(multiplier)
        multiplier_loss = -0.5 * multiplier * options.alpha * (stop(gap) - options.target_gap) * options.critics
        gap = gap - options.target_gap
    critic_loss = error + weight * gap * options.critics

    own, own_log_prob = sample_actions(mean, log_std, noise["policy"])
    gain = critic_values(stop(params["critics"]), batch.observations, own).min(0)
    policy_loss = (temperature * own_log_prob - gain).mean()
    temperature_loss = -params["log_temperature"] * (stop(own_log_prob) + options.target_entropy).mean()
    return Losses(policy_loss, critic_loss, temperature_loss + multiplier_loss)


def gradients(state: State, batch: Batch, noise: Mapping[str, Array], options: Options) -> tuple[Tree, Losses]:
    """Of the sum of all losses; and the losses."""

    def total(params: Tree) -> tuple[Array, Losses]:
        parts = losses(params, state.targets, batch, noise, options)
        return sum(parts), parts  # type: ignore[return-value]

    return jax.grad(total, has_aux=True)(state.params)


def step(state: State, batch: Batch, noise: Mapping[str, Array], options: Options) -> tuple[State, Losses]:
    """Adam's step on all losses, then the targets' step towards the new critics."""
    grads, parts = gradients(state, batch, noise, options)
    count = state.count + 1
    first = jax.tree.map(lambda m, g: BETA_1 * m + (1.0 - BETA_1) * g, state.first, grads)
    second = jax.tree.map(lambda v, g: BETA_2 * v + (1.0 - BETA_2) * jnp.square(g), state.second, grads)

    def move(rate: float, name: str) -> Any:
        def one(p: Array, m: Array, v: Array) -> Array:
            done = count.astype(p.dtype)
            spread = jnp.sqrt(v / (1.0 - BETA_2**done))
            return p - rate * (m / (1.0 - BETA_1**done)) / (spread + EPSILON)

        return jax.tree.map(one, state.params[name], first[name], second[name])

    rates = {"policy": options.policy_lr, "log_temperature": options.policy_lr}
    params = {name: move(rates.get(name, options.critic_lr), name) for name in state.params}
    targets = jax.tree.map(lambda t, p: t + options.target_rate * (p - t), state.targets, params["critics"])
    return State(params, targets, first, second, count, state.key), parts


def sample(buffer: Buffer, key: Array, options: Options, state_dim: int) -> Batch:
    """Uniform draws with replacement, the dataset's rows first."""
    offline = options.offline
    limits = jnp.where(jnp.arange(options.batch_size) < offline, buffer.dataset.shape[0], buffer.held)
    index = jax.random.randint(key, (options.batch_size,), 0, limits)
    rows = jnp.concatenate(
        [
            buffer.dataset.at[index[:offline]].get(mode="promise_in_bounds"),
            buffer.online.at[index[offline:]].get(mode="promise_in_bounds"),
        ]
    )
    return unpacked(rows, state_dim, options.action_dim)


def draw_noise(key: Array, options: Options, dtype: Any) -> dict[str, Array]:
    """Every random number of one update but the batch's rows: one draw for each law."""
    uniform, normal = jax.random.split(key)
    n, b, a = options.actions, options.batch_size, options.action_dim
    counts = {"policy": 1, "backup": n if options.max_target_backup else 1, "current": n, "next": n}
    drawn = jax.random.normal(normal, (b, sum(counts.values()), a), dtype)
    noise, begin = {}, 0
    for name, count in counts.items():
        noise[name] = drawn[:, begin : begin + count]
        begin += count
    return noise | {"random": jax.random.uniform(uniform, (b, n, a), dtype, -1.0, 1.0)}


def packed(columns: Mapping[str, Array]) -> Array:
    """Columns [..., rows(, width)] by the names of `Batch` -> [..., rows, widths together]."""
    wide = ("observations", "actions", "next_observations")
    parts = [columns[name] if name in wide else columns[name][..., None] for name in Batch._fields]
    return jnp.concatenate(parts, axis=-1)


def unpacked(rows: Array, state_dim: int, action_dim: int) -> Batch:
    widths = [state_dim, action_dim, 1, state_dim, 1, 1]
    ends = [sum(widths[: index + 1]) for index in range(len(widths) - 1)]
    parts = dict(zip(Batch._fields, jnp.split(rows, ends, axis=-1), strict=True))
    for name in ("rewards", "bootstrap", "returns"):
        parts[name] = parts[name].squeeze(-1)
    return Batch(**parts)


def copied(tensor: Tensor) -> Array:
    """A copy of its own: a donated array must not share memory with torch."""
    return jnp.array(tensor.detach().cpu().numpy(), copy=True)


def layers_of(net: BatchedMLP, members: int | None = None) -> Layers:
    """Weights [S, in, out] and biases [S, 1, out]; with members per seed [S, E, ...]."""

    def shaped(tensor: Tensor) -> Array:
        return copied(tensor if members is None else tensor.view(-1, members, *tensor.shape[1:]))

    return [(shaped(w), shaped(b)) for w, b in zip(net.weights, net.biases, strict=True)]


def params_of(agent: SAC) -> Tree:
    """The parameters of a CalQL agent, [S, ...] each."""
    params: Tree = {
        "policy": {
            "layers": layers_of(agent.policy.net),
            "log_std_multiplier": copied(agent.policy.log_std_multiplier),
            "log_std_offset": copied(agent.policy.log_std_offset),
        },
        "critics": layers_of(agent.critics.net, agent.critics.members),
        "log_temperature": copied(agent.log_temperature),
    }
    if agent.config.cql.lagrange:
        params["log_multiplier"] = copied(agent.multipliers()["log_multiplier"])
    return params


def state_of(agent: SAC, first_seed: int = 0) -> State:
    """The state of all S seeds of a CalQL agent that has not been updated yet."""
    params = params_of(agent)
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    keys = jax.vmap(jax.random.key)(jnp.arange(first_seed, first_seed + agent.seeds))
    targets = layers_of(agent.targets.net, agent.targets.members)
    return State(params, targets, zeros(), zeros(), jnp.zeros(agent.seeds, jnp.int32), keys)


def buffer_of(dataset: Mapping[str, Tensor], online: Mapping[str, Tensor]) -> Buffer:
    """From the dataset's columns [N, ...] and each seed's filled online rows [S, capacity, ...]."""
    sides = [packed({name: copied(columns[name]) for name in Batch._fields}) for columns in (dataset, online)]
    return Buffer(*sides, jnp.int32(sides[1].shape[1]))


def make_update(
    options: Options, state_dim: int, precision: Precision = "float32"
) -> Callable[[State, Buffer], tuple[State, Losses]]:
    """The jitted update of all seeds, which takes the state's memory over; the buffer stays."""

    def of_one(state: State, buffer: Buffer) -> tuple[State, Losses]:
        key, rows, draws = jax.random.split(state.key, 3)
        batch = sample(buffer, rows, options, state_dim)
        noise = draw_noise(draws, options, buffer.dataset.dtype)
        return step(state._replace(key=key), batch, noise, options)

    def update(state: State, buffer: Buffer) -> tuple[State, Losses]:
        with jax.default_matmul_precision(PRECISIONS[precision]):
            return jax.vmap(of_one, in_axes=(0, Buffer(None, 0, None)))(state, buffer)

    return jax.jit(update, donate_argnums=0)

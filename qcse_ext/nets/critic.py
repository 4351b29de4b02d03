"""Critics at many actions of each state: their values, and the conservative loss with its gradient.

Made for conservative Q-learning (CQL, arXiv 2006.04779; Cal-QL, arXiv 2303.05479), whose update evaluates some thirty
actions per state in each critic and differentiates through them. The CPU's kernels keep the activations of a chunk of
states in the second-level cache and never write them out, so a step costs little more than its multiply-adds. On a GPU
the products are cuBLAS's, and what lies between them is fused (:mod:`qcse_ext.nets.composed`).

Throughout, a critic is a fully connected ReLU network (:mod:`qcse_ext.nets.mlp`) with one output, whose first layer
reads the D numbers of the state, then the A of the action. E of them belong to each of S seeds.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qcse_ext import registration
from qcse_ext.arguments import expect, expect_float
from qcse_ext.knn import build_info
from qcse_ext.nets import composed
from qcse_ext.nets.mlp import Norm, check_layers, kernel_takes, later_layers, mlp, normalised, refuse_unless_taken
from qcse_ext.registration import compose, once_differentiable, refuse_forward_mode, register_fake, without_autograd

__all__ = [
    "conservative_loss",
    "conservative_loss_in_torch",
    "critic_mlp",
    "critic_mlp_in_torch",
    "critic_values",
    "has_bf16",
]


def has_bf16() -> bool:
    """Whether the CPU can round products to bfloat16, as ``bf16`` of the networks' functions asks its kernels to."""
    return bool(build_info()["cpu_bf16"])


# --- Values -----------------------------------------------------------------------------------------------------------


def critic_mlp(
    states: Tensor,
    actions: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bf16: bool = False,
    norms: Sequence[Norm] = (),
    subset: Tensor | None = None,
) -> Tensor:
    """Q_e(s, a) for n actions of each state, with the gradients of :func:`qcse_ext.nets.mlp.mlp`.

    The pairs of states and actions pass through the kernel of ``mlp`` where it takes them; everything else is
    :func:`critic_mlp_in_torch`'s.

    Args:
        states: ``[S, B, D]``; S seeds, B states.
        actions: ``[S, B, n, A]``.
        weights: one ``[S * E, inputs, outputs]`` for each layer; the first has D + A inputs, the last one output.
        biases: ``[S * E, 1, outputs]`` for each layer.
        bf16: round the factors of the products between hidden layers to bfloat16, and sum in float32 (float32 only).
        norms: scale and shift ``[S * E, 1, width]`` of each hidden layer's layer norm; empty: no norm.
        subset: ``[S, K]`` int64, the numbers of the K critics of each seed to evaluate; None: all.

    Returns:
        ``[S, E, B, n]``, with a subset ``[S, K, B, n]``.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it. A derivative that is not
            offered was asked for.
    """
    refuse_forward_mode("critic_mlp", states, actions, weights, biases, norms)
    weights, biases, norms = _members(weights, biases, norms, subset)
    if not kernel_takes("mlp_forward", weights, norms, bf16, states, actions):
        return critic_mlp_in_torch(states, actions, weights, biases, bf16, norms)
    seeds, batch, count, _ = actions.shape
    members = weights[0].shape[0] // seeds
    expect("critic_mlp", "actions", actions, (*states.shape[:2], *actions.shape[2:]), ("states", states))
    pairs = composed.pairs_of(states, actions, members)
    return mlp(pairs, weights, biases, bf16).view(seeds, members, batch, count)


def critic_mlp_in_torch(
    states: Tensor,
    actions: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bf16: bool = False,
    norms: Sequence[Norm] = (),
) -> Tensor:
    """Q_e(s, a) in plain torch, for any device, floating-point dtype and number of layers: the definition of
    :func:`critic_mlp` and :func:`critic_values`.

    The first layer is split in its state half and its action half, so that the n actions of a state share the former.
    """
    _check("critic_mlp", states, actions, weights, biases, bf16, norms)
    seeds, batch, count, action_dim = actions.shape
    nets, state_dim, width = weights[0].shape[0], states.shape[-1], weights[0].shape[-1]
    members = nets // seeds
    state_part = torch.baddbmm(biases[0], _repeated(states, members), weights[0][:, :state_dim])
    flat = _repeated(actions.reshape(seeds, batch * count, action_dim), members)
    action_part = torch.bmm(flat, weights[0][:, state_dim:])
    hidden = state_part.unsqueeze(2) + action_part.view(nets, batch, count, width)
    if len(weights) > 1:
        if norms:
            hidden = normalised(hidden.view(nets, batch * count, width), norms, 0)
        # In place on the sum itself: through a view, autograd would copy it forward and back.
        hidden = F.relu_(hidden).view(nets, batch * count, width)
        hidden = later_layers(hidden, weights, biases, bf16, norms)
    return hidden.view(seeds, members, batch, count)


@torch.no_grad()
def critic_values(
    states: Tensor,
    actions: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bf16: bool = False,
    norms: Sequence[Norm] = (),
    subset: Tensor | None = None,
) -> Tensor:
    """Q_e(s, a) for n actions of each state, without a gradient.

    A kernel computes it where one is registered for the device, for 2 to 16 layers without norms, float32 or float64,
    and at least one number in states and actions, on a GPU without `bf16`; :func:`critic_mlp_in_torch` everything else.

    Args:
        states, actions, weights, biases, bf16, norms, subset: as for :func:`critic_mlp`.

    Returns:
        ``[S, E, B, n]``, with a subset ``[S, K, B, n]``. No gradient flows.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it. So does an input with a
            forward-mode tangent.
    """
    refuse_forward_mode("critic_values", states, actions, weights, biases, norms)
    weights, biases, norms = _members(weights, biases, norms, subset)
    if not kernel_takes("critic_values", weights, norms, bf16, states, actions):
        return critic_mlp_in_torch(states, actions, weights, biases, bf16, norms)
    values: Tensor = torch.ops.qcse.critic_values(states, actions, weights, biases, bf16)
    return values


def _members(
    weights: list[Tensor], biases: list[Tensor], norms: Sequence[Norm], subset: Tensor | None
) -> tuple[list[Tensor], list[Tensor], Sequence[Norm]]:
    """The parameters of each seed's members [S, K]; all of them without a subset."""
    if subset is None:
        return weights, biases, norms
    members = weights[0].shape[0] // len(subset)
    first = torch.arange(len(subset), device=subset.device).unsqueeze(1) * members
    rows = (first + subset).flatten()

    def take(parameter: Tensor) -> Tensor:
        return parameter.index_select(0, rows)

    return [take(w) for w in weights], [take(b) for b in biases], [(take(a), take(b)) for a, b in norms]


def _repeated(x: Tensor, members: int) -> Tensor:
    """[S, rows, c] -> [S * members, rows, c]"""
    seeds, rows, channels = x.shape
    return x.unsqueeze(1).expand(seeds, members, rows, channels).reshape(seeds * members, rows, channels)


def _check(
    function: str,
    states: Tensor,
    actions: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bf16: bool,
    norms: Sequence[Norm],
) -> None:
    expect_float(function, "states", states, "[S, B, D]")
    expect_float(function, "actions", actions, "[S, B, n, A]")
    expect(function, "actions", actions, (*states.shape[:2], *actions.shape[2:]), ("states", states))
    inputs = states.shape[2] + actions.shape[3]
    check_layers(function, ("states", states), inputs, weights, biases, bf16, norms)
    if weights[-1].shape[-1] != 1:
        raise RuntimeError(f"qcse_ext.{function}: weights must end with one output, got {list(weights[-1].shape)}")
    if weights[0].shape[0] % max(len(states), 1):
        raise RuntimeError(
            f"qcse_ext.{function}: weights[0] must have shape [S * E, D + A, width] with S = {len(states)}, got "
            f"{list(weights[0].shape)}"
        )


# --- The conservative loss --------------------------------------------------------------------------------------------


def conservative_loss(
    states: Tensor,
    actions: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    target: Tensor,
    offsets: Tensor,
    bound: Tensor,
    weight: Tensor,
    temperature: float = 1.0,
    floor: float | None = None,
    include_data: bool = False,
    bf16: bool = False,
    norms: Sequence[Norm] = (),
    subset: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared Bellman error plus weighted conservative gap, with its gradient for the critics' parameters.

    Per seed and critic, with Q_0 the value of the data's action and means over the states::

        error = mean (Q_0 - target)^2
        v_j   = offsets_j + (max(Q_j, bound) if j > n else Q_j),  j = 1 .. 3n
        gap   = mean max(temperature * logsumexp(v / temperature) - Q_0, floor)
        loss  = sum over critics of error + weight * gap

    With a subset of K critics the sum over the gaps is estimated by E / K times the sum over theirs.

    A kernel computes it where one is registered for the device, for all critics of 2 to 16 layers without norms,
    float32 or float64, and at least one number in states and actions, on a GPU without `bf16`;
    :func:`conservative_loss_in_torch` everything else. The CPU's kernel computes the gradient together with the loss,
    and ``backward`` passes it on; equal results need an equal number of threads. A second derivative raises.

    Gradients flow to weights, biases and norms alone. A forward-mode derivative raises everywhere.

    Args:
        states: ``[S, B, D]``.
        actions: ``[S, B, 1 + 3n, A]``: the data's, n uniform ones, 2n of the policy.
        weights, biases, norms: the critics, as for :func:`critic_mlp`.
        target: ``[S, B]``, the Bellman target.
        offsets: ``[S, B, 3n]``, added inside the log-sum-exp: minus the actions' log-densities, or zero.
        bound: ``[S, B]``, lower bound of the policy actions' values (Cal-QL); -inf bounds nothing.
        weight: ``[S]``, factor of the gap.
        temperature: of the log-sum-exp, above 0.
        floor: lower bound of one state's gap; None: none.
        include_data: Q_0 is one more value in the log-sum-exp.
        bf16: round the factors of the products between hidden layers, forward and back, to bfloat16, and sum in
            float32 (float32 only). Everything else stays float32.
        subset: ``[S, K]`` int64, the numbers of the K critics of each seed whose gap is taken; None: all.

    Returns:
        loss ``[S]``, and ``[S, E]`` each, detached: ``error``, ``gap``, ``q_data``, ``q_uniform``, ``q_policy`` (means
        of Q over states and actions), ``bound_share`` (of policy actions whose Q lies below the bound). With a subset
        all but ``error`` and ``q_data`` are ``[S, K]``.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it. A derivative that is not
            offered was asked for.
    """
    refuse_forward_mode("conservative_loss", states, actions, weights, biases, target, offsets, bound, weight, norms)
    if subset is not None or not kernel_takes("conservative_loss", weights, norms, bf16, states, actions):
        return conservative_loss_in_torch(
            states, actions, weights, biases, target, offsets, bound, weight, temperature, floor, include_data, bf16,
            norms, subset,
        )  # fmt: skip
    floor = -math.inf if floor is None else floor
    function: Any = _ConservativeLoss
    settings: tuple[Any, ...] = (target, offsets, bound, weight, temperature, floor, include_data, bf16)
    # (Of every operator 'meta' has the shapes, which one of them is enough for.)
    if not states.is_meta and registration.has_kernel("conservative_head", states):
        _check_all(states, actions, weights, biases, settings)
        function, settings = _ConservativeSteps, settings[:-1]
    loss, statistics = function.apply(states, actions, settings, len(weights), *weights, *biases)
    return loss, dict(zip(("error", "gap", "q_data", "q_uniform", "q_policy", "bound_share"), statistics, strict=True))


def conservative_loss_in_torch(
    states: Tensor,
    actions: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    target: Tensor,
    offsets: Tensor,
    bound: Tensor,
    weight: Tensor,
    temperature: float = 1.0,
    floor: float | None = None,
    include_data: bool = False,
    bf16: bool = False,
    norms: Sequence[Norm] = (),
    subset: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`conservative_loss` as autograd differentiates it, from the values that :func:`critic_mlp` gives."""
    _check("conservative_loss", states, actions, weights, biases, bf16, norms)
    count = (actions.shape[2] - 1) // 3
    _check_settings(states, actions, target, offsets, bound, weight, temperature, count)
    states, actions, target, offsets, bound, weight = (
        t.detach() for t in (states, actions, target, offsets, bound, weight)
    )
    q = critic_mlp(states, actions, weights, biases, bf16, norms, subset)
    data, uniform, policy = q.split([1, count, 2 * count], dim=-1)
    bound = bound[:, None, :, None]
    values = torch.cat([uniform, torch.maximum(policy, bound)], dim=-1) + offsets.unsqueeze(1)
    if include_data:
        values = torch.cat([values, data], dim=-1)
    data = data.squeeze(-1)
    difference = torch.logsumexp(values / temperature, dim=-1) * temperature - data
    if floor is not None:
        difference = difference.clamp(min=floor)
    if subset is not None:  # the error is all critics'
        data = critic_mlp(states, actions[:, :, :1], weights, biases, bf16, norms).squeeze(-1)
    error, gap = (data - target.unsqueeze(1)).square().mean(-1), difference.mean(-1)
    statistics = {
        "error": error,
        "gap": gap,
        "q_data": data.mean(-1),
        "q_uniform": uniform.mean((-2, -1)),
        "q_policy": policy.mean((-2, -1)),
        "bound_share": (policy < bound).to(q.dtype).mean((-2, -1)),
    }
    loss = error.sum(-1) + weight * gap.mean(-1) * error.shape[1]
    return loss, {name: value.detach() for name, value in statistics.items()}


def _check_all(
    states: Tensor, actions: Tensor, weights: list[Tensor], biases: list[Tensor], settings: tuple[Any, ...]
) -> None:
    _check("conservative_loss", states, actions, weights, biases, False, ())
    target, offsets, bound, weight, temperature, *_ = settings
    _check_settings(states, actions, target, offsets, bound, weight, temperature, (actions.shape[2] - 1) // 3)


def _check_settings(
    states: Tensor,
    actions: Tensor,
    target: Tensor,
    offsets: Tensor,
    bound: Tensor,
    weight: Tensor,
    temperature: float,
    count: int,
) -> None:
    function, like, (seeds, batch, _) = "conservative_loss", ("states", states), states.shape
    if count < 1 or actions.shape[2] != 1 + 3 * count:
        raise RuntimeError(
            f"qcse_ext.{function}: actions must have shape [S, B, 1 + 3n, A] with n at least 1, got "
            f"{list(actions.shape)}"
        )
    if not temperature > 0:
        raise RuntimeError(f"qcse_ext.{function}: temperature must be above 0, got {temperature}")
    expect(function, "target", target, (seeds, batch), like)
    expect(function, "offsets", offsets, (seeds, batch, 3 * count), like)
    expect(function, "bound", bound, (seeds, batch), like)
    expect(function, "weight", weight, (seeds,), like)


# --- The kernels' gradient and shapes ---------------------------------------------------------------------------------


class _ConservativeLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, actions: Tensor, settings: tuple[Any, ...], layers: int, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights, biases = list(parameters[:layers]), list(parameters[layers:])
        statistics, weight_grads, bias_grads = torch.ops.qcse.conservative_loss(
            states, actions, weights, biases, *settings
        )
        ctx.save_for_backward(*weight_grads, *bias_grads)
        ctx.mark_non_differentiable(statistics)
        loss = (statistics[0] + settings[3].unsqueeze(-1) * statistics[1]).sum(-1)
        return loss, statistics

    @staticmethod
    @once_differentiable("conservative_loss")
    def backward(ctx: Any, loss_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        factor = loss_grad.repeat_interleave(grads[0].shape[0] // loss_grad.shape[0]).view(-1, 1, 1)
        return None, None, None, None, *(grad * factor for grad in grads)


class _ConservativeSteps(torch.autograd.Function):
    """The same where the operators of :mod:`qcse_ext.nets.pointwise` are: the loss's gradient comes on the way back
    alone, and so needs no pass of its own over those of the parameters."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, actions: Tensor, settings: tuple[Any, ...], layers: int, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights, biases = parameters[:layers], parameters[layers:]
        loss, statistics, step = composed.conservative_forward(states, actions, weights, biases, *settings)
        ctx.save_for_backward(*step.tensors(), *weights, *biases)
        ctx.layers = layers
        ctx.set_materialize_grads(False)  # none of the statistics has one
        ctx.mark_non_differentiable(statistics)
        return loss, statistics

    @staticmethod
    @once_differentiable("conservative_loss")
    def backward(ctx: Any, loss_grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if loss_grad is None:  # to `composed` that would be a gradient of 1
            return tuple(None for _ in ctx.needs_input_grad)
        tensors = ctx.saved_tensors
        (q_grad, states, actions, *hidden), parameters = tensors[: -2 * ctx.layers], tensors[-2 * ctx.layers :]
        weights, biases = parameters[: ctx.layers], parameters[ctx.layers :]
        step = composed.ConservativeStep(q_grad, states, actions, hidden)
        weight_grads, bias_grads = composed.conservative_backward(step, weights, biases, loss_grad)
        return None, None, None, None, *weight_grads, *bias_grads


# The gradient of the loss is passed on by _ConservativeLoss or _ConservativeSteps.
without_autograd("critic_values", "conservative_loss")


@register_fake("critic_values")
def _critic_values_fake(
    states: Tensor, actions: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool = False
) -> Tensor:
    seeds, batch, count, _ = actions.shape
    return states.new_empty(seeds, weights[0].shape[0] // seeds, batch, count)


@register_fake("conservative_loss")
def _conservative_loss_fake(
    states: Tensor, actions: Tensor, weights: list[Tensor], biases: list[Tensor], *_: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    seeds = states.shape[0]
    statistics = states.new_empty(6, seeds, weights[0].shape[0] // seeds)
    return statistics, [w.new_empty(w.shape) for w in weights], [b.new_empty(b.shape) for b in biases]


# --- On a GPU ---------------------------------------------------------------------------------------------------------


def _critic_values_composed(
    states: Tensor, actions: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool = False
) -> Tensor:
    refuse_unless_taken("critic_values", weights, bf16, states, actions)
    _check("critic_values", states, actions, weights, biases, bf16, ())
    return composed.critic_values(states, actions, weights, biases)


def _conservative_loss_composed(
    states: Tensor, actions: Tensor, weights: list[Tensor], biases: list[Tensor], *settings: Any, bf16: bool = False
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    settings, bf16 = settings[:7], settings[7] if len(settings) > 7 else bf16
    refuse_unless_taken("conservative_loss", weights, bf16, states, actions)
    _check_all(states, actions, weights, biases, settings)
    return composed.conservative_loss(states, actions, weights, biases, *settings)


compose("critic_values", "CUDA", "action_relu", _critic_values_composed)
compose("conservative_loss", "CUDA", "conservative_head", _conservative_loss_composed)

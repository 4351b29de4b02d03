"""The fused critic step against the same formulas in plain torch with autograd, in float64 and float32."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
import torch
from networks import error_of, in_double, layers_in_torch
from torch import Tensor

from qcse_ext.nets.critic import (
    conservative_loss,
    conservative_loss_in_torch,
    critic_mlp,
    critic_mlp_in_torch,
    critic_values,
    has_bf16,
)
from qcse_ext.nets.mlp import mlp


def problem(seed: int, dtype: torch.dtype = torch.float64, large: bool = False) -> dict[str, object]:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    seeds, members = rng.randint(1, 3), rng.randint(1, 3)
    batch, n = (256, 10) if large else (rng.randint(1, 37), rng.randint(1, 6))
    state_dim, action_dim = rng.randint(1, 40), rng.randint(1, 20)
    hidden = [256, 256] if large else [rng.randint(1, 70) for _ in range(rng.randint(1, 4))]
    sizes = [state_dim + action_dim, *hidden, 1]
    pairs = list(itertools.pairwise(sizes))
    bound = normal(seeds, batch)
    bound[torch.rand(seeds, batch, generator=generator) < 0.3] = float("-inf")
    return {
        "states": normal(seeds, batch, state_dim),
        "actions": normal(seeds, batch, 1 + 3 * n, action_dim),
        "weights": [normal(seeds * members, i, o, scale=(2.0 / i) ** 0.5) for i, o in pairs],
        "biases": [normal(seeds * members, 1, o, scale=0.1) for _, o in pairs],
        "target": normal(seeds, batch),
        "offsets": normal(seeds, batch, 3 * n),
        "bound": bound,
        "weight": normal(seeds).abs(),
        "temperature": rng.choice([1.0, 0.6]),
        "floor": rng.choice([None, 0.5]),
        "include_data": rng.random() < 0.5,
    }


def values_in_torch(
    states: Tensor, actions: Tensor, weights: list[Tensor], biases: list[Tensor], bf16: bool = False
) -> Tensor:
    seeds, batch, count, _ = actions.shape
    members = weights[0].shape[0] // seeds
    x = torch.cat([states.unsqueeze(2).expand(-1, -1, count, -1), actions], -1).flatten(1, 2)
    x = x.repeat_interleave(members, 0)
    return layers_in_torch(x, weights, biases, bf16).view(seeds, members, batch, count)


def loss_in_torch(p: dict[str, object]) -> tuple[Tensor, dict[str, Tensor]]:
    q = values_in_torch(p["states"], p["actions"], p["weights"], p["biases"], p.get("bf16", False))
    n = (q.shape[-1] - 1) // 3
    bound = p["bound"][:, None, :, None]
    data, uniform, policy = q[..., 0], q[..., 1 : n + 1], q[..., n + 1 :]
    v = torch.cat([uniform, torch.maximum(policy, bound)], -1) + p["offsets"].unsqueeze(1)
    if p["include_data"]:
        v = torch.cat([v, data.unsqueeze(-1)], -1)
    difference = torch.logsumexp(v / p["temperature"], -1) * p["temperature"] - data
    if p["floor"] is not None:
        difference = difference.clamp(min=p["floor"])
    error, gap = (data - p["target"].unsqueeze(1)).square().mean(-1), difference.mean(-1)
    statistics = {"error": error, "gap": gap, "q_data": data.mean(-1), "q_uniform": uniform.mean((-2, -1))}
    statistics |= {"q_policy": policy.mean((-2, -1)), "bound_share": (policy < bound).to(q.dtype).mean((-2, -1))}
    return (error + p["weight"].unsqueeze(-1) * gap).sum(-1), statistics


def gradients(loss: Tensor, p: dict[str, object]) -> list[Tensor]:
    factors = torch.arange(1, len(loss) + 1, dtype=loss.dtype)  # each seed's gradient by its own factor
    return list(torch.autograd.grad((loss * factors).sum(), p["weights"] + p["biases"]))


def test_values_loss_and_gradient_equal_autograd(instruction_set: str, threads: int) -> None:
    for seed in range(25):
        p = problem(seed)
        for parameter in p["weights"] + p["biases"]:
            parameter.requires_grad_(True)
        net = (p["states"], p["actions"], p["weights"], p["biases"])
        want_loss, want = loss_in_torch(p)
        loss, got = conservative_loss(**p)
        assert torch.allclose(critic_values(*net), values_in_torch(*net), rtol=1e-10, atol=1e-10)
        assert torch.allclose(loss, want_loss, rtol=1e-10, atol=1e-10), seed
        for name, value in want.items():
            assert torch.allclose(got[name], value, rtol=1e-10, atol=1e-10), (seed, name)
        for a, b in zip(gradients(loss, p), gradients(want_loss, p), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-10), seed


def test_float32_at_full_size(instruction_set: str) -> None:
    p = problem(0, torch.float32, large=True)
    exact = in_double(p)
    for parameter in p["weights"] + p["biases"] + exact["weights"] + exact["biases"]:
        parameter.requires_grad_(True)
    loss, _ = conservative_loss(**p)
    want, _ = loss_in_torch(exact)
    assert torch.allclose(loss.double(), want, rtol=1e-5)
    for a, b in zip(gradients(loss, p), gradients(want, exact), strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm()


def switch_off(p: dict[str, object], dead: str, seed: int) -> None:
    """Hidden units that are zero whatever the action."""
    if dead == "some units":
        for bias in p["biases"][:-1]:
            bias[..., ::3] = -1e6
    elif dead == "whole layers":
        p["biases"][seed % (len(p["biases"]) - 1)][0] = -1e6  # of the first critic
    else:
        p["weights"][0][:, 0], p["states"][:, ::2, 0] = -1e6, 1.0


DEAD = ["some units", "whole layers", "units of some states"]


@pytest.mark.parametrize("dead", DEAD)
def test_columns_of_zeros_are_left_out_of_products_exactly(instruction_set: str, threads: int, dead: str) -> None:
    for seed in range(30, 45):
        p = problem(seed)
        if len(p["biases"]) < 3:
            continue
        switch_off(p, dead, seed)
        for parameter in p["weights"] + p["biases"]:
            parameter.requires_grad_(True)
        want_loss, _ = loss_in_torch(p)
        loss, _ = conservative_loss(**p)
        assert torch.allclose(loss, want_loss, rtol=1e-10, atol=1e-10), seed
        for a, b in zip(gradients(loss, p), gradients(want_loss, p), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-10), seed


def test_not_a_number_shows(instruction_set: str) -> None:
    p = problem(31)
    p["weights"][0][0, 0, 0] = math.nan
    values = critic_values(p["states"], p["actions"], p["weights"], p["biases"])
    seeds, members = values.shape[:2]
    values = values.view(seeds * members, -1).isnan()
    assert values[0].all() and not values[1:].any()


@pytest.mark.parametrize("hidden", [(17, 5), (33, 5), (17, 17, 5), (1, 3), (65, 40, 9)])
@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_alone(
    hidden: tuple[int, ...], precision: str, bad: float, instruction_set: str
) -> None:
    """Whatever the width of the layers, and so what lies in their panels behind the last unit."""
    bf16 = precision == "bf16"
    if bf16 and not has_bf16():
        pytest.skip("this CPU lacks AVX512-BF16 or AVX512-VBMI2")
    dtype = torch.float64 if precision == "float64" else torch.float32
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    pairs = list(itertools.pairwise((6, *hidden, 1)))
    states, actions = normal(1, 8, 4), normal(1, 8, 12, 2)
    weights, biases = [normal(1, i, o) for i, o in pairs], [normal(1, 1, o) for _, o in pairs]
    actions[0, 2, 3, 0] = bad
    values = critic_values(states, actions, weights, biases, bf16)
    others = torch.ones_like(values, dtype=torch.bool)
    others[..., 2, 3] = False
    exact = [t.double() for t in weights], [t.double() for t in biases]
    want = values_in_torch(states.double(), actions.double(), *exact, bf16).to(dtype)
    tolerance = {"float32": 1e-4, "float64": 1e-10, "bf16": 2e-2}[precision]
    torch.testing.assert_close(values[others], want[others], rtol=tolerance, atol=tolerance)
    assert not values[~others].isfinite().any() or math.isinf(bad)


def test_too_many_actions_of_one_state() -> None:
    one = torch.zeros(1, 1, 1)
    weights, biases = [torch.zeros(1, 2, 4096), torch.zeros(1, 4096, 1)], [torch.zeros(1, 1, 4096), one]
    with pytest.raises(RuntimeError, match=r"actions must be at most 131072 per state at a hidden width of 4096"):
        critic_values(one, torch.zeros(1, 1, 131073, 1), weights, biases)


@pytest.mark.skipif(not has_bf16(), reason="this CPU lacks AVX512-BF16 or AVX512-VBMI2")
def test_bf16_rounds_the_factors_between_hidden_layers_and_nothing_else(threads: int) -> None:
    rounded_anywhere = False
    cases = [*((seed, None) for seed in [*range(8), "large"]), *itertools.product(range(30, 36), DEAD)]
    for seed, dead in cases:
        p = problem(0, torch.float32, large=True) if seed == "large" else problem(seed, torch.float32)
        if dead is not None:
            switch_off(p, dead, seed)
        exact, rounded = in_double(p), in_double(p) | {"bf16": True}
        for parameters in (p, exact, rounded):
            for parameter in parameters["weights"] + parameters["biases"]:
                parameter.requires_grad_(True)
        net = (p["states"], p["actions"], p["weights"], p["biases"])
        loss, statistics = conservative_loss(**p, bf16=True)
        want_loss, want = loss_in_torch(rounded)
        got, wanted = gradients(loss, p), gradients(want_loss, rounded)
        # A float32 sum may round to the neighbouring bfloat16, or fall on the other side of a ReLU or a clamp.
        assert error_of(got, wanted) < (4e-3 if dead is None else 6e-3), (seed, dead)
        assert torch.allclose(loss.double(), want_loss, rtol=1e-3), seed
        assert error_of([statistics["q_data"]], [want["q_data"]]) < 1e-3, seed
        plain = values_in_torch(*(exact[name] for name in ("states", "actions", "weights", "biases")))
        values = values_in_torch(*(rounded[name] for name in ("states", "actions", "weights", "biases")), bf16=True)
        found = critic_values(*net, bf16=True)
        assert error_of([found], [values]) < 1e-3, seed
        if len(p["weights"]) == 2:  # one hidden layer: nothing is rounded
            assert error_of([found], [plain]) < 1e-5, seed
        elif seed == "large":
            rounded_anywhere = error_of([found], [plain]) > 3 * error_of([found], [values])
    assert rounded_anywhere
    with pytest.raises(RuntimeError, match="states must be float32 where bf16"):
        conservative_loss(**problem(0), bf16=True)


def test_equal_calls_give_equal_bits(threads: int) -> None:
    p = problem(3, torch.float32, large=True)
    for parameter in p["weights"] + p["biases"]:
        parameter.requires_grad_(True)
    first, second = ([loss := conservative_loss(**p)[0], *gradients(loss, p)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_inputs_may_be_strided() -> None:
    p = problem(4)
    want, _ = conservative_loss(**p)
    p["states"] = p["states"].transpose(1, 2).contiguous().transpose(1, 2)
    p["actions"] = p["actions"].transpose(2, 3).contiguous().transpose(2, 3)
    p["weights"] = [w.transpose(1, 2).contiguous().transpose(1, 2) for w in p["weights"]]
    assert torch.equal(conservative_loss(**p)[0], want)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("states", lambda p: p["states"][0], r"states must have shape \[S, B, D\]"),
        ("states", lambda p: p["states"].half(), r"actions must have the dtype of states \(float16\), got float64"),
        ("actions", lambda p: p["actions"][:, :, :-1], r"1 \+ 3n"),
        ("actions", lambda p: p["actions"].float(), "actions must have the dtype"),
        ("weights", lambda p: p["weights"][:1], "weights and biases must be as many"),
        ("weights", lambda p: [p["weights"][0][:, 1:], *p["weights"][1:]], r"weights\[0\] must have shape"),
        ("biases", lambda p: [p["biases"][0][..., 1:], *p["biases"][1:]], r"biases\[0\] must have shape"),
        ("target", lambda p: p["target"][:, 1:], "target must have shape"),
        ("offsets", lambda p: p["offsets"][..., 1:], "offsets must have shape"),
        ("weight", lambda p: p["weight"][1:], "weight must have shape"),
        ("temperature", lambda p: 0.0, "temperature must be above 0"),
    ],
)
@pytest.mark.parametrize("function", [conservative_loss, conservative_loss_in_torch])
def test_errors_name_the_argument(name: str, change, message: str, function: Callable[..., object]) -> None:
    p = problem(5)
    p[name] = change(p)
    with pytest.raises(RuntimeError, match=message):
        function(**p)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, a, w, b: (s.half(), a, w, b), "states must be float32 or float64"),
        (lambda s, a, w, b: (s, a, w[:1], b[:1]), "2 to 16"),
        (lambda s, a, w, b: (s[:, :0], a[:, :0], w, b), "not be empty"),
    ],
)
def test_the_kernel_refuses_what_is_the_definitions(change, message: str) -> None:
    p = problem(5)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.qcse.critic_values(*change(p["states"], p["actions"], p["weights"], p["biases"]))


def members(p: dict[str, object], subset: Tensor) -> dict[str, list[Tensor]]:
    """The parameters of the critics of a subset [S, K], by themselves."""
    count = p["weights"][0].shape[0] // len(subset)
    rows = [s * count + int(e) for s, chosen in enumerate(subset) for e in chosen]
    return {name: [t[rows] for t in p[name]] for name in ("weights", "biases")}


def subset_of(p: dict[str, object]) -> Tensor:
    seeds = len(p["states"])
    return torch.stack([torch.randperm(p["weights"][0].shape[0] // seeds)[:1] for _ in range(seeds)])


def test_values_by_either_way_are_the_same(without_kernels: Callable[[], None]) -> None:
    for switch in (lambda: None, without_kernels):
        switch()
        for seed in range(20):
            p = problem(seed)
            net = (p["states"], p["actions"], p["weights"], p["biases"])
            for t in (*net[:2], *net[2], *net[3]):
                t.requires_grad_(True)
            want = values_in_torch(*net)
            q = critic_mlp(*net)
            assert torch.allclose(q, want, rtol=1e-10, atol=1e-10), seed
            inputs = [*net[:2], *net[2], *net[3]]
            factors = torch.linspace(-1.0, 2.0, q.numel(), dtype=q.dtype).view(q.shape)
            for a, b in zip(*(torch.autograd.grad((x * factors).sum(), inputs) for x in (q, want)), strict=True):
                assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), seed
            subset = subset_of(p)
            for function in (critic_mlp, critic_values):
                chosen = function(*net, subset=subset)
                index = subset[:, :, None, None].expand(-1, -1, *want.shape[2:])
                assert torch.allclose(chosen, want.gather(1, index), rtol=1e-10, atol=1e-10), seed


def test_the_definition_equals_the_kernel(without_kernels: Callable[[], None]) -> None:
    problems = [problem(seed) for seed in range(20)]
    for p in problems:
        for parameter in p["weights"] + p["biases"]:
            parameter.requires_grad_(True)
    kernels = [(conservative_loss(**p), gradients(conservative_loss(**p)[0], p)) for p in problems]
    without_kernels()
    for p, ((want_loss, want), want_gradients) in zip(problems, kernels, strict=True):
        loss, got = conservative_loss(**p)
        assert torch.allclose(loss, want_loss, rtol=1e-10, atol=1e-10) and set(got) == set(want)
        for name, value in want.items():
            assert torch.allclose(got[name], value, rtol=1e-10, atol=1e-10) and not got[name].requires_grad, name
        for a, b in zip(gradients(loss, p), want_gradients, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kernels", [True, False])
def test_a_subset_estimates_the_gap_and_leaves_the_error(kernels: bool, without_kernels: Callable[[], None]) -> None:
    if not kernels:
        without_kernels()
    for seed in range(10):
        p = problem(seed)
        subset, seeds = subset_of(p), len(p["states"])
        count = p["weights"][0].shape[0] // seeds
        _, everything = loss_in_torch(p)
        _, chosen = loss_in_torch(p | members(p, subset))
        loss, got = conservative_loss(**p, subset=subset)
        for name in ("error", "q_data"):
            assert torch.allclose(got[name], everything[name], rtol=1e-10, atol=1e-10), (seed, name)
        for name in ("gap", "q_uniform", "q_policy", "bound_share"):
            assert torch.allclose(got[name], chosen[name], rtol=1e-10, atol=1e-10), (seed, name)
        want = everything["error"].sum(-1) + p["weight"] * count * chosen["gap"].mean(-1)
        assert torch.allclose(loss, want, rtol=1e-10, atol=1e-10), seed


def test_critics_with_norms_equal_networks_of_the_pairs() -> None:
    for seed in range(10):
        p = problem(seed)
        seeds, batch, count, _ = p["actions"].shape
        norms = [(torch.rand_like(b), torch.rand_like(b)) for b in p["biases"][:-1]]
        pairs = torch.cat([p["states"].unsqueeze(2).expand(-1, -1, count, -1), p["actions"]], -1).flatten(1, 2)
        pairs = pairs.repeat_interleave(p["weights"][0].shape[0] // seeds, 0)
        want = mlp(pairs, p["weights"], p["biases"], norms=norms).view(seeds, -1, batch, count)
        for function in (critic_mlp, critic_values):
            q = function(p["states"], p["actions"], p["weights"], p["biases"], norms=norms)
            assert torch.allclose(q, want, rtol=1e-10, atol=1e-10), seed
        _, got = conservative_loss(**p, norms=norms)
        assert torch.allclose(got["q_data"], want[..., 0].mean(-1), rtol=1e-10, atol=1e-10), seed


def test_critics_of_one_layer_of_half_precision_and_without_states() -> None:
    p = problem(5)
    states, actions = p["states"], p["actions"]
    weights, biases = [torch.randn_like(p["weights"][0][..., :1])], [torch.randn_like(p["biases"][0][..., :1])]
    want = values_in_torch(states, actions, weights, biases)
    assert want.min() < 0 < want.max()
    for function in (critic_mlp, critic_values, critic_mlp_in_torch):
        assert torch.allclose(function(states, actions, weights, biases), want, rtol=1e-10, atol=1e-10)
        assert function(states[:, :0], actions[:, :0], weights, biases).shape == (*want.shape[:2], 0, want.shape[3])
        half = (x.bfloat16() if isinstance(x, Tensor) else [t.bfloat16() for t in x] for x in (weights, biases))
        q = function(states.bfloat16(), actions.bfloat16(), *half)
        assert q.dtype == torch.bfloat16 and torch.allclose(q.double(), want, rtol=0.1, atol=0.5)


def test_values_carry_no_gradient_and_the_loss_one_to_the_parameters_only() -> None:
    p = problem(7)
    for tensor in (p["states"], p["actions"], p["target"], p["bound"], *p["weights"], *p["biases"]):
        tensor.requires_grad_(True)
    assert not critic_values(p["states"], p["actions"], p["weights"], p["biases"]).requires_grad
    loss, statistics = conservative_loss(**p)
    assert loss.requires_grad and not any(value.requires_grad for value in statistics.values())
    loss.sum().backward()
    assert all(t.grad is None for t in (p["states"], p["actions"], p["target"], p["bound"]))
    assert all(t.grad is not None for t in (*p["weights"], *p["biases"]))


def test_opcheck() -> None:
    p = problem(6)
    net = (p["states"], p["actions"], p["weights"], p["biases"])
    torch.library.opcheck(torch.ops.qcse.critic_values, net)
    rest = (p["target"], p["offsets"], p["bound"], p["weight"], 1.0, float("-inf"), True)
    torch.library.opcheck(torch.ops.qcse.conservative_loss, (*net, *rest))

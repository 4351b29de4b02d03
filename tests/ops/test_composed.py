"""The networks' operators as a GPU computes them, products and what is fused between them, on the CPU: the fused
operators' definitions stand in, and autograd through the networks' definitions is what is compared with."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qcse_ext import registration
from qcse_ext.nets import composed, pointwise
from qcse_ext.nets.critic import conservative_loss, conservative_loss_in_torch, critic_mlp, critic_values
from qcse_ext.nets.mlp import mlp_in_torch

SHAPES = [(s, e, n, layers) for s, e, n, layers in itertools.product((1, 2, 3), (1, 2, 4), (1, 2, 10), (2, 3, 4))]


def close(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and torch.allclose(got, want, rtol=1e-11, atol=1e-12, equal_nan=True)


def parameters(
    nets: int, sizes: list[int], generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], list[Tensor]]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    pairs = list(itertools.pairwise(sizes))
    return [normal(nets, i, o) for i, o in pairs], [normal(nets, 1, o) for _, o in pairs]


def problem(seeds: int, members: int, n: int, layers: int, batch: int = 7, strided: bool = False) -> dict[str, object]:
    """Keyword arguments of conservative_loss, n actions of each kind."""
    generator = torch.Generator().manual_seed(100 * seeds + 10 * members + n + layers)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.mT.contiguous().mT if strided and x.dim() > 1 else x

    weights, biases = parameters(seeds * members, [*[8, 9, 6, 5][:layers], 1], generator)
    if strided:
        weights = [w.detach().mT.contiguous().mT.requires_grad_() for w in weights]
    bound = normal(seeds, batch)
    bound[:, ::3] = -math.inf
    return {
        "states": normal(seeds, batch, 5),
        "actions": normal(seeds, batch, 1 + 3 * n, 3),
        "weights": weights,
        "biases": biases,
        "target": normal(seeds, batch),
        "offsets": normal(seeds, batch, 3 * n),
        "bound": bound,
        "weight": normal(seeds).abs(),
        "temperature": 0.7,
        "floor": 0.5 if members == 2 else None,
        "include_data": n == 2,
    }


@pytest.mark.parametrize("outputs", [1, 5])
@pytest.mark.parametrize("nets", [1, 3])
@pytest.mark.parametrize("hidden", [[7], [4, 6], [4, 6, 3]])
@pytest.mark.parametrize("rows", [11, 1024, 1026])  # the weights' gradients: in one piece, in four, in two
def test_networks(rows: int, nets: int, hidden: list[int], outputs: int) -> None:
    generator = torch.Generator().manual_seed(nets)
    weights, biases = parameters(nets, [5, *hidden, outputs], generator)
    x = torch.randn(nets, rows, 5, generator=generator, dtype=torch.float64).requires_grad_()
    want = mlp_in_torch(x, weights, biases)
    y_grad = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    grads = torch.autograd.grad(want, [x, *weights, *biases], y_grad)
    y, kept = composed.mlp_forward(x, weights, biases, keep=True)
    assert close(y, want) and close(composed.mlp_forward(x, weights, biases)[0], want)
    for input_wanted, parameters_wanted in itertools.product((True, False), repeat=2):
        x_grad, *rest = composed.mlp_backward(y_grad, x, kept, weights, biases, input_wanted, parameters_wanted)
        assert close(x_grad, grads[0]) if input_wanted else x_grad.numel() == 0
        got = [*rest[0], *rest[1]]
        assert len(got) == (2 * len(weights) if parameters_wanted else 0)
        assert all(close(a, b) for a, b in zip(got, grads[1:])), (input_wanted, parameters_wanted)


@pytest.mark.parametrize(("nets", "rows", "width", "parts"), [(2, 7936, 256, 16), (32, 7936, 256, 1), (1, 510, 8, 1)])
def test_a_long_sum_of_few_results_is_divided(nets: int, rows: int, width: int, parts: int) -> None:
    weights, biases = parameters(nets, [3, width, width, 1], torch.Generator().manual_seed(0), torch.float32)
    x = torch.ones(nets, rows, 3)
    y, kept = composed.mlp_forward(x, weights, biases, keep=True)
    shapes: list[tuple[int, ...]] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op is torch.ops.aten.bmm.default:
                shapes.append((*args[0].shape, args[1].shape[-1]))
            return op(*args, **(kwargs or {}))

    with Products():
        composed.mlp_backward(torch.ones_like(y), x, kept, weights, biases, False, True)
    assert (nets * parts, width, rows // parts, width) in shapes


@pytest.mark.parametrize(("seeds", "members", "n", "layers"), SHAPES)
def test_values(seeds: int, members: int, n: int, layers: int) -> None:
    p = problem(seeds, members, n, layers)
    for count in (1, 3 * n):
        net = (p["states"], p["actions"][:, :, :count], p["weights"], p["biases"])
        assert close(composed.critic_values(*net), critic_mlp(*net))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("seeds", "members", "n", "layers"), SHAPES)
def test_conservative_loss(seeds: int, members: int, n: int, layers: int, strided: bool) -> None:
    p = problem(seeds, members, n, layers, strided=strided)
    want_loss, want = conservative_loss_in_torch(**p)
    loss_grad = torch.arange(1, seeds + 1, dtype=torch.float64)
    grads = torch.autograd.grad(want_loss, [*p["weights"], *p["biases"]], loss_grad)
    settings = {name: value for name, value in p.items() if name != "floor"}
    floor = -math.inf if p["floor"] is None else p["floor"]
    loss, statistics, step = composed.conservative_forward(**settings, floor=floor)
    assert close(loss, want_loss) and close(statistics, torch.stack(list(want.values())))
    got = composed.conservative_backward(step, p["weights"], p["biases"], loss_grad)
    assert all(close(a, b) for a, b in zip([*got[0], *got[1]], grads, strict=True))
    statistics, *got = composed.conservative_loss(**settings, floor=floor)
    grads = torch.autograd.grad(conservative_loss_in_torch(**p)[0].sum(), [*p["weights"], *p["biases"]])
    assert all(close(a, b) for a, b in zip([*got[0], *got[1]], grads, strict=True))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_first_layer_is_autograds(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    actions, whole, bias = normal(groups, 7, 4, 3), normal(6, 8, 5), normal(6, 1, 5).requires_grad_()
    weight, state = whole[:, 5:].detach().requires_grad_(), normal(6, 7, 5).requires_grad_()
    each = actions.repeat_interleave(6 // groups, 0)
    want = (torch.einsum("mbnk,mkw->mbnw", each, weight) + (state + bias).unsqueeze(2)).relu().flatten(1, 2)
    h = pointwise.action_relu(actions, whole[:, 5:], state.detach(), bias.detach())
    assert close(h, want)
    grad = normal(6, 28, 5)
    kept, weight_grad = grad.clone(), torch.full((6, 8, 5), 7.0, dtype=torch.float64)
    got = pointwise.action_relu_backward_(weight_grad[:, 5:], grad, h, actions)
    grads = torch.autograd.grad(want, (weight, state, bias), grad)
    assert close(weight_grad[:, 5:], grads[0]) and bool((weight_grad[:, :5] == 7).all())
    assert close(got[0], grads[1]) and close(got[1], grads[2]) and torch.equal(grad, kept)


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_last_layers_are_autograds(with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, bias, weight, last, y_grad = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((4, 9, 6), (4, 1, 6), (4, 6, 1), (4, 1, 1), (4, 9, 1))
    )
    want = torch.relu(x + bias if with_bias else x) @ weight + last
    factor = torch.tensor([2.0, -3.0], dtype=torch.float64)
    plain = [t.detach() for t in (x, bias, weight, last, y_grad)]
    given = plain[1] if with_bias else None
    assert close(pointwise.relu_dot(plain[0], given, *plain[2:4]), want)
    g = plain[4] * factor.repeat_interleave(2).view(4, 1, 1)
    grads = torch.autograd.grad(want, (x, weight, last), g)
    got = pointwise.outer_relu_backward(plain[4], plain[0], given, plain[2], factor, True)
    wanted = (grads[0], grads[0].sum(1, keepdim=True), *grads[1:])
    assert all(close(a, b) for a, b in zip(got, wanted, strict=True)) and torch.equal(plain[0], x)


@pytest.mark.parametrize("place", ["data", "uniform", "policy", "offset", "bound", "every offset", "target"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("floor", [-math.inf, 0.5])
@pytest.mark.parametrize("include_data", [False, True])
def test_the_loss_of_what_is_not_finite_is_autograds(place: str, bad: float, floor: float, include_data: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 2, 5, 7, generator=generator, dtype=torch.float64)
    offsets = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    target, bound, weight = offsets[..., 0] + 1, offsets[..., 1] - 1, offsets[:, 0, 2].abs()
    if place in ("data", "uniform", "policy"):
        q[0, 1, 2, {"data": 0, "uniform": 2, "policy": 5}[place]] = bad
    elif place == "offset":
        offsets[0, 2, 4] = bad
    elif place == "every offset":
        offsets[0, 2] = bad
    else:
        {"bound": bound, "target": target}[place][0, 2] = bad
    # A critic that returns its action: q as autograd's loss has it.
    eye, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    settings = (target, offsets, bound, weight)
    states, values = torch.zeros(2, 5, 0, dtype=torch.float64), q.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qcse_ext.nets.critic.critic_mlp", lambda *_: values)
        weights, biases = [eye.expand(4, 1, 1)], [zero.expand(4, 1, 1)]
        actions, given = q[:, 0].unsqueeze(-1), None if math.isinf(floor) else floor
        want_loss, want = conservative_loss_in_torch(
            states, actions, weights, biases, *settings, 0.8, given, include_data
        )
    (want_grad,) = torch.autograd.grad(want_loss.sum(), values)
    loss, statistics, grad = pointwise.conservative_head(q, *settings, 0.8, floor, include_data)
    assert close(loss, want_loss.detach()) and close(statistics, torch.stack(list(want.values())))
    assert close(grad, want_grad)


# --- How many operations a GPU launches -------------------------------------------------------------------------------

VIEWS = {
    "view", "_unsafe_view", "expand", "slice", "unsqueeze", "squeeze", "transpose", "select", "split_with_sizes",
    "alias", "detach", "new_empty", "empty", "unbind",
}  # fmt: skip
KERNELS = {"baddbmm": 2, "conservative_head": 2}  # torch copies the bias first; the loss is summed last


class Launches(TorchDispatchMode):
    """How many kernels the operations would be on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        if name not in VIEWS:
            self.names[name] += KERNELS.get(name, 1)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fused operators on the CPU, where their definitions compute them."""
    library, known, inside = torch.library.Library("qcse", "IMPL"), registration.has_kernel, [False]
    monkeypatch.setattr(
        registration, "has_kernel", lambda name, x: not inside[0] if name in pointwise.__all__ else known(name, x)
    )

    def defined(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            inside[0] = True
            try:
                return function(*arguments)
            finally:
                inside[0] = False

        return call

    for name in pointwise.__all__:
        library.impl(name, defined(getattr(pointwise, name)), "CPU")
    yield
    library._destroy()


def launches(call: Callable[[], object]) -> int:
    with Launches() as record:
        call()
    assert not {"copy_", "clone", "_to_copy"} & set(record.names), record.names
    return record.names.total()


# Of E = 2 critics of two hidden layers, whose seeds are 1 or more; then of networks.
LAUNCHES = {
    "values": (4, 5),
    "values of one action": (5, 5),
    "values with a gradient": (5, 5),
    "gradient of values": (5, 5),
    "conservative loss": (6, 7),
    "gradient of the conservative loss": (5, 5),
}
OF_NETWORKS = {
    ((4, 6), 5): {"forward": 6, "parameters": 8, "input": 5, "both": 9},
    ((4, 6, 3), 5): {"forward": 8, "parameters": 11, "input": 7, "both": 12},
    ((4, 6), 1): {"forward": 4, "parameters": 5, "input": 4, "both": 6},
    ((4, 6, 3), 1): {"forward": 6, "parameters": 8, "input": 6, "both": 9},
}


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("seeds", [1, 3])
def test_launches_of_critics(seeds: int) -> None:
    """The table of docs/training_step.md."""
    p = problem(seeds, 2, 10, 3)
    net = (p["states"], p["actions"], p["weights"], p["biases"])
    one = (net[0], net[1][:, :, :1].contiguous(), *net[2:])
    pairs = composed.pairs_of(*one[:2], 2)
    y_grad, kept = composed.mlp_forward(pairs, *net[2:], True)
    found = {
        "values": launches(lambda: composed.critic_values(*net)),
        "values of one action": launches(lambda: composed.critic_values(*one)),
        "values with a gradient": launches(
            lambda: composed.mlp_forward(composed.pairs_of(*one[:2], 2), *net[2:], True)
        ),
        "gradient of values": launches(lambda: composed.mlp_backward(y_grad, pairs, kept, *net[2:], False, True)),
        "conservative loss": launches(lambda: conservative_loss(**p)),
    }
    loss = conservative_loss(**p)[0]
    grad = torch.ones(()).double().expand(seeds)
    found["gradient of the conservative loss"] = launches(
        lambda: torch.autograd.grad(loss, [*p["weights"], *p["biases"]], grad)
    )
    assert found == {name: counts[seeds > 1] for name, counts in LAUNCHES.items()}


def test_launches_of_the_definitions(without_kernels: Callable[[], None]) -> None:
    without_kernels()
    for seeds, expected in ((1, (10, 33, 39)), (3, (12, 35, 39))):
        p = problem(seeds, 2, 10, 3)
        loss = conservative_loss(**p)[0]
        calls = [
            lambda p=p: critic_values(p["states"], p["actions"], p["weights"], p["biases"]),
            lambda p=p: conservative_loss(**p),
            lambda p=p, loss=loss: torch.autograd.grad(loss.sum(), [*p["weights"], *p["biases"]]),
        ]
        for call, count in zip(calls, expected, strict=True):
            with Launches() as record:
                call()
            assert abs(record.names.total() - count) <= 3, record.names  # torch's own business


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(("hidden", "outputs"), OF_NETWORKS)
def test_launches_of_networks(hidden: tuple[int, ...], outputs: int) -> None:
    weights, biases = parameters(2, [5, *hidden, outputs], torch.Generator().manual_seed(0))
    x = torch.randn(2, 11, 5, dtype=torch.float64)
    y, kept = composed.mlp_forward(x, weights, biases, True)
    found = {"forward": launches(lambda: composed.mlp_forward(x, weights, biases, True))}
    for name, wanted in {"parameters": (False, True), "input": (True, False), "both": (True, True)}.items():
        found[name] = launches(lambda wanted=wanted: composed.mlp_backward(y, x, kept, weights, biases, *wanted))
    assert found == OF_NETWORKS[hidden, outputs]


class WithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.usefixtures("fused")
def test_the_loss_in_two_steps_is_differentiated_once() -> None:
    p = problem(2, 2, 2, 3)
    loss, statistics = conservative_loss(**p)
    want, _ = conservative_loss_in_torch(**p)
    assert close(loss, want) and not any(value.requires_grad for value in statistics.values())
    inputs = [*p["weights"], *p["biases"]]
    for a, b in zip(*(torch.autograd.grad(x.sum(), inputs, retain_graph=True) for x in (loss, want)), strict=True):
        assert close(a, b)
    (grad,) = torch.autograd.grad(loss.sum(), p["weights"][:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated a second time"):
        grad.sum().backward()
    passed_on = WithoutGradient.apply(conservative_loss(**p)[0])
    assert torch.autograd.grad(passed_on.sum(), inputs, allow_unused=True) == (None,) * len(inputs)
    p["target"] = p["target"][:, 1:]
    with pytest.raises(RuntimeError, match="target must have shape"):
        conservative_loss(**p)


@pytest.mark.usefixtures("fused")
def test_opcheck() -> None:
    p = problem(2, 2, 2, 3)
    x, h = torch.randn(4, 6, 8), torch.randn(4, 6, 8).relu()
    bias, column = torch.randn(4, 1, 8), torch.randn(4, 8, 1)
    actions, weight = torch.randn(2, 3, 2, 3), torch.randn(4, 8, 8)
    ops = torch.ops.qcse
    calls = [
        (ops.bias_relu_, (x, bias)),
        (ops.action_relu, (actions, weight[:, 5:], torch.randn(4, 3, 8), bias)),
        (ops.relu_dot, (x, bias, column, torch.randn(4, 1, 1))),
        (ops.relu_dot, (x, None, column, torch.randn(4, 1, 1))),
        (ops.relu_backward_, (x, h)),
        (ops.action_relu_backward_, (weight[:, 5:], x, h, actions)),
        (ops.outer_relu_backward, (x[..., :1].contiguous(), x, bias, column, None, True)),
        (ops.outer_relu_backward, (x[..., :1].contiguous(), h, None, column, torch.randn(2), False)),
        (
            ops.conservative_head,
            (
                torch.randn(2, 2, 7, 7).double(),
                p["target"],
                p["offsets"],
                p["bound"],
                p["weight"],
                1.0,
                -math.inf,
                True,
            ),
        ),
    ]
    for op, arguments in calls:
        torch.library.opcheck(op, arguments)


def test_a_gpus_values_take_no_other_way() -> None:
    """What critic_values and the composition give for one problem; the former by the CPU's kernel."""
    p = problem(2, 3, 2, 3)
    net = (p["states"], p["actions"], p["weights"], p["biases"])
    assert torch.allclose(critic_values(*net), composed.critic_values(*net), rtol=1e-10, atol=1e-10)

"""Networks, critics and the conservative loss on a GPU: against their definitions in float64, captured in graphs, and
counted in launches."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from gpu_device import DEVICE, every_type, on_gpu
from gpu_launches import launches
from torch import Tensor

from qcse_ext.nets import pointwise
from qcse_ext.nets.critic import (
    conservative_loss,
    conservative_loss_in_torch,
    critic_mlp,
    critic_mlp_in_torch,
    critic_values,
)
from qcse_ext.nets.mlp import mlp, mlp_in_torch

pytestmark = pytest.mark.cuda
# S, E, B, n, D, A, hidden layers
SHAPES = [(1, 2, 256, 10, 17, 6, (256, 256)), (8, 2, 256, 10, 17, 6, (64, 64)), (3, 4, 33, 2, 5, 3, (37, 20, 11)),
          (1, 1, 1, 1, 1, 1, (1,)), (2, 10, 70, 4, 45, 24, (512, 512, 512))]  # fmt: skip
Problem = dict[str, object]


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(shape: tuple[int, int, int, int, int, int, tuple[int, ...]], dtype: torch.dtype, device: str) -> Problem:
    """Arguments of conservative_loss."""
    seeds, members, batch, n, state_dim, action_dim, hidden = shape
    pairs = list(itertools.pairwise((state_dim + action_dim, *hidden, 1)))
    bound = normal(1, seeds, batch)
    bound[:, ::3] = -math.inf
    tensors: Problem = {
        "states": normal(2, seeds, batch, state_dim),
        "actions": normal(3, seeds, batch, 1 + 3 * n, action_dim),
        "weights": [normal(10 + i, seeds * members, *p, scale=p[0] ** -0.5) for i, p in enumerate(pairs)],
        "biases": [normal(30 + i, seeds * members, 1, p[1], scale=0.1) for i, p in enumerate(pairs)],
        "target": normal(4, seeds, batch),
        "offsets": normal(5, seeds, batch, 3 * n),
        "bound": bound,
        "weight": normal(6, seeds).abs(),
    }

    def moved(x: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        return [moved(t) for t in x] if isinstance(x, list) else x.to(dtype).to(device)

    found = {name: moved(x) for name, x in tensors.items()}
    for t in (*found["weights"], *found["biases"]):
        t.requires_grad_()
    return found | {"temperature": 0.8, "floor": 0.2, "include_data": members == 4}


def everything(p: Problem, defined: bool = False) -> list[Tensor]:
    """Values, losses, statistics and all gradients, by the functions or by their definitions."""
    net = (p["states"], p["actions"], p["weights"], p["biases"])
    one = (p["states"], p["actions"][:, :, :1].detach().requires_grad_(), *net[2:])
    inputs = [*p["weights"], *p["biases"]]
    loss, statistics = (conservative_loss_in_torch if defined else conservative_loss)(**p)
    q = (critic_mlp_in_torch if defined else critic_mlp)(*one)
    x = p["states"].detach().repeat_interleave(len(p["weights"][0]) // len(p["states"]), 0).requires_grad_()
    layers = [p["weights"][0][:, : x.shape[-1]], *p["weights"][1:-1]], p["biases"][:-1]
    y = (mlp_in_torch if defined else mlp)(x, *layers) if len(layers[0]) > 1 else x.clone()
    values = critic_mlp_in_torch(*net).detach() if defined else critic_values(*net)
    return [
        loss.detach(), *statistics.values(), values, q.detach(), y.detach(),
        *torch.autograd.grad(loss.sum(), inputs),
        *torch.autograd.grad(q.square().sum(), [one[1], *inputs]),
        *torch.autograd.grad(y.square().sum(), x),
    ]  # fmt: skip


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True))


@every_type
@pytest.mark.parametrize("shape", SHAPES)
def test_values_losses_and_gradients_are_the_definitions(shape: tuple, dtype: torch.dtype) -> None:
    got, again = (everything(problem(shape, dtype, DEVICE)) for _ in range(2))
    want = everything(problem(shape, torch.float64, "cpu"), defined=True)
    tolerance = 2e-4 if dtype == torch.float32 else 1e-9  # some numbers fall on the other side of a ReLU
    for a, b in zip(got, want, strict=True):
        assert (a.cpu().double() - b).norm() <= tolerance * (b.norm() + 1e-3 * b.numel() ** 0.5)
    assert same(got, again)


@every_type
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows_where_it_does_in_the_definition(bad: float, dtype: torch.dtype) -> None:
    for place in range(8):
        q, offsets = normal(0, 2, 2, 40, 7), normal(1, 2, 40, 6)
        target, bound, weight = normal(2, 2, 40), normal(3, 2, 40), normal(4, 2).abs()
        [q[0, 0, 3, :1], q[0, 0, 3, 2:3], q[0, 0, 3, 5:6], offsets[0, 3, 1:2], offsets[0, 3, 4:5], offsets[0, 3],
         target[0, 3:4], bound[0, 3:4]][place].fill_(bad)  # fmt: skip
        tensors = [t.to(dtype) for t in (q, target, offsets, bound, weight)]
        for floor, include_data in itertools.product((-math.inf, 0.5), (False, True)):
            settings = (0.9, floor, include_data)
            got = pointwise.conservative_head(*(t.to(DEVICE) for t in tensors), *settings)
            want = pointwise.conservative_head(*tensors, *settings)
            for a, b in zip(got, want, strict=True):
                assert torch.allclose(a.cpu(), b, rtol=1e-4, atol=1e-5, equal_nan=True), (place, settings)


@every_type
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("width", [1, 7, 8, 64, 132, 256])
def test_fused_operators_are_their_definitions(width: int, shift: int, dtype: torch.dtype) -> None:
    nets, states, n, inputs = 3, 85, 4, 6

    def given(device: str) -> list[Tensor]:
        """[M, R, W] twice, [M, B, W], [M, 1, W], [M, W, 1], [M, R, 1], [M, 1, 1], [M, 2 A, W], [M, B, n, A]; shifted,
        none is aligned."""
        shapes = [(states * n, width)] * 2 + [(states, width), (1, width), (width, 1), (states * n, 1), (1, 1)]
        shapes += [(2 * inputs, width), (states, n, inputs)]
        made = []
        for i, s in enumerate(shapes):
            x = torch.zeros(nets * math.prod(s) + shift, dtype=dtype, device=device)[shift:].view(nets, *s)
            made.append(x.copy_(normal(i, nets, *s)))
        made[1].relu_()
        return made

    def run(device: str) -> list[Tensor]:
        x, h, state, bias, column, row, one, whole, actions = given(device)
        weight, results = whole[:, inputs:], []
        for first in (None, bias):
            results.append(pointwise.relu_dot(x, first, column, one))
            results += pointwise.outer_relu_backward(row, x, first, column, one.flatten(), True)
        results += pointwise.outer_relu_backward(row, h, None, column, one[0, 0].expand(3), True)
        results += pointwise.outer_relu_backward(row, h, None, column, None, False)[:1]
        for shared in (actions, actions[:1]):  # each network's, and all networks'
            results.append(pointwise.action_relu(shared, weight, state, bias))
            results.append(pointwise.action_relu(shared, weight.mT.contiguous().mT, state, bias))
            made = whole.clone()
            results += [*pointwise.action_relu_backward_(made[:, inputs:], x, h, shared), made]
        a, c = x.clone(), x.clone()
        pointwise.bias_relu_(a, bias)
        return [*results, pointwise.relu_backward_(c, h), a, c, x]

    got, want = run(DEVICE), run("cpu")
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.allclose(a.cpu(), b, rtol=tolerance, atol=tolerance * (1.0 + b.abs().max().item())), i
    assert same(got, run(DEVICE))


@every_type
@pytest.mark.parametrize("inputs", [1, 8, 9, 24, 40])
@pytest.mark.parametrize(("nets", "states", "n", "width"), [(2, 256, 31, 256), (64, 9, 31, 256), (6, 33, 1, 300)])
def test_first_layer_at_its_shapes(nets: int, states: int, n: int, width: int, inputs: int, dtype: torch.dtype) -> None:
    """Slabs narrow and wide, more numbers of an action than a thread adds up or a block stages."""
    actions, whole = normal(0, nets // 2, states, n, inputs), normal(1, nets, inputs + 3, width)
    state, bias, grad = normal(2, nets, states, width), normal(3, nets, 1, width), normal(4, nets, states * n, width)
    h = pointwise.action_relu(actions, whole[:, 3:], state, bias)

    def run(device: str, dtype: torch.dtype) -> list[Tensor]:
        a, w, s, b, g, kept = (t.to(dtype).to(device, copy=True) for t in (actions, whole, state, bias, grad, h))
        forward = pointwise.action_relu(a, w[:, 3:], s, b)
        return [forward, *pointwise.action_relu_backward_(w[:, 3:], g, kept, a), w]

    got, want = run(DEVICE, dtype), run("cpu", torch.float64)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for x, y in zip(got, want, strict=True):
        assert (x.cpu().double() - y).norm() <= tolerance * y.norm()
    assert same(got, run(DEVICE, dtype))


@on_gpu
def test_graph_replay_with_changed_inputs() -> None:
    shape = SHAPES[1]
    p = problem(shape, torch.float32, "cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            everything(p)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = everything(p)
    for replay in range(1, 4):
        with torch.no_grad():
            for t in (p["states"], p["actions"], p["target"], *p["weights"]):
                t.mul_(1.0 + 0.1 * replay)
        graph.replay()
        assert same(answer, everything(p)), f"replay {replay}"


@on_gpu
@pytest.mark.parametrize(("shape", "expected"), [(SHAPES[0], (4, 6, 12, 6)), (SHAPES[1], (5, 7, 13, 6))])
def test_launches(shape: tuple, expected: tuple[int, int, int, int]) -> None:
    """tests/ops/test_composed.py counts torch's operations; here are the GPU's. A product may be more than one: cuBLAS
    can split a sum, and clear what it counts in."""
    p = problem(shape, torch.float32, "cuda")
    net = (p["states"], p["actions"], p["weights"], p["biases"])
    inputs = [*p["weights"], *p["biases"]]
    x = p["states"].repeat_interleave(2, 0)
    layers = [w[:, : x.shape[-1]] if i == 0 else w for i, w in enumerate(p["weights"])]
    policy = (
        [*layers[:-1], layers[-1].expand(-1, -1, 12).contiguous()],
        [*p["biases"][:-1], p["biases"][-1].repeat(1, 1, 12)],
    )

    def differentiated() -> None:
        loss = conservative_loss(**p)[0]
        torch.autograd.grad(loss, inputs, torch.ones_like(loss))

    found = [
        launches(lambda: critic_values(*net)),
        launches(lambda: conservative_loss(**p)),
        launches(differentiated),
    ]
    with torch.no_grad():
        found.append(launches(lambda: mlp(x, *policy)))
    for names, count in zip(found, (*expected[:2], expected[2] + 1, expected[3])):  # ones_like is a launch
        split = sum("splitK" in name or "Memset" in name for name in names)
        assert len(names) - split <= count, names


@on_gpu
def test_first_call_inside_a_capture() -> None:
    """In a fresh process no kernel has been loaded yet; loading one must not end the capture."""
    code = """
import torch
from qcse_ext.nets.pointwise import bias_relu_
x, bias = torch.randn(3, 50, 20), torch.randn(3, 1, 20)
on_gpu = x.cuda(), bias.cuda()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    bias_relu_(*on_gpu)
graph.replay()
bias_relu_(x, bias)
assert torch.equal(on_gpu[0].cpu(), x)
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@on_gpu
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: pointwise.bias_relu_(x.mT, x[:, :, :1].mT), "x must be contiguous"),
        (lambda x: pointwise.bias_relu_(x, x), r"bias must have shape \[3, 1, 6\], got \[3, 5, 6\]"),
        (lambda x: pointwise.relu_backward_(x.half(), x.half()), "grad must be float32 or float64"),
        (lambda x: pointwise.relu_backward_(x, x.double()), r"h must have the dtype of grad \(float32\)"),
        (lambda x: pointwise.relu_backward_(x[:0], x[:0]), "not be empty"),
        (
            lambda x: pointwise.outer_relu_backward(x[..., :1], x, None, x[:, 0, :, None], x[:2, 0, 0], True),
            "divisor of 3",
        ),
        (lambda x: pointwise.action_relu(x[:2, None], x, x, x[:, :1]), "actions must have shape .* F a divisor of 3"),
        (lambda x: pointwise.action_relu(x[:, :, None], x, x, x[:, :1]), r"weight must have shape \[3, 6, 6\]"),
        (
            lambda x: pointwise.action_relu_backward_(x[:, :1].mT.expand(3, 6, 6), x, x, x[:, :, None]),
            "weight_grad must be contiguous but for its first dimension",
        ),
        (lambda x: torch.ops.qcse.mlp_forward(x, [x.mT], [x[:, :1, :5]], False, False), "2 to 16 layers"),
        (lambda x: torch.ops.qcse.mlp_forward(x, [x.mT, x], [x[:, :1, :5], x[:, :1]], True, False), "bf16=False"),
        (lambda x: torch.ops.qcse.critic_values(x, x[:, :, None], [x.mT, x], [x[:, :1, :5], x[:, :1]]), "weights"),
    ],
)
def test_errors(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(torch.randn(3, 5, 6, device="cuda"))

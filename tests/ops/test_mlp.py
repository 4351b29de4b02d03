"""Fully connected networks against plain torch with autograd, in float64, float32 and with rounding to bfloat16."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
import torch
from networks import error_of, layers_in_torch
from torch import Tensor

from qcse_ext import _C, build_info
from qcse_ext.nets.critic import has_bf16
from qcse_ext.nets.mlp import mlp, mlp_in_torch


def problem(
    seed: int, dtype: torch.dtype = torch.float64, large: bool = False
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    nets, rows = (2, 256) if large else (rng.randint(1, 4), rng.choice([1, 2, 63, 64, 65, 128, 200]))
    hidden = [256, 256] if large else [rng.randint(1, 70) for _ in range(rng.randint(1, 4))]
    sizes = [rng.randint(1, 40), *hidden, rng.randint(1, 40)]
    pairs = list(itertools.pairwise(sizes))
    weights = [normal(nets, i, o, scale=(2.0 / i) ** 0.5) for i, o in pairs]
    return normal(nets, rows, sizes[0]), weights, [normal(nets, 1, o, scale=0.1) for _, o in pairs]


def results(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """y and the gradients of a sum over y, each number of which counts differently."""
    factors = torch.linspace(-1.0, 2.0, y.numel(), dtype=torch.float64).to(y.dtype).view(y.shape)
    return [y, *torch.autograd.grad((y * factors).sum(), inputs)]


def in_double(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in tensors]


def test_output_and_gradients_equal_autograd(instruction_set: str, threads: int) -> None:
    for seed in range(40):
        x, weights, biases = problem(seed)
        got = results(mlp(x, weights, biases), [x, *weights, *biases])
        want = results(layers_in_torch(x, weights, biases), [x, *weights, *biases])
        for a, b in zip(got, want, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), seed
        with torch.no_grad():
            assert torch.equal(mlp(x, weights, biases), got[0]), seed


def test_float32_at_full_size(instruction_set: str) -> None:
    x, weights, biases = problem(0, torch.float32, large=True)
    exact = in_double([x, *weights, *biases])
    got = results(mlp(x, weights, biases), [x, *weights, *biases])
    want = results(layers_in_torch(exact[0], exact[1:4], exact[4:]), exact)
    assert error_of(got, want) < 1e-5


@pytest.mark.parametrize("wanted", ["input", "parameters", "weights"])
def test_only_the_gradients_that_are_asked_for(wanted: str, threads: int) -> None:
    x, weights, biases = problem(3)
    inputs = {"input": [x], "parameters": [*weights, *biases], "weights": weights}[wanted]
    every = results(mlp(x, weights, biases), [x, *weights, *biases])
    for tensor in [x, *weights, *biases]:
        tensor.requires_grad_(any(tensor is i for i in inputs))
    positions = [i for i, t in enumerate([x, *weights, *biases]) if t.requires_grad]
    some = results(mlp(x, weights, biases), inputs)
    assert all(torch.equal(a, every[1 + i]) for a, i in zip(some[1:], positions, strict=True))


@pytest.mark.skipif(not has_bf16(), reason="this CPU lacks AVX512-BF16 or AVX512-VBMI2")
def test_bf16_rounds_the_factors_between_hidden_layers_and_nothing_else(threads: int) -> None:
    for seed in [*range(12), "large"]:
        x, weights, biases = problem(0, torch.float32, True) if seed == "large" else problem(seed, torch.float32)
        exact = in_double([x, *weights, *biases])
        of = len(weights) + 1
        got = results(mlp(x, weights, biases, bf16=True), [x, *weights, *biases])
        want = results(layers_in_torch(exact[0], exact[1:of], exact[of:], bf16=True), exact)
        plain = results(layers_in_torch(exact[0], exact[1:of], exact[of:]), exact)
        assert error_of(got, want) < (1e-5 if len(weights) == 2 else 6e-3), seed
        assert seed != "large" or error_of(got[:1], plain[:1]) > 3 * error_of(got[:1], want[:1])
    with pytest.raises(RuntimeError, match="x must be float32 where bf16"):
        mlp(*problem(0), bf16=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_a_row_that_is_not_finite_shows_and_is_alone(bad: float, precision: str, instruction_set: str) -> None:
    bf16 = precision == "bf16"
    if bf16 and not has_bf16():
        pytest.skip("this CPU lacks AVX512-BF16 or AVX512-VBMI2")
    for seed in range(10):
        x, weights, biases = problem(seed, torch.float32 if bf16 else torch.float64)
        want = mlp(x, weights, biases, bf16)
        with torch.no_grad():
            x[0, 0, 0] = bad
        got = mlp(x, weights, biases, bf16)
        if math.isnan(bad):
            assert got[0, 0].isnan().all(), seed
        want[0, 0] = got[0, 0] = 0.0
        assert torch.allclose(got, want, rtol=1e-10, atol=2e-2 if bf16 else 1e-10), seed


def test_a_weight_that_is_not_a_number_shows_in_the_gradients(instruction_set: str) -> None:
    x, weights, biases = problem(13, large=True)
    with torch.no_grad():
        weights[1][0, 0, 0] = math.nan
    got, want = (results(f(x, weights, biases), [x, *weights, *biases]) for f in (mlp, layers_in_torch))
    assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(got, want, strict=True))
    assert all(t.isnan().any() for t in want[:3])  # y, and the gradients of x and of the first weights


def test_equal_calls_give_equal_bits(threads: int) -> None:
    x, weights, biases = problem(3, torch.float32, large=True)
    first, second = (results(mlp(x, weights, biases), [x, *weights, *biases]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_inputs_may_be_strided() -> None:
    x, weights, biases = problem(5)
    want = results(mlp(x, weights, biases), [x, *weights, *biases])
    x, *weights = (t.mT.contiguous().mT for t in (x, *weights))
    got = results(mlp(x, weights, biases), [x, *weights, *biases])
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x[0], w, b), r"x must have shape \[networks, rows, inputs\]"),
        (lambda x, w, b: (x.half(), w, b), r"weights\[0\] must have .* of x \(float16\), got float64"),
        (lambda x, w, b: (x.int(), w, b), "x must be of a floating-point dtype, got int32"),
        (
            lambda x, w, b: (x.float(), w, b),
            r"weights\[0\] must have .* of x \(float32\), got float64",
        ),
        (lambda x, w, b: (x, w, b[:-1]), "as many"),
        (lambda x, w, b: (x, [w[0][:, 1:], *w[1:]], b), r"weights\[0\] must have shape"),
        (lambda x, w, b: (x, w, [*b[:-1], b[-1][..., 1:]]), r"biases\[\d\] must have shape"),
        (lambda x, w, b: (torch.cat([x, x]), w, b), "x must have shape"),
    ],
)
def test_errors_name_the_argument(change, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        mlp(*change(*problem(7)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x[:, :0], w, b), "not be empty"),
        (lambda x, w, b: (x.half(), w, b), "x must be float32 or float64"),
        (lambda x, w, b: (x, w[:1], b[:1]), "2 to 16"),
    ],
)
def test_the_kernel_refuses_what_is_the_definitions(change, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.qcse.mlp_forward(*change(*problem(7)), False, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b, n: (x[0], w, b, n), r"x must have shape \[networks, rows, inputs\], got \["),
        (lambda x, w, b, n: (torch.cat([x, x]), w, b, n), "x must have shape"),
        (lambda x, w, b, n: (x, w, b[:-1], n), "as many"),
        (lambda x, w, b, n: (x, w, b, n[:-1]), "norms one fewer or none"),
        (lambda x, w, b, n: (x, [w[0][:, 1:], *w[1:]], b, n), r"weights\[0\] must have shape"),
        (lambda x, w, b, n: (x, w, [*b[:-1], b[-1][..., 1:]], n), r"biases\[\d\] must have shape"),
        (lambda x, w, b, n: (x, w, b, [(n[0][0], n[0][1][:, :, 1:]), *n[1:]]), r"norms\[0\] must have shape"),
        (lambda x, w, b, n: (x, w, [b[0].to("meta"), *b[1:]], n), r"biases\[0\] must be on the device of x \(cpu\)"),
    ],
)
def test_the_definitions_errors_name_the_argument(change, message: str) -> None:
    x, weights, biases = problem(7)
    norms = [(torch.ones_like(b), torch.zeros_like(b)) for b in biases[:-1]]
    x, weights, biases, norms = change(x, weights, biases, norms)
    with pytest.raises(RuntimeError, match=rf"qcse_ext\.mlp: .*{message}"):
        mlp_in_torch(x, weights, biases, norms=norms)


def test_the_definition_equals_the_kernel(without_kernels: Callable[[], None]) -> None:
    problems = [problem(seed) for seed in range(20)]
    want = [results(mlp(x, w, b), [x, *w, *b]) for x, w, b in problems]
    without_kernels()
    for (x, weights, biases), kernels in zip(problems, want, strict=True):
        got = results(mlp(x, weights, biases), [x, *weights, *biases])
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(got, kernels, strict=True))
        assert torch.equal(got[0], mlp_in_torch(x, weights, biases))


def test_the_definition_rounds_the_factors_between_hidden_layers_and_nothing_else() -> None:
    for seed in range(12):
        x, weights, biases = problem(seed, torch.float32)
        exact = in_double([x, *weights, *biases])
        of = len(weights) + 1
        got = results(mlp_in_torch(x, weights, biases, bf16=True), [x, *weights, *biases])
        want = results(layers_in_torch(exact[0], exact[1:of], exact[of:], bf16=True), exact)
        # torch rounds the sums as well, and what is near 0 then falls on the other side of a ReLU.
        assert error_of(got[:1], want[:1]) < (1e-5 if len(weights) == 2 else 2e-2), seed
        assert error_of(got, want) < (1e-5 if len(weights) == 2 else 0.2), seed
    with pytest.raises(RuntimeError, match="x must be float32 where bf16"):
        mlp_in_torch(*problem(0), bf16=True)


@pytest.mark.parametrize("hidden", [0, 1, 16])
@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_the_kernel_does_not_take_is_computed_in_torch(hidden: int, rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [4, *[7] * hidden, 3]
    weights = [torch.randn(2, i, o, generator=generator, dtype=torch.float64) for i, o in itertools.pairwise(sizes)]
    x, biases = torch.randn(2, rows, 4, generator=generator).to(dtype), [torch.ones(2, 1, o) for o in sizes[1:]]
    weights, biases = [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
    y = mlp(x, weights, biases)
    want = layers_in_torch(x.double(), [w.double() for w in weights], [b.double() for b in biases])
    assert y.shape == (2, rows, 3) and y.dtype == dtype
    assert torch.allclose(y.double(), want, rtol=1e-10, atol=1e-10) or dtype == torch.bfloat16


def test_layers_with_a_norm() -> None:
    x, weights, biases = problem(13)
    norms = [(torch.rand_like(b).requires_grad_(), torch.rand_like(b).requires_grad_()) for b in biases[:-1]]
    inputs = [x, *weights, *biases, *itertools.chain.from_iterable(norms)]
    h = x
    for (scale, shift), weight, bias in zip(norms, weights, biases):
        h = h @ weight + bias
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        h = (scale * h + shift).relu()
    want = results(h @ weights[-1] + biases[-1], inputs)
    got = results(mlp(x, weights, biases, norms=norms), inputs)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8)
    with pytest.raises(RuntimeError, match=r"qcse_ext\.mlp: .*forward-mode"):
        torch.func.jvp(lambda scale: mlp(x, weights, biases, norms=[(scale, norms[0][1]), *norms[1:]]),
                       (norms[0][0],), (torch.ones_like(norms[0][0]),))  # fmt: skip


def test_hidden_activations_may_be_strided_but_have_one_shape() -> None:
    x, weights, biases = (t.detach() if isinstance(t, Tensor) else [s.detach() for s in t] for t in problem(7))
    y, hidden = torch.ops.qcse.mlp_forward(x, weights, biases, False, True)
    apart = torch.stack([hidden, hidden], -1)[..., 0]
    want, got = (torch.ops.qcse.mlp_backward(y, x, h, weights, biases, False, True, True) for h in (hidden, apart))
    assert torch.equal(got[0], want[0]) and all(torch.equal(a, b) for a, b in zip(got[1], want[1], strict=True))
    with pytest.raises(RuntimeError, match="hidden must have shape"):
        torch.ops.qcse.mlp_backward(y, x, hidden[..., 1:], weights, biases, False, True, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_another_instruction_set_between_forward_and_backward(dtype: torch.dtype) -> None:
    sets = build_info()["cpu_instruction_sets"]
    try:
        for forward, backward in itertools.permutations(sets, 2):
            x, weights, biases = problem(13, dtype)
            _C.set_instruction_set(forward)
            y = mlp(x, weights, biases)
            _C.set_instruction_set(backward)
            got = torch.autograd.grad(y.sum(), (x, *weights, *biases))
            _C.set_instruction_set(forward)
            want = torch.autograd.grad(mlp(x, weights, biases).sum(), (x, *weights, *biases))
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), (forward, backward)
    finally:
        _C.set_instruction_set("")


@pytest.mark.parametrize("number", [-1.0, 3.0, 0.5, math.nan])
def test_hidden_activations_of_something_else_are_refused(number: float) -> None:
    x, weights, biases = (t.detach() if isinstance(t, Tensor) else [s.detach() for s in t] for t in problem(7))
    y, hidden = torch.ops.qcse.mlp_forward(x, weights, biases, False, True)
    hidden[0, 0, -1, -1] = number
    with pytest.raises(ValueError, match="hidden is not what mlp_forward kept"):
        torch.ops.qcse.mlp_backward(y, x, hidden, weights, biases, False, True, True)


def test_gradcheck_and_opcheck() -> None:
    x, weights, biases = problem(11)
    count = len(weights)
    inputs = (x, *weights, *biases)
    assert torch.autograd.gradcheck(lambda x, *p: mlp(x, list(p[:count]), list(p[count:])), inputs, fast_mode=True)
    x, weights, biases = x.detach(), [w.detach() for w in weights], [b.detach() for b in biases]
    torch.library.opcheck(torch.ops.qcse.mlp_forward, (x, weights, biases, False, False))
    # What lies behind the last column of a panel, and behind the last row, is anything: compare no values.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.qcse.mlp_forward, (x, weights, biases, False, True), test_utils=tests)
    y, hidden = torch.ops.qcse.mlp_forward(x, weights, biases, False, True)
    strided = [x.mT.contiguous().mT, hidden, [w.mT.contiguous().mT for w in weights]]
    for wanted, inputs in itertools.product(
        itertools.product([False, True], repeat=2), ([x, hidden, weights], strided)
    ):
        torch.library.opcheck(torch.ops.qcse.mlp_backward, (y, *inputs, biases, False, *wanted))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_a_whole(backend: str, strided: bool) -> None:
    x, weights, biases = problem(9, torch.float32)
    if strided:
        x, *weights = (t.detach().mT.contiguous().mT.requires_grad_() for t in (x, *weights))

    def loss(x: Tensor) -> Tensor:
        return (mlp(x, weights, biases) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    want, got = (torch.autograd.grad(f(x), [x, *weights]) for f in (loss, compiled))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_definition_compiles_as_a_whole() -> None:
    x, weights, biases = problem(9, torch.float32)
    norms = [(torch.ones_like(b), torch.zeros_like(b)) for b in biases[:-1]]

    def loss(x: Tensor) -> Tensor:
        return (mlp(x, weights, biases, norms=norms) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want, got = (torch.autograd.grad(f(x), [x, *weights]) for f in (loss, compiled))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))

"""How the operators behave inside torch: tracing, vmap, autograd, autocast, dtypes, shapes, errors."""

import itertools
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import qcse_ext
from qcse_ext import _C
from qcse_ext.bonus import batch_entropy
from qcse_ext.nets.critic import conservative_loss, critic_values
from qcse_ext.nets.mlp import mlp
from qcse_ext.nets.tanh_gaussian import tanh_gaussian

GENERATOR = torch.Generator().manual_seed(0)
KNN, ENTROPY = torch.ops.qcse.knn.default, torch.ops.qcse.entropy.default


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR).to(dtype)


def calls() -> list[tuple[Any, ...]]:
    index = torch.arange(30).roll(1)
    index[3] = -1
    return [
        (randn(40, 5), randn(40), 3),
        (randn(2, 3, 20, 7, dtype=torch.float64), randn(2, 3, 20, dtype=torch.float64), 19),
        (randn(30, 5, dtype=torch.bfloat16), randn(30, dtype=torch.bfloat16), 1),
        (randn(30, 4), randn(30), 9, randn(9, 4), randn(9)),
        (randn(30, 4).requires_grad_(), randn(30).requires_grad_(), 5, randn(50, 4), randn(50), index),
        (randn(4, 30).T, randn(60)[::2], 3),
        (randn(0, 4), randn(0), 3),
    ]


@pytest.mark.parametrize("args", calls())
@pytest.mark.parametrize("op", [KNN, ENTROPY], ids=["knn", "entropy"])
def test_opcheck(op: Any, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def bonus(states: Tensor, values: Tensor, buffer: Tensor, buffer_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        radius, count = qcse_ext.knn(states * 2, values, 5)
        return radius + 1, count, torch.tanh(qcse_ext.entropy(states, values, 4, buffer, buffer_values))

    compiled = torch.compile(bonus, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (20, 33):
        args = (randn(n, 6), randn(n), randn(50, 6), randn(50))
        for got, expected in zip(compiled(*args), bonus(*args)):
            assert torch.equal(got, expected)
    torch._dynamo.reset()


def test_compile_with_inductor() -> None:
    def bonus(states: Tensor, values: Tensor) -> Tensor:
        return torch.tanh(qcse_ext.entropy(states / 3, values, 4)) * 2

    states, values = randn(64, 6), randn(64)
    compiled = torch.compile(bonus, fullgraph=True)
    torch.testing.assert_close(compiled(states, values), bonus(states, values), rtol=1e-6, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize("dims", [(0, 0), (1, 0), (0, 1), (2, 1), (0, None), (None, 0), (-1, -1)])
def test_vmap_equals_a_loop(dims: tuple[int | None, int | None]) -> None:
    states, values = randn(4, 15, 3), randn(4, 15)

    def place(x: Tensor, dim: int | None) -> Tensor:
        return x[0] if dim is None else x.movedim(0, dim)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = torch.vmap(lambda s, q: qcse_ext.knn(s, q, 4), in_dims=dims)(
            place(states, dims[0]), place(values, dims[1])
        )
        mapped_entropy = torch.vmap(lambda s, q: qcse_ext.entropy(s, q, 4), in_dims=dims)(
            place(states, dims[0]), place(values, dims[1])
        )
    for i in range(4):
        s = states[0 if dims[0] is None else i]
        q = values[0 if dims[1] is None else i]
        for got, expected in zip(mapped, qcse_ext.knn(s, q, 4)):
            assert torch.equal(got[i], expected)
        assert torch.equal(mapped_entropy[i], qcse_ext.entropy(s, q, 4))


def test_vmap_over_queries_with_a_shared_buffer() -> None:
    states, values, buffer, buffer_values = randn(3, 10, 4), randn(3, 10), randn(40, 4), randn(40)
    index = torch.randint(-1, 40, (3, 10), generator=GENERATOR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        radius, count = torch.vmap(
            lambda s, q, i: qcse_ext.knn(s, q, 6, reference_states=buffer, reference_values=buffer_values, self_index=i)
        )(states, values, index)
    for i in range(3):
        expected = qcse_ext.knn(states[i], values[i], 6, buffer, buffer_values, index[i])
        assert torch.equal(radius[i], expected[0]) and torch.equal(count[i], expected[1])


def test_nested_vmap() -> None:
    states, values = randn(2, 12, 3, 5), randn(3, 2, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = torch.vmap(torch.vmap(lambda s, q: qcse_ext.entropy(s, q, 4), in_dims=(1, 0)), in_dims=(0, 1))(
            states, values
        )
    assert torch.equal(mapped, qcse_ext.entropy(states.movedim(2, 1), values.movedim(1, 0), 4))


def test_outputs_never_require_grad() -> None:
    states, values = randn(20, 3).requires_grad_(), randn(20).requires_grad_()
    radius, count = qcse_ext.knn(states, values, 3)
    assert not radius.requires_grad and not count.requires_grad
    assert not qcse_ext.entropy(states, values, 3).requires_grad
    assert not qcse_ext.conditional_entropy(states, values, 3).requires_grad
    half = states.detach().bfloat16().requires_grad_()
    assert not qcse_ext.entropy(half, values.detach().bfloat16(), 3).requires_grad


def test_a_loss_that_contains_the_bonus_has_the_gradient_it_has_without() -> None:
    weight, data, values = randn(5, 4).requires_grad_(), randn(30, 5), randn(30)

    def gradient(with_bonus: bool) -> Tensor:
        states = data @ weight
        loss = (states**2).mean()
        if with_bonus:
            loss = loss + torch.tanh(qcse_ext.entropy(states, values, 4)).mean()
        (result,) = torch.autograd.grad(loss, weight)
        return result

    assert torch.equal(gradient(True), gradient(False))

    def loss(states: Tensor) -> Tensor:
        return (states**2).sum() + qcse_ext.entropy(states, values, 4).sum()

    assert torch.equal(torch.func.grad(loss)(data), 2 * data)
    assert torch.equal(torch.vmap(torch.func.grad(loss))(data.expand(2, 30, 5)), 2 * data.expand(2, 30, 5))


def test_autocast_computes_in_float32() -> None:
    states, values = randn(30, 4), randn(30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = states @ torch.eye(4)
        assert product.dtype == torch.bfloat16
        radius, _ = qcse_ext.knn(product, values, 3)  # mixed dtypes meet in float32
        result = qcse_ext.entropy(states, values, 3)
        wide = qcse_ext.entropy(states.double(), values.double(), 3)
    assert radius.dtype == torch.float32 and wide.dtype == torch.float64
    assert torch.equal(radius, qcse_ext.knn(product.float(), values, 3)[0])
    assert torch.equal(result, qcse_ext.entropy(states, values, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    states, values = randn(50, 4, dtype=dtype), randn(50, dtype=dtype)
    got, expected = qcse_ext.knn(states, values, 3), qcse_ext.knn(states.float(), values.float(), 3)
    assert got[0].dtype == torch.float32 and got[1].dtype == torch.int64
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 5, 3)])
def test_empty_input_gives_empty_output_before_k_is_looked_at(shape: tuple[int, ...]) -> None:
    states, values = torch.empty(shape), torch.empty(shape[:-1])
    radius, count = qcse_ext.knn(states, values, 1000)
    assert radius.shape == count.shape == shape[:-1] and count.dtype == torch.int64
    assert qcse_ext.entropy(states, values, -1).shape == shape[:-1]
    assert qcse_ext.knn(states, values, 1, states, values)[0].shape == shape[:-1]


def test_rows_that_are_not_finite() -> None:
    states, values = randn(10, 2), randn(10)
    states[0, 1], states[1, 0], values[2] = math.nan, math.inf, -math.inf
    radius, count = qcse_ext.knn(states, values, 6)
    assert radius[:3].isnan().all() and (count[:3] == -1).all()
    expected = qcse_ext.knn(states[3:], values[3:], 6)
    assert torch.equal(radius[3:], expected[0]) and torch.equal(count[3:], expected[1])
    # Seven finite rows leave six candidates: a seventh neighbour does not exist.
    radius, count = qcse_ext.knn(states, values, 7)
    assert radius.isnan().all() and (count == -1).all()


def test_overflow_to_infinity_is_a_radius() -> None:
    states, values = torch.tensor([[0.0], [3e38], [-3e38]]), torch.zeros(3)
    radius, count = qcse_ext.knn(states, values, 2)
    assert (radius == math.inf).all() and (count == 2).all()
    assert (qcse_ext.entropy(states, values, 2) == math.inf).all()


def test_k_limits() -> None:
    states, values = randn(200, 3), randn(200)
    assert qcse_ext.knn(states, values, 128)[0].isfinite().all()
    assert qcse_ext.knn(states[:5], values[:5], 4)[0].isfinite().all()
    assert qcse_ext.knn(states, values, 4, states[:4], values[:4])[0].isfinite().all()
    index = torch.zeros(200, dtype=torch.int64)
    assert qcse_ext.knn(states, values, 3, states[:4], values[:4], index)[0].isfinite().all()


S, Q = randn(8, 3), randn(8)
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("k too small", {"k": 0}, r"k must be from 1 to 128, got 0"),
    ("k too large", {"k": 129}, r"k must be from 1 to 128, got 129"),
    ("k beyond N - 1", {"k": 8}, r"k must be at most N - 1 = 7.*got k = 8.*\[8, 3\]"),
    (
        "k beyond M",
        {"k": 4, "reference_states": S[:3], "reference_values": Q[:3]},
        r"k must be at most M = 3.*\[3, 3\]",
    ),
    (
        "k beyond M - 1",
        {"k": 3, "reference_states": S[:3], "reference_values": Q[:3], "self_index": torch.zeros(8, dtype=torch.int64)},
        r"k must be at most M - 1 = 2",
    ),
    ("states 1-D", {"states": Q, "values": torch.tensor(0.0)}, r"states must have shape \[\.\.\., N, D\].*got \[8\]"),
    ("values shape", {"values": Q[:7]}, r"values must have the shape of states.*got values \[7\] and states \[8, 3\]"),
    ("integer states", {"states": S.long()}, r"states must be float32.*got int64"),
    ("values dtype", {"values": Q.double()}, r"values must have the dtype of states \(float32\), got float64"),
    ("no dimension", {"states": torch.empty(8, 0)}, r"last dimension of states must be from 1 to 1024, got 0"),
    ("too many dimensions", {"states": torch.empty(8, 1025)}, r"last dimension of states.*got 1025"),
    ("states alone", {"reference_states": S}, r"go together; got only reference_states"),
    ("values alone", {"reference_values": Q}, r"go together; got only reference_values"),
    (
        "reference dimension",
        {"reference_states": S[:, :2], "reference_values": Q},
        r"reference_states must have shape.*got \[8, 2\] and states \[8, 3\]",
    ),
    (
        "reference batch",
        {"reference_states": S.expand(2, 8, 3), "reference_values": Q.expand(2, 8)},
        r"reference_states must have shape.*leading dimensions.*got \[2, 8, 3\]",
    ),
    (
        "reference values",
        {"reference_states": S, "reference_values": Q[:5]},
        r"reference_values must have the shape of reference_states.*got reference_values \[5\]",
    ),
    (
        "reference dtype",
        {"reference_states": S.half(), "reference_values": Q.half()},
        r"reference_states must have the dtype of states \(float32\), got float16",
    ),
    ("index alone", {"self_index": torch.arange(8)}, r"self_index names rows of reference_states, which is missing"),
    (
        "index dtype",
        {"reference_states": S, "reference_values": Q, "self_index": torch.arange(8).int()},
        r"self_index must be int64, got int32",
    ),
    (
        "index shape",
        {"reference_states": S, "reference_values": Q, "self_index": torch.arange(7)},
        r"self_index must have the shape of values \[8\], got \[7\]",
    ),
    (
        "index range",
        {"reference_states": S, "reference_values": Q, "self_index": torch.arange(8) + 1},
        r"self_index must be -1 or a row of reference_states \(0 to 7\), got 8 at flat position 7",
    ),
]


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
@pytest.mark.parametrize("name", ["knn", "entropy"])
def test_errors_name_argument_got_and_expected(name: str, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"states": S, "values": Q, "k": 3, **change}
    with pytest.raises(RuntimeError) as error:
        getattr(qcse_ext, name)(**arguments)
    assert re.search(message, str(error.value)), str(error.value)
    assert str(error.value).startswith(f"qcse::{name}: ")


@pytest.mark.skipif(_C.build_info()["cuda"], reason="this build holds the CUDA kernels")
def test_a_cuda_tensor_without_cuda_kernels_is_told_how_to_build_them() -> None:
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError, match=r"QCSE_CUDA=ON"):
        KNN.redispatch(cuda, S, Q, 3)
    with pytest.raises(RuntimeError, match=r"QCSE_CUDA=ON"):
        ENTROPY.redispatch(cuda, S, Q, 3)


def test_inputs_are_left_alone_and_threads_do_not_disturb() -> None:
    states, values = randn(100, 4), randn(100)
    before = states.clone(), values.clone()
    qcse_ext.entropy(states, values, 5)
    assert torch.equal(states, before[0]) and torch.equal(values, before[1])


def test_inference_mode_and_no_grad() -> None:
    states, values = randn(30, 4), randn(30)
    expected = qcse_ext.entropy(states, values, 5)
    with torch.inference_mode():
        assert torch.equal(qcse_ext.entropy(states, values, 5), expected)
    with torch.no_grad():
        assert torch.equal(qcse_ext.entropy(states, values, 5), expected)


# --- Derivatives that are not offered, devices ------------------------------------------------------------------------


def networks() -> tuple[list[Tensor], list[Tensor]]:
    sizes = (5, 7, 1)
    return [randn(2, a, b) for a, b in itertools.pairwise(sizes)], [randn(2, 1, b) for b in sizes[1:]]


def functions() -> dict[str, tuple[Callable[..., Tensor], list[Tensor], int]]:
    """Of all functions of the package: a result, what it is computed from, how many of those get a gradient."""
    weights, biases = networks()
    n = len(weights)

    def critics(states: Tensor, actions: Tensor, *parameters: Tensor) -> Tensor:
        return critic_values(states, actions, list(parameters[:n]), list(parameters[n:]))

    def loss(*inputs: Tensor) -> Tensor:
        parameters, others = inputs[: 2 * n], inputs[2 * n :]
        return conservative_loss(*others[:2], list(parameters[:n]), list(parameters[n:]), *others[2:])[0].sum()

    def batch(states: Tensor, values: Tensor) -> Tensor:
        moments = states.new_zeros(1, 4), states.new_ones(1, 4), states.new_zeros(1)
        eligible = torch.ones(1, 20, dtype=torch.bool, device=states.device)
        return batch_entropy(states, values, torch.arange(20, device=states.device)[None], eligible, *moments, 3)[0]

    states, values = randn(20, 3), randn(20)
    rows = [randn(1, 4, 3), randn(1, 4, 7, 2)]
    targets = [randn(1, 4), randn(1, 4, 6), randn(1, 4), randn(1)]
    return {
        "knn": (lambda s, q: qcse_ext.knn(s, q, 3)[0], [states, values], 0),
        "entropy": (lambda s, q, r, p: qcse_ext.entropy(s, q, 3, r, p), [states, values, randn(9, 3), randn(9)], 0),
        "batch_entropy": (batch, [states[None], values[None]], 0),
        "critic_values": (critics, [*rows, *weights, *biases], 0),
        "mlp": (
            lambda x, *p: mlp(x, list(p[:n]), list(p[n:])),
            [randn(2, 8, 5), *weights, *biases],
            1 + 2 * n,
        ),
        "tanh_gaussian": (lambda *p: tanh_gaussian(*p)[1], [randn(6, 2), randn(6, 2), randn(6, 4, 2)], 2),
        "conservative_loss": (loss, [*weights, *biases, *rows, *targets], 2 * n),
    }


@pytest.mark.parametrize(("name", "argument"), [(f, i) for f, (_, x, _) in functions().items() for i in range(len(x))])
def test_forward_mode_raises(name: str, argument: int) -> None:
    function, inputs, _ = functions()[name]

    def of_one(x: Tensor) -> Tensor:
        return function(*inputs[:argument], x, *inputs[argument + 1 :])

    x, one = inputs[argument], torch.ones(())
    expected = pytest.raises(RuntimeError, match=rf"qcse_ext\.{name}: .*forward-mode")
    with expected:
        torch.func.jvp(of_one, (x,), (torch.ones_like(x),))
    with expected:
        torch.func.jacfwd(of_one)(x)
    with expected:  # the inner transform does not see the outer one's tangent
        torch.func.jvp(
            lambda x: torch.func.jvp(lambda z: z * of_one(x), (one,), (one,))[1], (x,), (torch.ones_like(x),)
        )
    with expected, forward_ad.dual_level():
        of_one(forward_ad.make_dual(x, torch.ones_like(x)))
    with expected, forward_ad.dual_level(), torch.no_grad():
        of_one(forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("name", sorted(functions().keys() - {"conservative_loss"}))  # which no transform may hold
def test_forward_mode_beside_it_is_as_ever(name: str) -> None:
    function, inputs, _ = functions()[name]
    x = inputs[0]

    def plus_square(x: Tensor) -> Tensor:
        return (x**2).sum() + function(x.detach(), *inputs[1:]).sum()

    _, tangent = torch.func.jvp(plus_square, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, 2 * x.sum())
    if name in ("knn", "entropy"):  # those with a vmap rule
        z = torch.ones(())
        mapped = torch.func.jvp(lambda z: z * torch.vmap(lambda y: function(y, *inputs[1:]))(x[None]).sum(), (z,), (z,))
        torch.testing.assert_close(mapped[1], function(*inputs).sum())


@pytest.mark.parametrize(("name", "argument"), [(f, i) for f, (_, _, n) in functions().items() for i in range(n)])
def test_second_derivatives_raise(name: str, argument: int) -> None:
    function, inputs, _ = functions()[name]
    inputs = [x.requires_grad_(i == argument) for i, x in enumerate(inputs)]
    x = inputs[argument]
    expected = pytest.raises(RuntimeError, match=rf"qcse_ext\.{name}: .*second derivatives are not offered")
    (grad,) = torch.autograd.grad(function(*inputs).sum(), x, create_graph=True)
    with expected:  # a penalty on the gradient: the part that is there must not hide the part that is not
        (grad.square().sum() + x.sum()).backward()
    (grad,) = torch.autograd.grad(function(*inputs).square().sum(), x, create_graph=True)
    with expected:
        torch.autograd.grad(grad.sum(), x)
    with expected:
        torch.autograd.functional.jvp(
            lambda x: function(*inputs[:argument], x, *inputs[argument + 1 :]), x, torch.ones_like(x)
        )
    (once,) = torch.autograd.grad(function(*inputs).square().sum(), x)
    assert torch.equal(grad, once) and not once.requires_grad


@pytest.mark.parametrize(("name", "argument"), [(f, i) for f, (_, x, _) in functions().items() for i in range(len(x))])
def test_devices_that_differ_are_both_named(name: str, argument: int) -> None:
    function, inputs, _ = functions()[name]
    one, others = list(inputs), [x.to("meta") for x in inputs]
    one[argument], others[argument] = others[argument], one[argument]
    expected = pytest.raises(RuntimeError, match=r"qcse::.* on (meta.* on cpu|cpu.* on meta)")
    for mixed in (one, others):
        with expected:
            function(*mixed)


@pytest.mark.parametrize("name", functions())
def test_meta_and_fake_tensors_give_shapes(name: str) -> None:
    function, inputs, _ = functions()[name]
    want = function(*inputs)
    got = function(*[x.to("meta") for x in inputs])
    assert got.is_meta and got.shape == want.shape and got.dtype == want.dtype
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in inputs]
        assert function(*fake).shape == want.shape
        with pytest.raises(RuntimeError, match=r"qcse::.* on (meta.* on cpu|cpu.* on meta)"):
            function(*fake[:-1], torch.empty(inputs[-1].shape, device="meta"))

"""The operators with arguments of any kind: the result of the definition in plain torch, or an error, never a crash.

Arguments begin as a sound problem, in any layout and with any numbers; then some are bent: other sizes, dtypes or
devices, another index, a list that is too short. Arguments that nobody bent must be answered.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qcse_ext import reference

OPS = torch.ops.qcse
FLOATS = [torch.float32, torch.float64]
ANY_DTYPE = [*FLOATS, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64]
SPECIAL = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e30, 1e-40, -1e-45, 0.0, -0.0]
CONTENTS = ["normal", "normal", "ties", "zeros", "tiny", "huge", "special"]
LAYOUTS = ["dense", "dense", "transposed", "every other", "reversed", "offset", "negated", "expanded", "needs grad"]
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 6)
any_k = st.integers(-2, 140) | st.sampled_from([2**31, 2**63 - 1, -(2**63)])
any_number = st.floats() | st.sampled_from([1e-5, 1.0, 0.0, -1.0])


def tensor(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, contents: str, layout: str = "") -> Tensor:
    """Numbers of one kind, in some layout (drawn where none is named)."""
    generator = torch.Generator().manual_seed(draw(seeds))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if contents == "ties":
        x = x.round()
    elif contents == "special":
        chosen = torch.tensor(SPECIAL, dtype=torch.float64)[torch.randint(len(SPECIAL), shape, generator=generator)]
        x = torch.where(torch.rand(shape, generator=generator) < 0.2, chosen, x)
    else:
        x *= {"normal": 1.0, "zeros": 0.0, "tiny": 1e-42, "huge": 1e37}[contents]
    x = x.to(dtype)
    layout = layout or draw(st.sampled_from(LAYOUTS))
    if layout == "transposed" and x.dim() >= 2:
        return x.mT.contiguous().mT
    if layout == "every other":
        return torch.stack([x, torch.full_like(x, 7)], -1)[..., 0]
    if layout == "reversed" and x.dim() >= 1:
        return x.flip(0).contiguous().flip(0)
    if layout == "offset":
        return torch.cat([x.new_zeros(3), x.reshape(-1)])[3:].view(shape)
    if layout == "negated" and x.dtype in FLOATS:  # a view that torch negates lazily
        return torch.complex(x, -x).conj().imag
    if layout == "expanded" and x.dim() >= 1 and x.shape[0] > 0:
        return x[:1].expand(shape)
    return x.requires_grad_(layout == "needs grad" and x.is_floating_point())


def bend(draw: st.DrawFn, arguments: list[Any]) -> bool:
    """Changes up to three arguments in place, mostly none; says whether it did."""
    turns = draw(st.sampled_from([0, 0, 1, 1, 2, 3]))
    for _ in range(turns):
        place = draw(st.integers(0, len(arguments) - 1))
        x = arguments[place]
        if isinstance(x, list):
            way = draw(st.sampled_from(["one", "drop", "double", "none"]))
            if way == "one" and x:
                x = list(x)
                i = draw(st.integers(0, len(x) - 1))
                x[i] = bent(draw, x[i])
            arguments[place] = {"one": x, "drop": x[1:], "double": x + x, "none": []}[way]
        elif isinstance(x, Tensor):
            arguments[place] = bent(draw, x)
        elif isinstance(x, bool):
            arguments[place] = not x
        elif isinstance(x, int):
            arguments[place] = draw(any_k)
        elif isinstance(x, float):
            arguments[place] = draw(any_number)
    return turns > 0


def bent(draw: st.DrawFn, x: Tensor) -> Tensor:
    way = draw(st.sampled_from(["shorter", "longer", "empty", "dtype", "meta", "more", "fewer", "numbers"]))
    if way == "dtype":
        return x.detach().to(draw(st.sampled_from(ANY_DTYPE)))
    if way == "meta":
        return x.detach().to("meta")
    if way == "more":
        return x.unsqueeze(draw(st.integers(0, x.dim())))
    if way == "numbers":
        big = draw(st.sampled_from([-(2**63), -2, -1, 5, 2**31, 2**63 - 1]))
        return torch.full_like(x, big if x.dtype == torch.int64 else 1)
    if x.dim() == 0:
        return x
    dim = draw(st.integers(0, x.dim() - 1))
    if way == "fewer":
        return x.select(dim, 0) if x.shape[dim] else x
    if way == "longer":
        return torch.cat([x, x], dim)
    return x.narrow(dim, 0, max(0, x.shape[dim] - 1) if way == "shorter" else 0)


def answer(op: Any, arguments: list[Any], must: bool) -> Any:
    """The operator's, or None where it refuses."""
    try:
        result = op(*arguments)
    except (RuntimeError, ValueError) as error:
        assert not must, error
        assert str(error).strip(), "an error without a message"
        return None
    return None if any(x.is_meta for x in tensors(arguments)) else result


def tensors(arguments: Any) -> list[Tensor]:
    if isinstance(arguments, Tensor):
        return [arguments]
    return [x for part in arguments for x in tensors(part)] if isinstance(arguments, list | tuple) else []


@st.composite
def searches(draw: st.DrawFn) -> tuple[list[Any], bool]:
    """Arguments of knn, and whether they must be answered."""
    dtype = draw(st.sampled_from([*FLOATS, torch.float16, torch.bfloat16]))
    contents = draw(st.sampled_from(CONTENTS))
    leading = draw(st.sampled_from([(), (), (1,), (2,), (2, 3), (0,)]))
    n, m = draw(st.integers(0, 40)), draw(st.integers(1, 90))
    dim = draw(st.sampled_from([1, 2, 3, 7, 16, 17, 33, 1024]))
    k = draw(st.sampled_from([1, 2, 5, 12, 128]) | any_k)
    arguments: list[Any] = [
        tensor(draw, (*leading, n, dim), dtype, contents),
        tensor(draw, (*leading, n), dtype, contents),
        k,
    ]
    most = n - 1
    if draw(st.booleans()):
        arguments += [tensor(draw, (*leading, m, dim), dtype, contents), tensor(draw, (*leading, m), dtype, contents)]
        most = m
        if draw(st.booleans()):
            generator = torch.Generator().manual_seed(draw(seeds))
            arguments.append(torch.randint(-1, m, (*leading, n), generator=generator))
            most = m - 1
    empty = n == 0 or 0 in leading
    return arguments, not bend(draw, arguments) and (empty or 1 <= k <= min(most, 128))


@given(searches())
def test_knn(problem: tuple[list[Any], bool]) -> None:
    arguments, must = problem
    result = answer(OPS.knn, arguments, must)
    if result is None:
        return
    radius, count = result
    assert not radius.requires_grad and radius.shape == count.shape == arguments[1].shape
    if radius.numel() == 0:
        return
    want_radius, want_count = reference.knn(*arguments)
    if arguments[0].dtype == torch.float64:
        torch.testing.assert_close(radius, want_radius, rtol=1e-12, atol=0, equal_nan=True)
        assert torch.equal(count < 0, want_count < 0)
    else:
        torch.testing.assert_close(radius, want_radius, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(count, want_count)


@given(searches(), any_number)
def test_entropy(problem: tuple[list[Any], bool], offset: float) -> None:
    arguments, must = problem
    result = answer(OPS.entropy, [*arguments, *[None] * (6 - len(arguments)), offset], must)
    if result is None or result.numel() == 0 or arguments[0].dtype == torch.float64:
        return
    want = reference.entropy(*arguments, *[None] * (6 - len(arguments)), offset=offset)
    torch.testing.assert_close(result, want, rtol=1e-5, atol=1e-5, equal_nan=True)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Any], bool]:
    dtype, contents = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(CONTENTS))
    s, n, d = draw(st.integers(0, 3)), draw(st.integers(0, 30)), draw(st.sampled_from([1, 3, 17]))
    generator = torch.Generator().manual_seed(draw(seeds))
    arguments = [
        tensor(draw, (s, n, d), dtype, contents),
        tensor(draw, (s, n), dtype, contents),
        torch.randint(0, max(n, 1), (s, n), generator=generator),
        torch.rand(s, n, generator=generator) < 0.8,
        tensor(draw, (s, d + 1), dtype, "normal", "dense"),
        tensor(draw, (s, d + 1), dtype, "normal", "dense").abs(),
        torch.zeros(s, dtype=dtype),
        draw(st.integers(1, 12)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([1.0, 5.0, 1e6, math.inf])),
        draw(st.sampled_from([1.0, 4.0])),
        draw(st.sampled_from([1e-5, 0.1])),
    ]
    return arguments, not bend(draw, arguments)


@given(batches())
def test_batch_entropy(problem: tuple[list[Any], bool]) -> None:
    """A row that is not finite is as one that is not eligible; the moments stay finite."""
    arguments, must = problem
    moments = [x.detach().clone() if isinstance(x, Tensor) else x for x in arguments[4:7]]
    result = answer(OPS.batch_entropy, arguments, must)
    if result is None:
        return
    entropy, covered, _ = result
    states, values, _, eligible = arguments[:4]
    finite = eligible & states.isfinite().all(-1) & values.isfinite()
    assert not (covered & ~finite).any() and not entropy[~covered].any()
    other = [*arguments[:3], finite, *moments, *arguments[7:]]
    if finite.dtype == torch.bool and must:
        again = OPS.batch_entropy(*other)
        assert torch.equal(again[0].nan_to_num(), entropy.nan_to_num()) and torch.equal(again[1], covered)
        for got, want in zip(arguments[4:7], moments, strict=True):
            assert torch.equal(got, want) and got.isfinite().all()


@st.composite
def networks(draw: st.DrawFn, nets: int, inputs: int, outputs: int, dtype: torch.dtype, contents: str) -> list[Any]:
    """Weights and biases of 2 to 4 layers."""
    widths = [inputs, *draw(st.lists(st.sampled_from([1, 2, 31, 32, 33, 70]), min_size=1, max_size=3)), outputs]
    pairs = list(itertools.pairwise(widths))
    weights = [tensor(draw, (nets, a, b), dtype, contents) for a, b in pairs]
    return [weights, [tensor(draw, (nets, 1, b), dtype, contents) for _, b in pairs]]


@st.composite
def perceptrons(draw: st.DrawFn) -> tuple[list[Any], bool]:
    dtype, contents = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(CONTENTS))
    nets, rows, inputs, outputs = draw(sizes), draw(st.sampled_from([1, 3, 63, 64, 65, 130])), draw(sizes), draw(sizes)
    x = tensor(draw, (nets, rows, inputs), dtype, contents)
    arguments = [x, *draw(networks(nets, inputs, outputs, dtype, contents)), False, draw(st.booleans())]
    return arguments, not bend(draw, arguments)


@given(perceptrons(), st.booleans(), st.booleans())
def test_mlp(problem: tuple[list[Any], bool], want_input: bool, want_parameters: bool) -> None:
    arguments, must = problem
    result = answer(OPS.mlp_forward, arguments, must)
    if result is None or arguments[3]:  # bfloat16 is another result
        return
    x, weights, biases, _, keep = arguments
    y, hidden = result
    h = x.double()
    for layer, (w, b) in enumerate(zip(weights, biases)):
        h = (h.relu() if layer else h) @ w.double() + b.double()
    if h.isfinite().all() and h.abs().max() < 1e30:
        tolerance = 1e-3 if x.dtype == torch.float32 else 1e-9
        torch.testing.assert_close(y.double(), h, rtol=tolerance, atol=tolerance * float(1 + h.detach().abs().max()))
    backward = [torch.ones_like(y), x, hidden if keep else torch.randn_like(hidden), weights, biases, False]
    answer(OPS.mlp_backward, [*backward, want_input, want_parameters], bool(keep))


@st.composite
def wrong_hiddens(draw: st.DrawFn) -> list[Any]:
    """Arguments of mlp_backward whose hidden activations are anything, in the right shape or another."""
    (x, weights, biases, *_), _ = draw(perceptrons().filter(lambda problem: problem[1]))
    y, hidden = OPS.mlp_forward(x, weights, biases, False, True)
    anything = tensor(draw, tuple(hidden.shape), hidden.dtype, draw(st.sampled_from(CONTENTS)), "dense")
    anything[0, 0, -1, -1] = draw(st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.5, 1e9, math.nan, math.inf]))
    arguments = [y, x, anything, weights, biases, False, True, True]
    bend(draw, arguments)
    return arguments


@given(wrong_hiddens())
def test_mlp_backward_of_anything(arguments: list[Any]) -> None:
    answer(OPS.mlp_backward, arguments, must=False)


@st.composite
def policies(draw: st.DrawFn) -> tuple[list[Any], bool]:
    dtype, contents = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(CONTENTS))
    leading = draw(st.sampled_from([(), (1,), (3,), (2, 4)]))
    samples, dim = draw(st.sampled_from([1, 2, 9])), draw(st.sampled_from([1, 3, 17]))
    arguments: list[Any] = [tensor(draw, (*leading, dim), dtype, contents) for _ in range(2)]
    arguments.append(tensor(draw, (*leading, samples, dim), dtype, contents))
    return arguments, not bend(draw, arguments)


@given(policies())
def test_tanh_gaussian(problem: tuple[list[Any], bool]) -> None:
    arguments, must = problem
    result = answer(OPS.tanh_gaussian, arguments, must)
    if result is None:
        return
    actions, log_prob = result
    mean, log_std, noise = (x.double().unsqueeze(-2) for x in arguments)
    want = (mean + log_std.exp() * noise.squeeze(-2)).tanh()
    finite = want.isfinite() & (log_std.abs() < 20)
    torch.testing.assert_close(actions.double()[finite], want[finite], rtol=1e-4, atol=1e-5)
    assert log_prob.shape == actions.shape[:-1]
    backward = [torch.ones_like(actions), torch.ones_like(log_prob), actions, *arguments[1:]]
    answer(OPS.tanh_gaussian_backward, backward, must=True)


@st.composite
def critics(draw: st.DrawFn) -> tuple[list[Any], bool]:
    """Arguments of conservative_loss, whose first four are those of critic_values."""
    dtype, contents = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(CONTENTS))
    s, members, batch, n, d, a = (draw(st.integers(1, 3)) for _ in range(6))
    arguments = [tensor(draw, (s, batch, d), dtype, contents), tensor(draw, (s, batch, 1 + 3 * n, a), dtype, contents)]
    arguments += draw(networks(s * members, d + a, 1, dtype, contents))
    shapes = [(s, batch), (s, batch, 3 * n), (s, batch), (s,)]
    arguments += [tensor(draw, shape, dtype, contents) for shape in shapes]
    arguments += [1.0, draw(st.sampled_from([-math.inf, 0.0])), draw(st.booleans()), False]
    return arguments, not bend(draw, arguments)


@given(critics())
def test_critic(problem: tuple[list[Any], bool]) -> None:
    arguments, must = problem
    answer(OPS.conservative_loss, arguments, must)
    values = answer(OPS.critic_values, arguments[:4], must)
    if values is None:
        return
    states, actions, weights, biases = (
        x.double() if isinstance(x, Tensor) else [w.double() for w in x] for x in arguments[:4]
    )
    s, batch, n, _ = actions.shape
    rows = torch.cat([states.unsqueeze(2).expand(-1, -1, n, -1), actions], -1).view(s, 1, batch * n, -1)
    h = rows
    for layer, (w, b) in enumerate(zip(weights, biases)):
        w, b = (t.view(s, -1, *t.shape[1:]) for t in (w, b))
        h = (h.relu() if layer else h) @ w + b
    if h.isfinite().all() and h.abs().max() < 1e30:
        tolerance = 1e-3 if arguments[0].dtype == torch.float32 else 1e-9
        want = h.view(values.shape)
        torch.testing.assert_close(
            values.double(), want, rtol=tolerance, atol=tolerance * float(1 + h.detach().abs().max())
        )

"""Adam with its followers: the definition against torch's own optimiser, and the call of a kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.nets.adam import adam_, adam_in_torch_

SHAPES = [(3, 4), (7,), (), (2, 1, 5)]
SETTINGS = 0.9, 0.999, 1e-8


def randn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state() -> dict[str, list[Tensor]]:
    numbers = enumerate(SHAPES)
    made = {"parameters": [randn(shape, i) for i, shape in numbers]}
    made["gradients"] = [randn(shape, 10 + i) for i, shape in enumerate(SHAPES)]
    made["first_moments"] = [torch.zeros_like(p) for p in made["parameters"]]
    made["second_moments"] = [torch.zeros_like(p) for p in made["parameters"]]
    made["steps"] = [torch.zeros(()) for _ in SHAPES]
    return made


def test_the_definition_is_torchs_adam() -> None:
    own, targets, rates = state(), [randn(SHAPES[2], 30), randn(SHAPES[0], 31)], [1e-3, 3e-4, 1e-2, 1e-3]
    theirs = [p.clone().requires_grad_() for p in own["parameters"]]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(theirs, rates, strict=True)]
    optimizer = torch.optim.Adam(groups)
    followers = [t.clone() for t in targets]
    for step in range(50):
        own["gradients"] = [randn(shape, 100 * step + i) for i, shape in enumerate(SHAPES)]
        for p, g in zip(theirs, own["gradients"], strict=True):
            p.grad = g
        optimizer.step()
        torch._foreach_lerp_(followers, [theirs[2].detach(), theirs[0].detach()], 0.1)
        adam_(*own.values(), rates, *SETTINGS, targets, [2, 0], 0.1)
    for got, want in zip([*own["parameters"], *targets], [*theirs, *followers], strict=True):
        assert torch.allclose(got, want.detach(), rtol=1e-12, atol=1e-12)
    for i, p in enumerate(theirs):
        saved = optimizer.state[p]
        assert torch.allclose(own["second_moments"][i], saved["exp_avg_sq"], rtol=1e-12)
        assert own["steps"][i].item() == saved["step"].item() == 50


def test_no_parameters_and_no_targets() -> None:
    adam_([], [], [], [], [], [], *SETTINGS)
    own = state()
    before = [p.clone() for p in own["parameters"]]
    adam_(*own.values(), [1e-3] * 4, *SETTINGS)
    assert not any(torch.equal(a, b) for a, b in zip(before, own["parameters"], strict=True))


@pytest.fixture
def kernel() -> Iterator[list[int]]:
    """A CPU kernel that computes the definition; how many tensors it was called with."""
    library, calls = torch.library.Library("qcse", "IMPL"), list[int]()

    def stand_in(parameters, grads, first, second, steps, targets, followed, rates, *rest):
        *settings, rate, tickets = rest
        assert tickets.dtype == torch.int32 and len(tickets) >= len(parameters) and not tickets.any()
        calls.append(len(parameters))
        adam_in_torch_(parameters, grads, first, second, steps, rates, *settings, targets, followed, rate)

    library.impl("adam_", stand_in, "CPU")
    yield calls
    library._destroy()
    registration._registered.discard(("adam_", "cpu"))


def test_a_kernel_gets_everything(kernel: list[int]) -> None:
    results = []
    for call in (adam_, adam_in_torch_):
        own, targets = state(), [randn(SHAPES[0], 31)]
        call(*own.values(), [1e-3, 1e-2, 1e-3, 1e-3], *SETTINGS, targets, [0], 0.1)
        results.append([*own["parameters"], *own["steps"], *targets])
    assert kernel == [4] and all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_is_not_contiguous_is_the_definitions(kernel: list[int]) -> None:
    own = state()
    own["parameters"][0] = own["parameters"][0].t().contiguous().t()
    adam_(*own.values(), [1e-3] * 4, *SETTINGS)
    assert kernel == []


def test_a_trace_knows_that_nothing_is_returned(kernel: list[int]) -> None:
    own = state()
    lists = [own[name] for name in ("parameters", "gradients", "first_moments", "second_moments", "steps")]
    tickets = torch.zeros(4, dtype=torch.int32)
    arguments = (*lists, [own["parameters"][1].clone()], [1], [1e-3] * 4, *SETTINGS, 0.1, tickets)
    torch.library.opcheck(torch.ops.qcse.adam_, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own["gradients"].pop(), r"gradients must be as long as parameters \(4\), got 3"),
        (lambda own: own["steps"].__setitem__(1, torch.zeros(1)), r"steps\[1\] must have shape \[\]"),
        (lambda own: own["gradients"].__setitem__(0, torch.zeros(3, 4)), r"gradients\[0\] must have the dtype"),
        (lambda own: own["first_moments"].__setitem__(0, torch.zeros(4).double()), r"first_moments\[0\] must have"),
    ],
)
def test_errors_name_the_argument(change, message: str) -> None:
    own = state()
    change(own)
    with pytest.raises(RuntimeError, match=message):
        adam_(*own.values(), [1e-3] * 4, *SETTINGS)


@pytest.mark.parametrize(
    ("followed", "message"), [([9], "numbers of parameters, got 9"), ([0, 0], "twice"), ([], "as many")]
)
def test_errors_of_what_follows(followed: list[int], message: str) -> None:
    targets = [torch.zeros(3, 4).double() for _ in range(max(len(followed), 1))]
    with pytest.raises(RuntimeError, match=message):
        adam_(*state().values(), [1e-3] * 4, *SETTINGS, targets, followed, 0.1)

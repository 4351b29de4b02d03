"""A policy's head, the critics' target and the policy's loss: the definitions against autograd and other formulas, and
the calls of a kernel, for which the definitions stand in. The kernels: tests/emulator/test_policy_kernels.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.nets.actor_critic import (
    actor_loss,
    actor_loss_in_torch,
    bellman_target,
    bellman_target_in_torch,
    gaussian_head,
    gaussian_head_in_torch,
)

BOUNDS = -1.0, 0.5


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def head() -> tuple[Tensor, Tensor, Tensor]:
    raw = (randn(2, 7, 12) * 4).round().div(4)  # some exactly on a bound
    multiplier, offset = torch.tensor([[1.0, 0.5], [0.0, -0.5]], dtype=torch.float64).view(2, 2, 1, 1).unbind()
    return raw.requires_grad_(), multiplier.clone().requires_grad_(), offset.clone().requires_grad_()


def actor(seeds: int = 2, members: int = 3, states: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    q = (randn(seeds, members, states) * 2).round()  # with ties
    return q.requires_grad_(), randn(seeds, states, seed=1).requires_grad_(), randn(seeds, seed=2).exp()


def target() -> tuple[Tensor, ...]:
    values = (randn(2, 3, 5, 4) * 2).round().div(2)
    return values, randn(2, 5, 4, seed=1), randn(2, 5, seed=2), torch.ones(2, 5).double(), randn(2, seed=3).exp()


# --- A kernel that the definitions stand in for -----------------------------------------------------------------------


def head_backward(mean_grad, log_std_grad, raw, multiplier, offset, low, high):
    raw = raw[..., raw.shape[-1] // 2 :]
    before = multiplier * raw + offset
    passed = log_std_grad * ((low <= before) & (before <= high))
    sums = ((passed * raw).sum((1, 2), keepdim=True), passed.sum((1, 2), keepdim=True))
    return torch.cat([mean_grad, passed * multiplier], -1), *sums


def actor_backward(loss_grad, q, temperature, least):
    each = loss_grad.unsqueeze(-1) / q.shape[-1]
    reached = (q == q.amin(1, keepdim=True)).to(q.dtype) if least else torch.ones_like(q)
    log_prob_grad = (each * temperature.unsqueeze(-1)).repeat(1, q.shape[-1])
    return -each.unsqueeze(1) * reached / reached.sum(1, keepdim=True), log_prob_grad


STAND_INS: dict[str, Callable[..., object]] = {
    "gaussian_head": lambda *a: tuple(t.clone() for t in gaussian_head_in_torch(*a)),
    "gaussian_head_backward": head_backward,
    "bellman_target": bellman_target_in_torch,
    "actor_loss": actor_loss_in_torch,
    "actor_loss_backward": actor_backward,
}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CPU kernels that compute the definitions."""
    library = torch.library.Library("qcse", "IMPL")
    for name, stand_in in STAND_INS.items():
        library.impl(name, stand_in, "CPU")
    yield
    library._destroy()
    for name in STAND_INS:
        registration._registered.discard((name, "cpu"))


# --- The definitions --------------------------------------------------------------------------------------------------


def test_the_head_bounds_and_passes_gradients_within() -> None:
    raw, multiplier, offset = head()
    mean, log_std = gaussian_head(raw, multiplier, offset, *BOUNDS)
    before = multiplier * raw[..., 6:] + offset
    assert torch.equal(mean, raw[..., :6]) and torch.equal(log_std, before.clamp(*BOUNDS))
    assert (before == BOUNDS[0]).any() and (before == BOUNDS[1]).any() and (before > BOUNDS[1]).any()
    weight = randn(2, 7, 6, seed=4)
    grads = torch.autograd.grad((log_std * weight).sum(), (raw, multiplier, offset))
    inside = weight * ((before >= BOUNDS[0]) & (before <= BOUNDS[1]))
    assert torch.allclose(grads[0][..., 6:], inside * multiplier) and not grads[0][..., :6].any()
    assert torch.allclose(grads[1], (inside * raw[..., 6:]).sum((1, 2), keepdim=True))
    assert torch.allclose(grads[2], inside.sum((1, 2), keepdim=True))


@pytest.mark.parametrize("entropy", [False, True])
def test_the_target_takes_the_first_of_the_best(entropy: bool) -> None:
    values, log_prob, rewards, bootstrap, temperature = target()
    values[0, 1, 2, 1] = values[1, 0, 0, 3] = math.nan
    got = bellman_target(values, log_prob, rewards, bootstrap, temperature, 0.9, entropy)
    for s in range(2):
        for b in range(5):
            least = [min(values[s, :, b, j].tolist()) for j in range(4)]
            broken = [values[s, :, b, j].isnan().any().item() for j in range(4)]
            best = broken.index(True) if any(broken) else least.index(max(least))
            value = math.nan if any(broken) else least[best]
            if entropy:
                value -= temperature[s].item() * log_prob[s, b, best].item()
            want = rewards[s, b].item() + 0.9 * bootstrap[s, b].item() * value
            assert math.isnan(got[s, b]) if math.isnan(want) else math.isclose(got[s, b], want, rel_tol=1e-12)


@pytest.mark.parametrize("least", [False, True])
def test_the_policys_loss(least: bool) -> None:
    q, log_prob, temperature = actor()
    loss, mean_log_prob = actor_loss(q, log_prob, temperature.requires_grad_(), least)
    value = q.min(1).values if least else q.sum(1) / 3
    assert torch.allclose(loss, (temperature[:, None] * log_prob - value).sum(1) / 5)
    assert torch.allclose(mean_log_prob, log_prob.mean(1)) and not mean_log_prob.requires_grad
    q_grad, log_prob_grad, none = torch.autograd.grad(loss.sum(), (q, log_prob, temperature), allow_unused=True)
    shared = (q == q.amin(1, keepdim=True)).double() if least else torch.ones_like(q)
    assert torch.allclose(q_grad, -shared / shared.sum(1, keepdim=True) / 5)
    assert torch.allclose(log_prob_grad, (temperature / 5)[:, None].expand(2, 5)) and none is None


# --- The calls of a kernel --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
def test_a_kernels_gradients_are_the_definitions() -> None:
    assert all(registration.has_kernel(name, torch.zeros(1)) for name in STAND_INS)
    arguments = head()
    assert torch.autograd.gradcheck(lambda *a: gaussian_head(*a, -5.0, 5.0), arguments)
    q, log_prob, temperature = actor()
    for least in (False, True):
        results = [f(q, log_prob, temperature, least) for f in (actor_loss, actor_loss_in_torch)]
        grads = [torch.autograd.grad((loss * randn(2, seed=5)).sum(), (q, log_prob)) for loss, _ in results]
        assert all(torch.allclose(a, b) for pair in (results, grads) for a, b in zip(*pair, strict=True))
        assert not results[0][1].requires_grad
    assert torch.equal(bellman_target(*target(), 0.9, True), bellman_target_in_torch(*target(), 0.9, True))


@pytest.mark.usefixtures("kernels")
def test_a_kernel_without_a_gradient_and_twice_differentiated() -> None:
    raw, multiplier, offset = head()
    with torch.no_grad():
        assert not gaussian_head(raw, multiplier, offset, *BOUNDS)[1].requires_grad
    log_std = gaussian_head(raw, multiplier, offset, *BOUNDS)[1]
    (grad,) = torch.autograd.grad(log_std.square().sum(), raw, create_graph=True)
    with pytest.raises(RuntimeError, match="second"):
        grad.sum().backward()


@pytest.mark.usefixtures("kernels")
def test_opcheck() -> None:
    arguments = *(t.detach() for t in head()), *BOUNDS
    torch.library.opcheck(torch.ops.qcse.gaussian_head, arguments)
    grads = randn(2, 7, 6), randn(2, 7, 6)
    torch.library.opcheck(torch.ops.qcse.gaussian_head_backward, (*grads, *arguments))
    torch.library.opcheck(torch.ops.qcse.bellman_target, (*target(), 0.9, True))
    q, log_prob, temperature = (t.detach() for t in actor())
    torch.library.opcheck(torch.ops.qcse.actor_loss, (q, log_prob, temperature, True))
    torch.library.opcheck(torch.ops.qcse.actor_loss_backward, (randn(2), q, temperature, True))


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_head(randn(2, 7, 5), randn(2, 1, 1), randn(2, 1, 1), *BOUNDS), r"raw .* \[S, B, 2 A\]"),
        (lambda: gaussian_head(randn(2, 7, 4), randn(2, 1), randn(2, 1, 1), *BOUNDS), "multiplier must have shape"),
        (lambda: gaussian_head(randn(2, 7, 4).int(), randn(2, 1, 1), randn(2, 1, 1), *BOUNDS), "floating-point"),
        (lambda: bellman_target(target()[0][0], *target()[1:], 0.9, True), "values must have shape"),
        (lambda: bellman_target(*target()[:4], randn(3), 0.9, True), "temperature must have shape"),
        (lambda: actor_loss(randn(2, 3, 5), randn(2, 4), randn(2), True), "log_prob must have shape"),
        (lambda: actor_loss(randn(2, 3, 5), randn(2, 5).float(), randn(2), True), "dtype of q"),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()


def test_forward_mode_is_refused() -> None:
    q, log_prob, temperature = (t.detach() for t in actor())
    with pytest.raises(RuntimeError, match="forward-mode"):
        torch.func.jvp(lambda x: actor_loss(x, log_prob, temperature, True)[0], (q,), (q,))

"""Samples of a tanh-squashed Gaussian against torch's own distributions and tanh, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from qcse_ext.nets.tanh_gaussian import tanh_gaussian, tanh_gaussian_in_torch

SHAPES = [(1, 1, 1, 1), (2, 5, 3, 6), (1, 256, 10, 6), (3, 7, 1, 20), (300, 2, 4, 3), (1, 1, 2000, 1)]


def problem(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    *states, _, dim = shape
    mean = torch.randn(*states, dim, generator=generator, dtype=torch.float64)
    log_std = torch.rand(*states, dim, generator=generator, dtype=torch.float64) * 4.0 - 3.0
    noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return mean.to(dtype).requires_grad_(), log_std.to(dtype).requires_grad_(), noise.to(dtype)


def in_torch(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    before = mean.unsqueeze(-2) + log_std.exp().unsqueeze(-2) * noise
    normal = Normal(mean.unsqueeze(-2), log_std.exp().unsqueeze(-2))
    # The cache lets the transform take log(1 - tanh^2) at `before` instead of inverting the tanh.
    law = TransformedDistribution(normal, TanhTransform(cache_size=1))
    actions = law.transforms[0](before)
    return actions, law.log_prob(actions).sum(-1)


def results(samples: tuple[Tensor, Tensor], mean: Tensor, log_std: Tensor) -> list[Tensor]:
    actions, log_prob = samples
    weights = torch.linspace(-1.0, 2.0, actions.numel(), dtype=torch.float64).to(actions.dtype).view(actions.shape)
    loss = (actions * weights).sum() + (log_prob * weights[..., 0]).sum()
    return [actions, log_prob, *torch.autograd.grad(loss, (mean, log_std))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-5)])
def test_samples_and_gradients_equal_torch(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, instruction_set: str
) -> None:
    mean, log_std, noise = problem(shape, dtype)
    exact = [t.detach().double().requires_grad_() for t in (mean, log_std)]
    got = results(tanh_gaussian(mean, log_std, noise), mean, log_std)
    want = results(in_torch(*exact, noise.double()), *exact)
    for a, b in zip(got, want, strict=True):  # torch's softplus is a straight line from 20 on: 2e-9
        assert torch.allclose(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "units"), [(torch.float64, 4.0), (torch.float32, 4.0)])
def test_tanh_and_density_are_accurate_at_every_size(dtype: torch.dtype, units: float, instruction_set: str) -> None:
    size = torch.logspace(-30.0, 4.0, 20001, dtype=torch.float64).to(dtype)
    u = torch.cat([size, -size, torch.zeros(1, dtype=dtype)])
    zeros = torch.zeros_like(u).unsqueeze(-1)
    actions, log_prob = tanh_gaussian(u.unsqueeze(-1), zeros, zeros.unsqueeze(-1))
    exact, epsilon = u.double(), units * torch.finfo(dtype).eps
    assert torch.allclose(actions.flatten().double(), exact.tanh(), rtol=epsilon, atol=0.0)
    # -log(1 - tanh^2) = 2 log cosh
    cosh = exact.abs() + torch.log1p(torch.exp(-2.0 * exact.abs())) - math.log(2.0)
    density = 2.0 * cosh - 0.5 * math.log(2.0 * math.pi)
    assert torch.allclose(log_prob.flatten().double(), density, rtol=epsilon, atol=epsilon)


def test_what_is_not_finite_shows(instruction_set: str) -> None:
    mean = torch.tensor([[math.nan], [math.inf], [-math.inf], [0.0]])
    actions, log_prob = tanh_gaussian(mean, torch.zeros(4, 1), torch.zeros(4, 1, 1))
    assert actions[0].isnan() and log_prob[0].isnan()
    assert actions.flatten()[1:].tolist() == [1.0, -1.0, 0.0] and log_prob.flatten()[1:3].isinf().all()


@pytest.mark.parametrize("of", ["actions", "log_prob"])
def test_a_loss_of_one_result_alone(of: str) -> None:
    mean, log_std, noise = problem((2, 5, 3, 6), torch.float64)
    position = ["actions", "log_prob"].index(of)
    got, want = (
        torch.autograd.grad(f(mean, log_std, noise)[position].square().sum(), (mean, log_std))
        for f in (tanh_gaussian, in_torch)
    )
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-8) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_standard_deviation_out_of_range_saturates(dtype: torch.dtype, instruction_set: str) -> None:
    log_std = torch.tensor([[85.0], [95.0], [800.0], [-800.0]], dtype=dtype)
    actions, _ = tanh_gaussian(torch.full_like(log_std, 0.5), log_std, torch.ones(4, 1, 1, dtype=dtype))
    assert torch.allclose(
        actions.flatten(),
        torch.tensor([1.0, 1.0, 1.0, 0.5], dtype=dtype).where(
            torch.arange(4) < 3, torch.tensor(0.5, dtype=dtype).tanh()
        ),
    )


def test_threads_do_not_change_a_bit() -> None:
    mean, log_std, noise = problem((40, 100, 9, 7), torch.float32)
    before, found = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(results(tanh_gaussian(mean, log_std, noise), mean, log_std))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, s, z: (m, s, z[0]), r"\[\.\.\., A\] and \[\.\.\., n, A\]"),
        (lambda m, s, z: (m, s, z[..., 1:]), "noise must have shape"),
        (lambda m, s, z: (m, s[..., 1:], z), "log_std must have shape"),
        (lambda m, s, z: (m.half(), s.half(), z), r"noise must have the dtype of mean \(float16\), got float64"),
        (lambda m, s, z: (m.float(), s, z), r"log_std must have the dtype of mean \(float32\), got float64"),
        (lambda m, s, z: (m, s, z.float()), "noise must have the dtype"),
    ],
)
def test_errors_name_the_argument(change, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        tanh_gaussian(*change(*problem((2, 5, 3, 6), torch.float64)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, s, z: (m.half(), s.half(), z.half()), "log_std must be float32 or float64"),
        (lambda m, s, z: (m, s, z[..., :0, :]), "not be empty"),
    ],
)
def test_the_kernel_refuses_what_is_the_definitions(change, message: str) -> None:
    arguments = change(*problem((2, 5, 3, 6), torch.float64))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.qcse.tanh_gaussian(*arguments)
    actions, log_prob = tanh_gaussian(*arguments)
    assert actions.shape == arguments[2].shape and log_prob.shape == actions.shape[:-1]
    assert actions.dtype == log_prob.dtype == arguments[0].dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, s, z: (m.int(), s, z), "mean must be of a floating-point dtype, got int32"),
        (lambda m, s, z: (m, s[..., 1:], z), r"log_std must have shape \[2, 5, 6\], got \[2, 5, 5\]"),
        (lambda m, s, z: (m, s, z[0]), "noise must have shape"),
        (lambda m, s, z: (m, s, z.float()), "noise must have the dtype of mean"),
    ],
)
def test_the_definitions_errors_name_the_argument(change, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        tanh_gaussian_in_torch(*change(*problem((2, 5, 3, 6), torch.float64)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_definition_equals_the_kernel(shape: tuple[int, ...], without_kernels: Callable[[], None]) -> None:
    mean, log_std, noise = problem(shape, torch.float64)
    want = results(tanh_gaussian(mean, log_std, noise), mean, log_std)
    without_kernels()
    got = results(tanh_gaussian(mean, log_std, noise), mean, log_std)
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-8) for a, b in zip(got, want, strict=True))
    assert torch.equal(got[0], tanh_gaussian_in_torch(mean, log_std, noise)[0])


def test_gradcheck_and_opcheck() -> None:
    mean, log_std, noise = problem((2, 5, 3, 6), torch.float64)
    assert torch.autograd.gradcheck(tanh_gaussian, (mean, log_std, noise))
    mean, log_std = mean.detach(), log_std.detach()
    torch.library.opcheck(torch.ops.qcse.tanh_gaussian, (mean, log_std, noise))
    actions, log_prob = tanh_gaussian(mean, log_std, noise)
    torch.library.opcheck(torch.ops.qcse.tanh_gaussian_backward, (actions, log_prob, actions, log_std, noise))

"""What stands around the networks, on a GPU: a policy's head and samples, the target, the policy's loss, and Adam with
the targets; against their definitions in float64, captured in graphs, and counted in launches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from gpu_device import DEVICE, every_type, on_gpu
from gpu_launches import launches
from torch import Tensor, nn

from qcse.learn.optimizer import FusedAdam, make_adam, step_with_targets
from qcse_ext.nets.actor_critic import (
    actor_loss,
    actor_loss_in_torch,
    bellman_target,
    bellman_target_in_torch,
    gaussian_head,
    gaussian_head_in_torch,
)
from qcse_ext.nets.tanh_gaussian import tanh_gaussian, tanh_gaussian_in_torch

pytestmark = pytest.mark.cuda
SHAPES = [(1, 2, 256, 10, 6), (8, 2, 256, 1, 17), (3, 10, 70, 4, 33), (1, 1, 1, 1, 1), (2, 2, 5000, 1, 3)]
Call = Callable[..., tuple[Tensor, ...]]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples(s: int, e: int, b: int, n: int, a: int, seed: int) -> list[Tensor]:
    return [normal(seed, s, b, a), normal(seed + 1, s, b, a) - 1.0, normal(seed + 2, s, b, n, a)]


def head(s: int, e: int, b: int, n: int, a: int, seed: int) -> list[Tensor]:
    return [normal(seed, s, b, 2 * a), 0.5 + normal(seed + 1, s, 1, 1).abs(), normal(seed + 2, s, 1, 1)]


def target(s: int, e: int, b: int, n: int, a: int, seed: int) -> list[Tensor]:
    values = (normal(seed, s, e, b, n) * 4).round() / 4  # with ties
    values[:, 0, :: max(b // 3, 1), 0] = torch.nan
    rows = [normal(seed + i, s, b) for i in (1, 2)]
    return [values, normal(seed + 3, s, b, n), *rows, normal(seed + 4, s).exp()]


def actor(s: int, e: int, b: int, n: int, a: int, seed: int) -> list[Tensor]:
    return [(normal(seed, s, e, b) * 4).round() / 4, normal(seed + 1, s, b), normal(seed + 2, s).exp()]


def with_constants(call: Call, *constants: float | bool) -> Call:
    def with_them(*tensors: Tensor) -> tuple[Tensor, ...]:
        result = call(*tensors, *constants)
        return result if isinstance(result, tuple) else (result,)

    return with_them


# The function, its definition, what makes its tensors, and how many of these get a gradient.
CASES = {
    "samples": (with_constants(tanh_gaussian), with_constants(tanh_gaussian_in_torch), samples, 2),
    "head": (with_constants(gaussian_head, -1.5, 0.5), with_constants(gaussian_head_in_torch, -1.5, 0.5), head, 3),
    "target": (with_constants(bellman_target, 0.99, True), with_constants(bellman_target_in_torch, 0.99, True),
               target, 0),
    "actor, least": (with_constants(actor_loss, True), with_constants(actor_loss_in_torch, True), actor, 2),
    "actor, mean": (with_constants(actor_loss, False), with_constants(actor_loss_in_torch, False), actor, 2),
}  # fmt: skip


def everything(call: Call, tensors: list[Tensor], learnt: int) -> list[Tensor]:
    """Results, and the gradients of their weighted sum."""
    inputs = [t.detach().requires_grad_(i < learnt) for i, t in enumerate(tensors)]
    results = call(*inputs)
    if not learnt:
        return list(results)
    loss = sum((r * torch.linspace(-1.0, 2.0, r.numel(), device=r.device, dtype=r.dtype).view(r.shape)).sum()
               for r in results if r.requires_grad)  # fmt: skip
    return [r.detach() for r in results] + list(torch.autograd.grad(loss, inputs[:learnt]))  # type: ignore[arg-type]


@every_type
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_definition(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    call, definition, make, learnt = CASES[name]
    tensors = [t.to(dtype) for t in make(*shape, seed=7)]
    got = everything(call, [t.to(DEVICE) for t in tensors], learnt)
    again = everything(call, [t.to(DEVICE) for t in tensors], learnt)
    # In the kernel's own type, which decides what is at a bound, and summed in double precision.
    want = everything(definition, tensors if name == "head" else [t.double() for t in tensors], learnt)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-8  # torch's softplus is a line from 20 on: 2e-9
    for a, b, c in zip(got, again, want, strict=True):
        scale = c.nan_to_num().abs().max().item() + 1.0  # sums lose what their largest terms are rounded by
        assert torch.allclose(a.cpu().double(), c.double(), rtol=tolerance, atol=tolerance * scale, equal_nan=True)
        assert torch.equal(a.nan_to_num(), b.nan_to_num())  # the same bits again


@on_gpu
@pytest.mark.parametrize("name", CASES)
def test_graph_replay_with_changed_inputs(name: str) -> None:
    call, _, make, learnt = CASES[name]
    tensors = [t.float().cuda() for t in make(*SHAPES[0], seed=0)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            everything(call, tensors, learnt)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = everything(call, tensors, learnt)
    for seed in range(1, 4):
        fresh = [t.float().cuda() for t in make(*SHAPES[0], seed=10 * seed)]
        for to, x in zip(tensors, fresh, strict=True):
            to.copy_(x)
        graph.replay()
        for a, b in zip(answer, everything(call, fresh, learnt), strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), f"replay {seed}"


@on_gpu
@pytest.mark.parametrize("name", CASES)
def test_one_launch_forward_and_one_back(name: str) -> None:
    call, _, make, learnt = CASES[name]
    tensors = [t.float().cuda().requires_grad_(i < learnt) for i, t in enumerate(make(*SHAPES[0], seed=0))]
    with torch.no_grad():
        assert len(launches(lambda: call(*tensors))) == 1
    if learnt:
        results = [r for r in call(*tensors) if r.requires_grad]
        grads = [torch.ones_like(r) for r in results]
        found = launches(lambda: torch.autograd.grad(results, tensors[:learnt], grads, retain_graph=True))
        assert len(found) == 1, found


@on_gpu
def test_the_gradient_for_a_part_of_a_networks_input_is_not_copied() -> None:
    actions, log_std, noise = (t.float().cuda() for t in samples(*SHAPES[0], seed=0))
    actions = noise.tanh()
    part = normal(9, *noise.shape[:-1], 20).float().cuda()[..., 14:]
    log_prob_grad = normal(10, *noise.shape[:-1]).float().cuda()
    arguments = (log_prob_grad, actions, log_std, noise)
    assert len(launches(lambda: torch.ops.qcse.tanh_gaussian_backward(part, *arguments))) == 1
    got = torch.ops.qcse.tanh_gaussian_backward(part, *arguments)
    want = torch.ops.qcse.tanh_gaussian_backward(part.contiguous(), *arguments)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@every_type
@pytest.mark.parametrize("same", [(), (-2,), (0, 1), (-1,), (0, 1, -2), (0, 1, -2, -1)], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 3, 5, 4), (2, 1, 5, 4), (2, 3, 1, 4), (2, 3, 5, 1)])
def test_a_gradient_that_is_the_same_for_many(
    shape: tuple[int, ...], same: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Autograd expands the gradient of a sum: of one over the samples, over the states, over all."""
    states, samples, dim = shape[:2], shape[2], shape[3]
    mean, log_std, noise = (normal(i, *states, *s, dim).to(DEVICE, dtype) for i, s in enumerate(((), (), (samples,))))
    one = normal(3, *(1 if i in same or i - 4 in same else n for i, n in enumerate(shape))).to(DEVICE, dtype)
    answers = []
    for grad in (one.expand(shape), one.expand(shape).contiguous()):
        inputs = [mean.clone().requires_grad_(), log_std.clone().requires_grad_()]
        answers.append(torch.autograd.grad(tanh_gaussian(*inputs, noise)[0], inputs, grad))
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


# --- The optimiser ----------------------------------------------------------------------------------------------------


class Training:
    """Many parameters of all sizes in two groups, the first three followed."""

    def __init__(self, device: str, dtype: torch.dtype, tensors: int = 12) -> None:
        sizes = [(2, 256, 256), (1,), (5000,), *((i % 7 + 1, 100) for i in range(tensors - 3))]
        self.parameters = [nn.Parameter(normal(i, *size).to(device, dtype)) for i, size in enumerate(sizes)]
        self.targets = [normal(100 + i, *size).to(device, dtype) for i, size in enumerate(sizes[:3])]
        groups = [{"params": self.parameters[:2], "lr": 1e-2}, {"params": self.parameters[2:], "lr": 3e-3}]
        self.optimizer = make_adam(groups, torch.device(device))
        for p in self.parameters:
            p.grad = torch.zeros_like(p)

    def gradients(self, step: int) -> None:
        for i, p in enumerate(self.parameters):
            assert p.grad is not None
            p.grad.copy_(normal(1000 * step + i, *p.shape))

    def step(self) -> None:
        step_with_targets(self.optimizer, self.targets, self.parameters[:3], 0.05)

    def assert_close(self, other: Training) -> None:
        tolerance = 1e-5 if self.parameters[0].dtype == torch.float32 else 1e-10
        mine, theirs = ([*(p.detach() for p in t.parameters), *t.targets] for t in (self, other))
        for a, b in zip(mine, theirs, strict=True):
            assert torch.allclose(a.cpu(), b.cpu(), rtol=tolerance, atol=tolerance)
        for p, q in zip(self.parameters, other.parameters, strict=True):
            mine, theirs = self.optimizer.state[p], other.optimizer.state[q]
            assert mine["step"].item() == theirs["step"].item()
            for name in ("exp_avg", "exp_avg_sq"):
                assert torch.allclose(mine[name].cpu(), theirs[name].cpu(), rtol=tolerance, atol=tolerance)


@every_type
@pytest.mark.parametrize("tensors", [12, 60])
def test_fifty_steps_of_adam_are_torchs(dtype: torch.dtype, tensors: int) -> None:
    own, torchs = Training(DEVICE, dtype, tensors), Training("cpu", dtype, tensors)
    assert isinstance(own.optimizer, FusedAdam) == (DEVICE != "cpu")
    for step in range(50):
        for training in (own, torchs):
            training.gradients(step)
            training.step()
    own.assert_close(torchs)


def test_checkpoints_of_either_device_go_on_with_the_other() -> None:
    trainings = Training(DEVICE, torch.float32), Training("cpu", torch.float32)
    whole = Training("cpu", torch.float32)
    for step in range(9):
        if step in (3, 6):
            old, new = trainings = trainings[::-1]
            for p, q in zip([*new.parameters, *new.targets], [*old.parameters, *old.targets], strict=True):
                p.data.copy_(q.data)
            new.optimizer.load_state_dict(old.optimizer.state_dict())
        for training in (trainings[-1], whole):
            training.gradients(step)
            training.step()
    trainings[-1].assert_close(whole)


@on_gpu
@pytest.mark.parametrize(("tensors", "expected"), [(12, 1), (48, 1), (60, 2)])
def test_a_step_with_targets_is_one_launch(tensors: int, expected: int) -> None:
    training = Training("cuda", torch.float32, tensors)
    assert len(launches(training.step)) == expected
    assert not training.optimizer.tickets.any()  # type: ignore[attr-defined]


@on_gpu
def test_replayed_steps_count_on() -> None:
    training, eager = Training("cuda", torch.float32), Training("cuda", torch.float32)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in range(3):
            training.gradients(step)
            training.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.step()
    for step in range(3, 30):
        training.gradients(step)
        graph.replay()
    for step in range(30):
        eager.gradients(step)
        eager.step()
    mine, theirs = ([*t.parameters, *t.targets] for t in (training, eager))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert all(training.optimizer.state[p]["step"].item() == 30 for p in training.parameters)


@on_gpu
def test_first_call_inside_a_capture() -> None:
    """In a fresh process no kernel has been loaded yet; loading one must not end the capture."""
    code = """
import torch
from qcse_ext.nets.actor_critic import actor_loss
q, log_prob, temperature = torch.randn(2, 3, 50), torch.randn(2, 50), torch.rand(2)
moved = [t.cuda() for t in (q, log_prob, temperature)]
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    loss, _ = actor_loss(*moved, True)
graph.replay()
assert torch.allclose(loss.cpu(), actor_loss(q, log_prob, temperature, True)[0], rtol=1e-5, atol=1e-5)
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)

"""One step of Adam for many tensors, and of the averages that follow them, in one operator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.arguments import expect
from qcse_ext.registration import register_fake, without_autograd

__all__ = ["adam_", "adam_in_torch_"]


@torch.no_grad()
def adam_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    steps: Sequence[Tensor],
    rates: Sequence[float],
    beta1: float,
    beta2: float,
    epsilon: float,
    targets: Sequence[Tensor] = (),
    followed: Sequence[int] = (),
    target_rate: float = 0.0,
    tickets: Tensor | None = None,
) -> None:
    """Everything in place, for each parameter p with gradient g, moments m and v, and t updates so far::

        t = t + 1,  m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
        p = p - rate / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + epsilon)

    which is what ``torch.optim.Adam`` does; then each target goes `target_rate` of the way to the new parameter that it
    follows. A kernel computes it, in one launch for each 48 parameters, where one is registered for the device and all
    are contiguous float32 or float64 numbers of one dtype; :func:`adam_in_torch_` everything else. Nothing is read back
    to the host.

    Args:
        parameters, gradients, first_moments, second_moments: ``[...]``, those of a place of equal shape and dtype.
        steps: float32 ``[]`` on the parameters' device, the updates so far of each.
        rates: learning rate of each.
        beta1, beta2, epsilon: Adam's.
        targets: ``[...]``, each of the shape and dtype of the parameter that it follows.
        followed: number of that parameter for each target; no number occurs twice.
        target_rate: from 0 (targets stay) to 1 (they are copies).
        tickets: ``[N]`` int32 on the parameters' device, N at least the number of parameters; all 0 before, and again
            afterwards. What a kernel needs to know which of its blocks is the last; None: made anew, which is a launch.

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device, or lists differ in length; the message names it.

    Source:
        arXiv 1412.6980, algorithm 1; arXiv 1509.02971 for the targets.
    """
    lists = parameters, gradients, first_moments, second_moments
    if not parameters:
        return
    x = parameters[0]
    written = [*parameters, *first_moments, *second_moments, *targets]
    fits = x.dtype in (torch.float32, torch.float64) and all(t.is_contiguous() and t.dtype == x.dtype for t in written)
    if not (fits and registration.has_kernel("adam_", x)):
        adam_in_torch_(*lists, steps, rates, beta1, beta2, epsilon, targets, followed, target_rate)
        return
    if tickets is None:
        tickets = torch.zeros(len(parameters), dtype=torch.int32, device=x.device)
    torch.ops.qcse.adam_(
        *(list(tensors) for tensors in lists), list(steps), list(targets), list(followed), list(rates),
        beta1, beta2, epsilon, target_rate, tickets,
    )  # fmt: skip


@torch.no_grad()
def adam_in_torch_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    steps: Sequence[Tensor],
    rates: Sequence[float],
    beta1: float,
    beta2: float,
    epsilon: float,
    targets: Sequence[Tensor] = (),
    followed: Sequence[int] = (),
    target_rate: float = 0.0,
) -> None:
    """:func:`adam_` in plain torch: its definition, for tensors ``[...]`` of any device and floating-point dtype."""
    _check(parameters, gradients, first_moments, second_moments, steps, rates, targets, followed)
    for p, g, m, v, t, rate in zip(parameters, gradients, first_moments, second_moments, steps, rates, strict=True):
        t += 1
        m.lerp_(g, 1.0 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        count = t.double()
        step_size = (rate / (1.0 - beta1**count)).to(p.dtype)
        root = v.sqrt() / (1.0 - beta2**count).sqrt().to(p.dtype) + epsilon
        p -= step_size * m / root
    for target, number in zip(targets, followed, strict=True):
        target.lerp_(parameters[number], target_rate)


def _check(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    steps: Sequence[Tensor],
    rates: Sequence[float],
    targets: Sequence[Tensor],
    followed: Sequence[int],
) -> None:
    count = len(parameters)
    lists = {"gradients": gradients, "first_moments": first_moments, "second_moments": second_moments}
    for name, values in (lists | {"steps": steps, "rates": rates}).items():
        if len(values) != count:
            raise RuntimeError(f"qcse_ext.adam_: {name} must be as long as parameters ({count}), got {len(values)}")
    if len(targets) != len(followed):
        raise RuntimeError("qcse_ext.adam_: targets and followed must be as many")
    for i, p in enumerate(parameters):
        like = (f"parameters[{i}]", p)
        for name, tensors in lists.items():
            expect("adam_", f"{name}[{i}]", tensors[i], p.shape, like)
        expect("adam_", f"steps[{i}]", steps[i], (), like, torch.float32)
    for i, (target, number) in enumerate(zip(targets, followed, strict=True)):
        if not 0 <= number < count:
            raise RuntimeError(f"qcse_ext.adam_: followed must be numbers of parameters, got {number}")
        expect("adam_", f"targets[{i}]", target, parameters[number].shape, ("parameters", parameters[number]))
    if len({*followed}) < len(followed):
        raise RuntimeError("qcse_ext.adam_: followed has a number twice")


without_autograd("adam_")


@register_fake("adam_")
def _adam_fake(*_: object) -> None:
    return None

"""Adam, and the target networks that follow what it moves: in one launch where the device has a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from qcse_ext.nets.adam import adam_
from qcse_ext.registration import has_kernel


class FusedAdam(torch.optim.Adam):
    """`torch.optim.Adam` whose step, together with that of the targets, is one launch for each 48 tensors.

    Groups may have learning rates, betas and epsilons of their own; weight decay, AMSGrad and maximisation are not
    offered. A parameter without a gradient is left out, and its counter stays, as in torch. `state_dict` is torch's: a
    checkpoint of one can be loaded into the other.

    Args:
        groups: as for `torch.optim.Adam`.
        targets: what follows the parameters: pairs of a target and the parameter that it follows, [...] each.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        # Counters lie on the device, as a captured graph needs.
        super().__init__(cast(Any, groups), fused=True, capturable=True)
        first = self.param_groups[0]["params"][0]
        count = sum(len(group["params"]) for group in self.param_groups)
        self.tickets = torch.zeros(count, dtype=torch.int32, device=first.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """As `torch.optim.Adam.step`; no target moves."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.move([], [], 0.0)
        return loss

    @torch.no_grad()
    def move(self, targets: Sequence[Tensor], followed: Sequence[Tensor], rate: float) -> None:
        """One step, then each target [...] goes `rate` of the way to the new value of the parameter [...] beside it."""
        number = {parameter: target for parameter, target in zip(followed, targets, strict=True)}
        for group in self._alike():
            parameters = [p for p, _ in group["members"]]
            state = [self._state_of(p) for p in parameters]
            own = [i for i, p in enumerate(parameters) if p in number]
            adam_(
                parameters,
                [p.grad for p in parameters],
                [s["exp_avg"] for s in state],
                [s["exp_avg_sq"] for s in state],
                [s["step"] for s in state],
                [lr for _, lr in group["members"]],
                *group["settings"],
                [number.pop(parameters[i]) for i in own],
                own,
                rate,
                self.tickets,
            )
        if number:  # followed, but without a gradient this time
            torch._foreach_lerp_(list(number.values()), list(number), rate)

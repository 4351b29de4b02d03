"""Adam, and the target networks that follow what it moves: in one launch where the device has a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from qcse_ext import registration
from qcse_ext.nets.adam import adam_

Settings = tuple[float, float, float]  # both betas, epsilon


class FusedAdam(torch.optim.Adam):
    """`torch.optim.Adam` whose step, and the targets' behind it, are one launch for each 48 parameters.

    Groups may have learning rates, betas and epsilons of their own (of those a launch has one set). A parameter without
    a gradient is left out, and its counter stays, as in torch. `state_dict` is torch's: each can load the other's, from
    another device as well.

    Args:
        groups: as for `torch.optim.Adam`; no weight decay, AMSGrad or maximisation.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        # Counters lie on the device, as a captured graph needs.
        super().__init__(groups, fused=True, capturable=True)
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.tickets = torch.zeros(len(parameters), dtype=torch.int32, device=parameters[0].device)
        self._check()

    def _check(self) -> None:
        for group in self.param_groups:
            if group["weight_decay"] or group["amsgrad"] or group["maximize"]:
                raise ValueError("FusedAdam: got weight_decay, amsgrad or maximize, which it does not have")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As `torch.optim.Adam.step`; no target moves."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.step_with_targets([], [], 0.0)
        return loss

    @torch.no_grad()
    def step_with_targets(self, targets: Sequence[Tensor], followed: Sequence[Tensor], rate: float) -> None:
        """A step, after which each target [...] goes `rate` of the way to the parameter [...] at its place."""
        waiting = dict(zip(followed, targets, strict=True))
        alike: dict[Settings, list[tuple[Tensor, float]]] = {}
        for group in self.param_groups:
            members = alike.setdefault((*group["betas"], group["eps"]), [])
            members += [(p, group["lr"]) for p in group["params"] if p.grad is not None]
        for settings, members in alike.items():
            parameters, rates = [p for p, _ in members], [lr for _, lr in members]
            state = [self._state_of(p) for p in parameters]
            firsts, seconds, steps = ([s[name] for s in state] for name in ("exp_avg", "exp_avg_sq", "step"))
            own = [i for i, p in enumerate(parameters) if p in waiting]
            following = [waiting.pop(parameters[i]) for i in own]
            grads = [p.grad for p in parameters if p.grad is not None]
            adam_(parameters, grads, firsts, seconds, steps, rates, *settings, following, own, rate, self.tickets)
        if waiting:  # for what has no gradient this time
            torch._foreach_lerp_(list(waiting.values()), list(waiting), rate)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """That of any `torch.optim.Adam` of the same groups, as far as it has none of what is not offered here."""
        # Another one's answers may differ, and leave its counters on the host.
        groups = [group | {"fused": True, "capturable": True} for group in state_dict["param_groups"]]
        super().load_state_dict(state_dict | {"param_groups": groups})
        self._check()


def make_adam(groups: Iterable[dict[str, Any]], device: torch.device) -> torch.optim.Adam:
    """Adam for the given groups on `device`."""
    if registration.has_kernel("adam_", torch.empty(0, device=device)):
        return FusedAdam(groups)
    return torch.optim.Adam(groups, fused=True, capturable=device.type == "cuda")


@torch.no_grad()
def step_with_targets(
    optimizer: torch.optim.Adam, targets: Sequence[Tensor], followed: Sequence[Tensor], rate: float
) -> None:
    """A step of the optimiser, after which each target [...] goes `rate` of the way to the parameter [...] at its
    place."""
    if isinstance(optimizer, FusedAdam):
        optimizer.step_with_targets(targets, followed, rate)
        return
    optimizer.step()
    if targets:
        torch._foreach_lerp_(list(targets), list(followed), rate)

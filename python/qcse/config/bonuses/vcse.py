"""Value-conditional state entropy (arXiv 2305.19476), as its code takes it."""

from __future__ import annotations

from .base import BonusSpec
from .neighbours import VALUE_RANGES, ValueOptions, check_values


def defaults(options: ValueOptions, family: str | None) -> None:
    """The SAC version of VCSE's code (kingdy2002/VCSE, commit 74a3e6f): weight 0.1, k 12, min Q' of the target critics
    at the policy's mode, standardised over the batch, states divided by D, no squash."""
    options.weight, options.k, options.critic, options.action = 0.1, 12, "target", "policy"
    options.state_scale, options.value_scale, options.squash = "d", "batch", "none"


BONUS = BonusSpec(
    summary="the same as VCSE's code takes it (arXiv 2305.19476)",
    options=ValueOptions,
    implementation="qcse:QConditionedEntropy",
    defaults=defaults,
    check=check_values,
    ranges=VALUE_RANGES,
)

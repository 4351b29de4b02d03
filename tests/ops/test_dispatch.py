"""Which code computes a fused operator is the dispatcher's: a kernel that is registered for another device is used from
then on, by the same calls that computed the definition before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qcse_ext.registration import has_kernel

DEFINITIONS = {"baddbmm", "softplus", "logsumexp", "sort", "clamp", "amin", "lerp_"}  # what gives each of them away
OF_THE_CPU = ("mlp_forward", "critic_values", "conservative_loss", "tanh_gaussian", "batch_entropy")
OF_GPUS = ("gaussian_head", "bellman_target", "actor_loss", "adam_")
OPERATORS = (*OF_THE_CPU, *OF_GPUS)


@pytest.mark.parametrize("name", OF_THE_CPU)
def test_the_cpu_has_kernels(name: str) -> None:
    assert has_kernel(name, torch.zeros(1))
    assert torch.compile(lambda x: x + has_kernel(name, x), fullgraph=True, backend="eager")(torch.zeros(1)) == 1


def test_a_registered_kernel_is_used_by_the_same_calls() -> None:
    # A process of its own: a device, and what is registered for it, stay until the end.
    script = Path(__file__).parent / "other_device.py"
    result = subprocess.run([sys.executable, "-P", str(script)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    nothing, layers, everything = json.loads(result.stdout)
    for names in nothing.values():
        assert DEFINITIONS & set(names) and not {*OPERATORS, "mlp_backward"} & set(names)

    # The kernel of the layers serves mlp, the critics' values with a gradient, and by them the conservative loss.
    for call in ("mlp_forward", "critic_mlp", "conservative_loss"):
        assert {"mlp_forward", "mlp_backward"} <= set(layers[call]) and "baddbmm" not in layers[call]
    assert "logsumexp" in layers["conservative_loss"]
    for call in ("critic_values", "tanh_gaussian", "batch_entropy", *OF_GPUS):
        assert layers[call] == nothing[call]

    for call in OPERATORS:
        assert call in everything[call] and not DEFINITIONS & set(everything[call])
    for call in ("tanh_gaussian", "gaussian_head", "actor_loss"):
        assert f"{call}_backward" in everything[call]

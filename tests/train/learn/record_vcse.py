"""Record what VCSE's own code makes of generated states and values, as test vectors of numbers.

    python tests/train/learn/record_vcse.py CHECKOUT > tests/train/learn/vcse_vectors.json

CHECKOUT is a checkout of kingdy2002/VCSE. Its SAC version's file is executed as it is, with empty stand-ins for the
imports that it does not use. Per case: `published`, its value-conditional entropy with its convention, in which a point
is its own first neighbour; `corrected`, the same function asked for one neighbour more, with the point taken out of
its count; `state_entropy`, its state entropy, in the published convention.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import torch

CASES = {"hopper": (96, 11, 12), "plane": (64, 2, 3), "halfcheetah": (128, 17, 12)}  # rows, D, k


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """States [N, D] of unequal spread and Q [N] in units of return, float32."""
    rows, dim, _ = CASES[name]
    rng = np.random.default_rng([rows, dim])
    states = rng.standard_normal((rows, dim)) * np.linspace(0.5, 4.0, dim)
    values = 80.0 + 30.0 * np.tanh(states[:, 0]) + 5.0 * rng.standard_normal(rows)
    return states.astype(np.float32), values.astype(np.float32)


def record(checkout: Path) -> dict[str, dict[str, list[float]]]:
    spec = importlib.util.spec_from_file_location("vcse", checkout / "VCSE_SAC" / "vcse.py")
    assert spec is not None and spec.loader is not None
    vcse: Any = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, {"pandas": MagicMock(), "utils": MagicMock()}):
        spec.loader.exec_module(vcse)
    out = {}
    for name, (rows, dim, k) in CASES.items():
        states, values = (torch.from_numpy(array) for array in inputs(name))
        states = states / dim  # as its agent hands them over, and the values through a LayerNorm
        values = torch.nn.LayerNorm(rows, elementwise_affine=False)(values).reshape(-1, 1)
        published = vcse.VCSE(k, "cpu")(states, values)[0]
        _, count, _, radius, _, _ = vcse.VCSE(k + 1, "cpu")(states, values)
        corrected = torch.digamma((count - 1 + 1).float()) / dim + torch.log(radius * 2 + 0.00001)
        entropy = vcse.PBE(False, 0, k, False, False, "cpu")(states)
        found = {"published": published, "corrected": corrected, "state_entropy": entropy}
        out[name] = {key: [round(x, 7) for x in value.flatten().tolist()] for key, value in found.items()}
    return out


if __name__ == "__main__":
    print(json.dumps(record(Path(sys.argv[1])), indent=1))

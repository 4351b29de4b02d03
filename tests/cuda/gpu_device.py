"""Where the tests of this folder run, and for which dtypes."""

import os

import pytest
import torch

# "cpu" rehearses what only compares answers, on a machine without a GPU (see benchmarks/gpu/run.py).
DEVICE = os.environ.get("QCSE_CUDA_DEVICE", "cuda")
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="graphs and launches are the GPU's")
every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

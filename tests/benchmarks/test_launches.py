"""How many operations an update of Cal-QL launches on a GPU, counted without one."""

import pytest
import torch
from launches import count, has_cuda_kernel

pytestmark = pytest.mark.skipif(
    not has_cuda_kernel("knn", torch.zeros(1)), reason="qcse_ext is built without its CUDA kernels"
)


@pytest.mark.parametrize(
    ("bonus", "seeds", "limit"), [("none", 1, 120), ("qcse", 1, 130), ("none", 16, 140), ("qcse", 16, 140)]
)
def test_an_update_has_few_operations(bonus: str, seeds: int, limit: int) -> None:
    counts = count("cal_ql", bonus, seeds)
    assert counts.total() <= limit, counts.most_common()
    # Random numbers, the search and the optimiser are one call each, whatever the number of seeds.
    assert counts["randn"] == counts["_fused_adam_"] == 0 and counts["adam_"] == 1
    assert (counts["batch_entropy"] > 0) == (bonus == "qcse")

"""The bonus of a batch in four lines of torch, for any code that has states and their Q. The other examples use it."""

import torch
from torch import Tensor

import qcse_ext


@torch.no_grad()
def qcse_bonus(states: Tensor, q: Tensor, k: int = 12) -> Tensor:
    """tanh(h(s | Q)) of each row, [N], in (-1, 1); states [N, D], q [N], N > k (arXiv 2310.19805).

    Both are standardised over the batch, states divided by sqrt(D) as well: unscaled, the tanh saturates on most tasks.
    (`qcse` itself uses running statistics, under which a row's bonus does not depend on its batch mates' scale.)
    """
    states = states.to(q.dtype)
    states = (states - states.mean(0)) / (states.std(0) + 1e-3) / states.shape[1] ** 0.5
    q = (q - q.mean()) / (q.std() + 1e-3)
    return torch.tanh(qcse_ext.entropy(states, q, k))

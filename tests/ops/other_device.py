"""Run by test_dispatch.py: which operators are called on a device of another kind, before and after kernels for it are
registered. Nothing is computed there: the tensors are fake, and the device is torch's own stand-in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from qcse_ext.bonus import batch_entropy
from qcse_ext.nets.actor_critic import actor_loss, bellman_target, gaussian_head
from qcse_ext.nets.adam import adam_
from qcse_ext.nets.critic import conservative_loss, critic_mlp, critic_values
from qcse_ext.nets.mlp import mlp
from qcse_ext.nets.tanh_gaussian import tanh_gaussian
from qcse_ext.registration import has_kernel

DEVICE, KEY = "other", "PrivateUse1"


class Called(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name().split("::")[1].split(".")[0])
        return func(*args, **(kwargs or {}))


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def calls() -> dict[str, Callable[[], Tensor]]:
    weights = [randn(4, i, o).requires_grad_() for i, o in itertools.pairwise((5, 7, 1))]
    biases = [randn(4, 1, o).requires_grad_() for o in (7, 1)]
    states, actions = randn(2, 3, 4), randn(2, 3, 7, 1)
    rows = [randn(2, 3), randn(2, 3, 6), randn(2, 3), randn(2)]
    mean, log_std, noise = randn(2, 3, 2).requires_grad_(), randn(2, 3, 2), randn(2, 3, 6, 2)
    index, eligible = torch.arange(6, device=DEVICE).view(2, 3), torch.ones(2, 3, device=DEVICE, dtype=torch.bool)
    moments = [randn(2, 5), randn(2, 5), randn(2)]
    q, scale = randn(2, 2, 3).requires_grad_(), randn(2, 1, 1)
    return {
        "mlp_forward": lambda: mlp(randn(4, 3, 5), weights, biases),
        "critic_mlp": lambda: critic_mlp(states, actions, weights, biases),
        "critic_values": lambda: critic_values(states, actions, weights, biases),
        "conservative_loss": lambda: conservative_loss(states, actions, weights, biases, *rows)[0],
        "tanh_gaussian": lambda: tanh_gaussian(mean, log_std, noise)[1],
        "gaussian_head": lambda: gaussian_head(mean, scale, scale, -5.0, 2.0)[1],
        "bellman_target": lambda: bellman_target(
            randn(2, 4, 3, 6), randn(2, 3, 6), rows[0], rows[0], rows[3], 0.9, True
        ),
        "actor_loss": lambda: actor_loss(q, rows[0], rows[3], True)[0],
        "adam_": stepped,
        "batch_entropy": lambda: batch_entropy(states, rows[0], index, eligible, *moments, 2)[0],
    }


def stepped() -> Tensor:
    lists = [[randn(3, 4)] for _ in range(4)]
    adam_(*lists, [randn(1)[0]], [1e-3], 0.9, 0.999, 1e-8, [randn(3, 4)], [0], 0.1)
    return lists[0][0]


def called() -> dict[str, list[str]]:
    names = {}
    for name, call in calls().items():
        with Called() as record:
            result = call()
            if result.requires_grad:
                result.sum().backward()
        names[name] = sorted(record.names)
    return names


def main() -> None:
    _setup_privateuseone_for_python_backend(DEVICE)
    found = []
    library = torch.library.Library("qcse", "IMPL")
    layers = ["mlp_forward", "mlp_backward"]
    others = [
        "critic_values", "conservative_loss", "tanh_gaussian", "tanh_gaussian_backward", "gaussian_head",
        "gaussian_head_backward", "bellman_target", "actor_loss", "actor_loss_backward", "adam_", "batch_entropy",
    ]  # fmt: skip
    with FakeTensorMode():
        for operators in ([], layers, others):
            for operator in operators:
                library.impl(operator, lambda *arguments: None, KEY)
                assert has_kernel(operator, randn(1))
                torch.compiler.reset()  # it compiles a function so many times and no more
                assert torch.compile(has_kernel, fullgraph=True, backend="eager")(operator, randn(1))
            found.append(called())
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""A twin of a CUDA graph on the CPU: it records every operation with its very tensors, and replays just those.

As in a graph, what Python computed is frozen, results are written where they first were written, and random numbers go
on from their generators. What a replay cannot get right here, a GPU gets wrong as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: list) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in HOST_READS:
            raise RuntimeError(f"{name} reads a value back to the host, which a capture does not permit")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.tape.append((func, args, kwargs, result))
        return result


class GraphTwin:
    """The interface of `qcse.step.CudaGraph`. Recording executes the operations, so the first replay has been done."""

    made = 0

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.known = {g.initial_seed() for g in generators}  # each has one of its own; Python wraps them anew
        self.tape: list = []
        self.replays = 0
        GraphTwin.made += 1

    def capture(self, call: Callable[[], None]) -> None:
        with _Recorder(self.tape):
            call()
        for func, args, kwargs, _ in self.tape:
            used = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Generator)]
            assert all(g.initial_seed() in self.known for g in used), (
                f"{func} draws from a generator that is not registered"
            )

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:
            return
        for func, args, kwargs, result in self.tape:
            inputs = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            before = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            after = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for old, new in zip(before, after, strict=True):
                if old.untyped_storage().data_ptr() not in inputs:  # neither a view nor written in place
                    old.copy_(new)

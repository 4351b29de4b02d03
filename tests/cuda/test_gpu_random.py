"""Random numbers and the gather on a GPU against the CPU: the same bits, eagerly and in captured graphs."""

from __future__ import annotations

import pytest
import torch
from gpu_device import DEVICE
from torch import Tensor

from qcse.learn.streams import HOST, NAMES, Streams
from qcse_ext.random import LAWS, random, random_rows
from qcse_ext.transitions import gather_transitions

pytestmark = pytest.mark.cuda
SEGMENTS = [
    *[[(law, count)] for law in LAWS for count in (1, 3, 4, 1000, 15_361)],
    [("normal", 1536), ("normal", 15_360), ("symmetric", 10), ("normal", 7), ("unit", 15_360)],
]


def stream(seeds: int) -> tuple[Tensor, Tensor]:
    return torch.arange(seeds) * 2**40 - 5, torch.full((seeds,), 2**32 - 9)


def on(device: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.clone().to(device) for x in tensors)


@pytest.mark.parametrize("segments", SEGMENTS, ids=str)
@pytest.mark.parametrize("seeds", [1, 3, 16])
def test_numbers(segments: list[tuple[str, int]], seeds: int) -> None:
    here, there = on("cpu", stream(seeds)), on(DEVICE, stream(seeds))
    for _ in range(3):
        expected, got = random(*here, segments), random(*there, segments)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))
    assert torch.equal(there[1].cpu(), here[1])


@pytest.mark.parametrize("leading", [None, 0, 100, 256])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_rows(leading: int | None, as_tensor: bool) -> None:
    here, there = on("cpu", stream(5)), on(DEVICE, stream(5))
    for held in (1, 77, 10_000):
        held_there = torch.tensor(float(held), dtype=torch.float64, device=DEVICE) if as_tensor else held
        expected = random_rows(*here, 256, 1000, held, leading)
        assert torch.equal(random_rows(*there, 256, 1000, held_there, leading).cpu(), expected)
    assert torch.equal(there[1].cpu(), here[1])


@pytest.mark.parametrize(("seeds", "rows", "size", "capacity"), [(1, 256, 500, 30), (16, 256, 0, 7), (4, 33, 5, 1)])
def test_gather(seeds: int, rows: int, size: int, capacity: int) -> None:
    g = torch.Generator().manual_seed(rows)
    shapes = ((17,), (6,), (), (17,), (), (), ())
    dataset = tuple(torch.randn(size, *shape, generator=g) for shape in shapes)
    online = tuple(torch.randn(seeds, capacity, *shape, generator=g) for shape in shapes)
    index = torch.randint(size + capacity, (seeds, rows), generator=g)
    expected, mask = gather_transitions(dataset, online, index)
    got, online_there = gather_transitions(on(DEVICE, dataset), on(DEVICE, online), index.to(DEVICE))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))
    assert torch.equal(online_there.cpu(), mask)
    if DEVICE != "cpu":
        index[0, 0], index[-1, -1] = -1, size + capacity
        got, _ = gather_transitions(on(DEVICE, dataset), on(DEVICE, online), index.to(DEVICE))
        assert all(x[0, 0].isnan().all() and x[-1, -1].isnan().all() for x in got)


@pytest.mark.skipif(DEVICE == "cpu", reason="a graph is the GPU's")
def test_replays_go_on_and_read_the_number_held() -> None:
    here, there = on("cpu", stream(4)), on("cuda", stream(4))
    held = torch.tensor(5.0, dtype=torch.float64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        numbers = random(*there, SEGMENTS[-1])
        rows = random_rows(*there, 64, 100, held, 32)
    assert torch.equal(there[1].cpu(), here[1])  # a capture executes nothing
    for size in (5, 900, 33):
        held.fill_(size)
        graph.replay()
        expected = random(*here, SEGMENTS[-1])
        assert all(torch.equal(a.cpu(), b) for a, b in zip(numbers, expected, strict=True))
        assert torch.equal(rows.cpu(), random_rows(*here, 64, 100, size, 32))
        assert torch.equal(there[1].cpu(), here[1])


def test_streams_of_a_gpu_are_counted_and_the_hosts_are_not() -> None:
    there, here = Streams([1, 2], DEVICE, counted=True), Streams([1, 2], counted=True)
    for name in NAMES:
        assert torch.equal(there.normal(name, (5,)).cpu(), here.normal(name, (5,)))
        assert len(there.generators(name)) == (2 if name in HOST else 0)
    other = Streams([1, 2], DEVICE, counted=True)
    other.load_state_dict(here.state_dict())
    assert torch.equal(other.normal("update", (9,)), there.normal("update", (9,)))

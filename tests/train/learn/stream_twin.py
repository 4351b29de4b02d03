"""Twins of CUDA streams on the CPU: all is done in the order in which it is written, and what a GPU might do in another
order is found by clocks.

Memory that nobody holds any more belongs to the stream that asked for it, which must know of all that others did there.

Each operation has a stream and a time on it; a stream that waits for another knows of all that this one did before. Two
operations of which one writes what the other reads or writes must know of each other. Backwards, an operation is on the
stream of its forward, after whatever its gradient comes from, as autograd has it on a GPU. A capture may wait for
branches of its own alone, and must have waited for all of them in the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from graph_twin import GraphTwin
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict[int, int]  # number of a stream -> how many of its operations are known to be done


class Race(AssertionError):
    pass


class StreamTwin:
    def __init__(self, world: World) -> None:
        self.world, self.device, self.clock = world, torch.device("cpu"), defaultdict[int, int](int)
        self.number = len(world.streams)
        world.streams.append(self)

    def wait_stream(self, other: StreamTwin) -> None:
        captured = self.world.captured
        if other in captured:
            captured.add(self)
        elif self in captured:
            raise RuntimeError("a capture waits for a stream that is no branch of it")
        self.knows(other.clock)

    def knows(self, clock: Clock) -> None:
        for number, time in clock.items():
            self.clock[number] = max(self.clock[number], time)


@dataclass
class Memory:
    """A tensor's storage."""

    held: StorageWeakRef
    owner: int  # number of the stream that asked for it
    touched: list[
        tuple[int, int, bool, int, int, str]
    ]  # first and last byte, whether written; stream, its time, by what


class World(TorchDispatchMode):
    """All streams, and who touched which memory when."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.streams: list[StreamTwin] = []
        self.captured: set[StreamTwin] = set()
        self.current = StreamTwin(self)
        self.memory: dict[int, Memory] = {}  # by the storage's address
        self.given_back: dict[int, list[Memory]] = defaultdict(list)  # by the number of the stream that it belongs to
        self.switched = [(0, self.current)]  # from this autograd node on
        self.operations: dict[int, int] = defaultdict(int)
        backward = torch.autograd.backward
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.autograd, "backward", lambda *args, **more: self.backward(backward, *args, **more))

    @contextmanager
    def on(self, stream: StreamTwin) -> Iterator[None]:
        before = self.current
        self.switch(stream)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, stream: StreamTwin) -> None:
        self.current = stream
        self.switched.append((torch.autograd._get_sequence_nr(), stream))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        stream = self.current
        self.look_after_memory(str(func))
        result = func(*args, **kwargs)
        stream.clock[stream.number] += 1
        self.operations[stream.number] += 1
        for place, argument in enumerate(func._schema.arguments):
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            writes = argument.alias_info is not None and argument.alias_info.is_write
            self.touch(value, writes, str(func))
        if not any(returned.alias_info is not None for returned in func._schema.returns):
            self.touch(result, True, str(func))
        return result

    def look_after_memory(self, name: str) -> None:
        for address, memory in list(self.memory.items()):
            if memory.held.expired():
                self.given_back[memory.owner].append(self.memory.pop(address))
        stream = self.current
        for memory in self.given_back.pop(stream.number, []):
            for *_, number, time, what in memory.touched:
                if stream.clock[number] < time:
                    raise Race(
                        f"{name} on stream {stream.number} may get the memory that {what} on {number} still uses"
                    )

    def touch(self, value: object, writes: bool, name: str) -> None:
        stream = self.current
        for x in tree_leaves(value):
            if not isinstance(x, Tensor) or x.numel() == 0:
                continue
            first, storage = x.data_ptr(), x.untyped_storage()
            last = first + x.element_size() * sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
            memory = self.memory.get(storage._cdata)
            if memory is None or memory.held.expired():
                if memory is not None:
                    self.given_back[memory.owner].append(memory)
                memory = self.memory[storage._cdata] = Memory(StorageWeakRef(storage), stream.number, [])
            for low, high, wrote, number, time, what in memory.touched:
                if (writes or wrote) and low <= last and first <= high and stream.clock[number] < time:
                    raise Race(f"{name} on stream {stream.number} and {what} on stream {number} touch the same memory")
            memory.touched.append((first, last, writes, stream.number, stream.clock[stream.number], name))

    def backward(self, plain: Callable[..., None], given: Sequence[Tensor] | Tensor, *args: object, **more: object):
        roots = [given] if isinstance(given, Tensor) else given
        nodes, left = set(), [root.grad_fn for root in roots]
        while left:
            node = left.pop()
            if node is not None and node not in nodes:
                nodes.add(node)
                left += [follower for follower, _ in node.next_functions]
        caller, known, handles = self.current, defaultdict[object, Clock](dict), []
        leaves: set[StreamTwin] = set()
        for root in roots:
            known[root.grad_fn] = dict(caller.clock)

        def begins(node):
            def hook(grads):
                number = node._sequence_nr()
                if number < 1 << 62:
                    self.current = next(s for first, s in reversed(self.switched) if first <= number)
                else:  # a leaf has none: it goes on where its gradient was made
                    leaves.add(self.current)
                self.current.knows(known[node])

            return hook

        def ends(node):
            def hook(inputs, outputs):
                for follower, _ in node.next_functions:
                    clock = known[follower]
                    for stream, time in self.current.clock.items():
                        clock[stream] = max(clock.get(stream, 0), time)

            return hook

        for node in nodes:
            handles += [node.register_prehook(begins(node)), node.register_hook(ends(node))]
        plain(given, *args, **more)
        self.current = caller
        for stream in leaves:
            caller.wait_stream(stream)  # autograd has the caller's stream wait for those of all leaves
        for handle in handles:
            handle.remove()


class CaptureTwin(GraphTwin):
    """A graph's twin that keeps to the rules of a capture of several streams."""

    world: World

    def capture(self, call: Callable[[], None]) -> None:
        world, origin = self.world, self.world.current
        world.captured = {origin}
        super().capture(call)
        late = [s.number for s in world.captured if origin.clock[s.number] < s.clock[s.number]]
        world.captured = set()
        if late:
            raise RuntimeError(f"the capture ends before its branches {late}")

"""Work beside other work on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A CUDA stream beside the current one, for what is independent of what the current one does meanwhile.

    A graph that is captured meanwhile gets a branch. On other devices all is done in the order in which it is written.

    Whoever holds a tensor that the one stream made and the other reads must hold it until the two have joined: only
    then may its memory be given to another.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._forked = False  # and not joined: a capture must not wait for a stream that is no branch of it

    @contextmanager
    def fork(self) -> Iterator[None]:
        """What is launched within comes after what the current stream has been given before."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._forked = True
        with torch.cuda.stream(self._stream):
            yield

    def wait(self) -> None:
        """What the current stream is given from now on comes after what the side has been given."""
        if self._stream is not None and self._forked:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def join(self) -> None:
        """Wait by the stream that forked: nothing is done on the side any more."""
        self.wait()
        self._forked = False

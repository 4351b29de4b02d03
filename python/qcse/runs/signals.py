"""How a process is asked to end: by a signal, or by the end of the process that started it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WITH_PARENT = "QCSE_ENDS_WITH_PARENT"  # set where standard input is a pipe from the process that started this one


def stop_signals() -> list[signal.Signals]:
    """Ctrl-C, SIGTERM, and a terminal's hang-up unless it is ignored, as under nohup."""
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, hangup]


def end_with_parent() -> None:
    """Where WITH_PARENT is set: SIGTERM to this process once the one that started it has ended, however it did."""
    if os.environ.pop(WITH_PARENT, None) is None:
        return

    def wait() -> None:
        while os.read(0, 1):  # nothing is ever written: the read returns at the pipe's end
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="end with parent").start()


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Whether this process was asked to end: the first signal is told by the function that the block gets, to be asked
    where everything can be saved; a second one raises KeyboardInterrupt at once."""
    asked: list[int] = []

    def stop(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere signals are the caller's
        before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

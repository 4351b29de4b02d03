"""What all fuzz tests share. A fuzz test is a plain function under @given; it fails where it raises, crashes, hangs or
needs more memory than the runner grants. pytest tries a few examples of each, always the same; run.py tries new ones.

A failure that run.py finds goes to seeds/, from where it is tried first in each later run. Once it is mended it becomes
an @example of its test: hypothesis forgets what does not fail any more.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

HERE = Path(__file__).parent
LIMIT = 20  # seconds that an example may take
STATE = os.environ.get("QCSE_FUZZ_STATE")  # run.py's folder: the example at hand, and how many there were
tried = 0
started = 0.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if STATE is None:
        few = settings(max_examples=25, deadline=1000 * LIMIT, derandomize=True, suppress_health_check=HealthCheck)
    else:
        few = settings(
            max_examples=int(os.environ["QCSE_FUZZ_EXAMPLES"]), deadline=None, print_blob=True,
            database=DirectoryBasedExampleDatabase(HERE / "seeds"), suppress_health_check=HealthCheck,
        )  # fmt: skip
    done = set()
    for item in items:
        test = getattr(item, "obj", None)
        if HERE not in item.path.parents or not hasattr(test, "hypothesis") or test in done:
            continue
        done.add(test)
        if not getattr(test, "_hypothesis_internal_settings_applied", False):  # a test may have settings of its own
            few(test)
        if STATE is not None:
            test.hypothesis.inner_test = _watched(test.hypothesis.inner_test)


def _watched(test: Callable[..., None]) -> Callable[..., None]:
    """The test, whose example is written down before it runs, and which ends the process where it hangs."""
    assert STATE is not None
    file = open(Path(STATE) / "example", "w", encoding="utf-8", errors="backslashreplace")

    @functools.wraps(test)
    def watched(*args: Any, **given: Any) -> None:
        global tried, started
        started = started or time.monotonic()
        tried += 1
        file.seek(0)
        file.truncate()
        file.write(f"{test.__name__}: {given!r}\n")
        file.flush()
        faulthandler.dump_traceback_later(LIMIT, exit=True, file=file)
        try:
            test(*args, **given)
        finally:
            faulthandler.cancel_dump_traceback_later()

    return watched


def pytest_sessionfinish() -> None:
    if STATE is not None:
        (Path(STATE) / "tried").write_text(f"{tried} {time.monotonic() - (started or time.monotonic())}")

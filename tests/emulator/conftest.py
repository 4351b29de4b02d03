"""One emulator for all tests of a run; the first use compiles it, which takes half a minute."""

import os
from pathlib import Path

import pytest
from emulated import Emulator
from emulator_build import build


@pytest.fixture(scope="session")
def library() -> Emulator:
    # Copies of the kernels with planted faults are tested by naming the tree that holds them.
    csrc = os.environ.get("QCSE_EMULATED_CSRC")
    return Emulator(build(Path(csrc)) if csrc else build())


@pytest.fixture
def emulator(library: Emulator) -> Emulator:
    library.configure()
    return library


@pytest.fixture(scope="session")
def tuning_library() -> Emulator:
    """With every tile variant, which takes longer to compile."""
    return Emulator(build(tuning=True))

"""Shared by all tests. Threads sleep instead of spinning while they wait: some tests use more threads than cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A compiled graph in torch's cache does not know that an operator's shape rule has changed since.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

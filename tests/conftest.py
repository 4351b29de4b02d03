"""Shared by all tests. Threads sleep instead of spinning while they wait: some tests use more threads than cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

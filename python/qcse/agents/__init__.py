"""The learning algorithms, one per file."""

from __future__ import annotations

from .cal_ql import CalQL
from .cql import CQL
from .sac import SAC

AGENTS: dict[str, type[SAC]] = {"sac": SAC, "cql": CQL, "cal_ql": CalQL}

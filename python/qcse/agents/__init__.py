"""The learning algorithms, one per file."""

from __future__ import annotations

from .awac import AWAC
from .cal_ql import CalQL
from .cql import CQL
from .iql import IQL
from .rlpd import RLPD
from .sac import SAC
from .td3_bc import TD3BC
from .wsrl import WSRL

AGENTS: dict[str, type[SAC]] = {
    "sac": SAC,
    "cql": CQL,
    "cal_ql": CalQL,
    "iql": IQL,
    "awac": AWAC,
    "td3_bc": TD3BC,
    "rlpd": RLPD,
    "wsrl": WSRL,
}

"""One class of options out of many."""

from __future__ import annotations

import types
from collections.abc import Iterable


def composed(parts: Iterable[type]) -> type:
    """A dataclass with the fields of all parts: a class that inherits from each that no other part inherits from."""
    unique = list(dict.fromkeys(parts))
    leaves = [part for part in unique if not any(part in other.__mro__[1:] for other in unique)]
    return types.new_class("Composed", tuple(leaves))

"""Writes csrc/knn/digamma_table.h: digamma of 1, 2, 3... as csrc/knn/digamma.h computes it, double for double.

python tests/emulator/digamma_table.py
"""

from __future__ import annotations

import math
from pathlib import Path

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "knn" / "digamma_table.h"
ENTRIES = 1025  # counts up to 1024
TEMPLATE = """\
// Written by tests/emulator/digamma_table.py; do not edit. digamma_of_count(n) for n = 1, 2, 3..., the same doubles.
#pragma once
#include "digamma.h"

namespace qcse {{

inline constexpr int64_t kDigammas = {entries};

// clang-format off
#if defined(__CUDACC__)
__device__
#endif
constexpr double kDigamma[kDigammas] = {{
{rows}
}};

// digamma_of_count(n), to the last bit, as far as log is the same.
#if defined(__CUDACC__)
__device__
#endif
inline double digamma_by_table(int64_t n) {{
  return n <= kDigammas ? kDigamma[n - 1] : digamma_series(static_cast<double>(n));
}}
// clang-format on

}}  // namespace qcse
"""


def digamma(n: int) -> float:
    """The operations of ``digamma_of_count`` in their order."""
    shift = 0.0
    while n < 12:
        shift += 1.0 / n
        n += 1
    x = float(n)
    y = 1.0 / (x * x)
    series = y * (
        1.0 / 12 - y * (1.0 / 120 - y * (1.0 / 252 - y * (1.0 / 240 - y * (1.0 / 132 - y * (691.0 / 32760)))))
    )
    return math.log(x) - 0.5 / x - series - shift


def text() -> str:
    """The header."""
    numbers = [digamma(n).hex() for n in range(1, ENTRIES + 1)]
    rows = ["    " + ", ".join(numbers[i : i + 5]) for i in range(0, ENTRIES, 5)]
    return TEMPLATE.format(entries=ENTRIES, rows=",\n".join(rows))


if __name__ == "__main__":
    HEADER.write_text(text())

"""The table of digamma that the kernels read, against the function that the CPU computes."""

import subprocess
from pathlib import Path

import digamma_table
from emulator_build import ROOT

PROGRAM = """
#include <cstdio>
#include <cstring>
#include "knn/digamma.h"
#include "knn/digamma_table.h"
int main() {
  int different = 0;
  for (int64_t n = 1; n <= qcse::kDigammas; ++n) {
    const double computed = qcse::digamma_of_count(n);
    different += std::memcmp(&computed, &qcse::kDigamma[n - 1], sizeof computed) != 0;
  }
  for (int64_t n = 12; n <= 20000; ++n) {  // beyond the table the kernels compute the series alone
    const double computed = qcse::digamma_of_count(n), series = qcse::digamma_series(static_cast<double>(n));
    different += std::memcmp(&computed, &series, sizeof computed) != 0;
  }
  std::printf("%d\\n", different);
}
"""


def test_the_table_holds_the_function_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "table.cpp").write_text(PROGRAM)
    command = ["g++", "-std=c++20", "-O2", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", str(tmp_path / "table.cpp")]
    subprocess.run([*command, "-o", str(tmp_path / "table")], check=True)
    done = subprocess.run([str(tmp_path / "table")], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_the_committed_table_is_what_the_script_writes() -> None:
    assert digamma_table.text() == digamma_table.HEADER.read_text()

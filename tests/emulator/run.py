"""Runs the CUDA kernels under the emulator: its own tests, then the kernels on many random problems.

python tests/emulator/run.py [--problems 500] [--first 0] [pytest options]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=500, help="random problems (default: 500)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one; move it for others (default: 0)")
    arguments, rest = parser.parse_known_args()
    environment = dict(
        os.environ, QCSE_EMULATED_PROBLEMS=str(arguments.problems), QCSE_EMULATED_FIRST=str(arguments.first)
    )
    return subprocess.call([sys.executable, "-m", "pytest", str(HERE), *(rest or ["-q"])], env=environment)


if __name__ == "__main__":
    sys.exit(main())

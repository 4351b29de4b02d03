"""Record what `d4rl/infos.py` of the package d4rl 1.1 says of every task: addresses and reference scores.

    python tests/train/envs/record_d4rl_infos.py [infos.py] > tests/train/envs/d4rl_infos.json

Without an argument the wheel is downloaded with pip (`--no-deps`, as its dependencies cannot be installed any more) and
the file is taken out of it. It builds most of its entries in loops, so it is executed, alone, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DUMP = """
import json, runpy, sys
names = runpy.run_path(sys.argv[1])
keep = {n: names[n] for n in ("DATASET_URLS", "REF_MIN_SCORE", "REF_MAX_SCORE")}
print(json.dumps(keep))
"""


def execute(infos: Path) -> dict[str, dict[str, str | float | None]]:
    """Run infos.py; task -> {url, min, max}, None where it has no score."""
    command = [sys.executable, "-I", "-c", DUMP, str(infos)]
    tables = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    low, high = tables["REF_MIN_SCORE"], tables["REF_MAX_SCORE"]
    return {n: {"url": u, "min": low.get(n), "max": high.get(n)} for n, u in tables["DATASET_URLS"].items()}


def from_wheel() -> dict[str, dict[str, str | float | None]]:
    """The same from the wheel, downloaded into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "d4rl==1.1"]
        subprocess.run(pip, check=True, timeout=120)
        (wheel,) = Path(folder).glob("d4rl-1.1-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            infos = Path(archive.extract("d4rl/infos.py", folder))
        return execute(infos)


if __name__ == "__main__":
    recorded = execute(Path(sys.argv[1])) if len(sys.argv) > 1 else from_wheel()
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(recorded.items()))
    print("{\n" + ",\n".join(lines) + "\n}")

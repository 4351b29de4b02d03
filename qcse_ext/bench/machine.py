"""What the figures were measured on: the machine, the commit, and what the processor can do at most."""

import datetime
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import torch

import qcse_ext
from qcse_ext import _C

__all__ = ["commit", "hot_loop_shares", "machine_facts"]


def commit(of: pathlib.Path | None = None) -> str | None:
    """``$QCSE_COMMIT``, else what git says where the file is one of a checkout's, with "-dirty" after changes."""
    if os.environ.get("QCSE_COMMIT"):
        return os.environ["QCSE_COMMIT"]
    file = (of or pathlib.Path(__file__)).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed copy may lie in somebody else's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def machine_facts(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    facts: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "build": qcse_ext.build_info(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    for package in ("faiss", "sklearn", "scipy", "pykeops", "flashlib", "triton"):
        if package in sys.modules:
            facts[package] = getattr(sys.modules[package], "__version__", "unknown")
    return facts


# --- Output -----------------------------------------------------------------------------------------------------------


def hot_loop_shares() -> list[dict[str, Any]]:
    """What part of the processor's multiply-adds the hot loop of all pairs reaches, by instruction set and dtype.

    The loop does one subtraction and one multiply-add for each dimension of a pair; the peak is a loop of independent
    multiply-adds on registers, timed in turn with it. Both on one core, in processor time."""
    shares: list[dict[str, Any]] = []
    best = qcse_ext.build_info()["cpu_instruction_set"]
    try:
        for name in qcse_ext.build_info()["cpu_instruction_sets"]:
            _C.set_instruction_set(name)
            for twofold in (False, True):
                for dim in (17, 105):
                    tile, peak = _C.hot_loop_speed(dim, twofold)
                    shares.append(
                        {
                            "instruction_set": name,
                            "dtype": "float64" if twofold else "float32",
                            "dim": dim,
                            "tile_giga_per_s": round(tile / 1e9, 2),
                            "peak_giga_per_s": round(peak / 1e9, 2),
                            "share": round(tile / peak, 3),
                        }
                    )
    finally:
        _C.set_instruction_set(best)
    return shares

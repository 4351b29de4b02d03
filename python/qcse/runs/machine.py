"""Hardware and versions: what someone needs to know to judge or repeat a number."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ..config.plain import json_text, read_json, write_json
from ..errors import ConfigError


def read_machine_facts(path: Path) -> dict[str, Any]:
    """What `append_machine_facts` wrote, or another version of qcse.

    Raises:
        ConfigError: it is no JSON object.
        OSError: it cannot be read.
    """
    return read_json(path, lenient=True, largest=16 << 20)


def append_machine_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of a run's latest part; those of the parts before, where they differ, stay under "earlier".

    A file that cannot be understood is replaced, with a warning.

    Raises:
        OSError: the file cannot be written.
    """
    latest: dict[str, Any] = json.loads(json_text(facts))
    earlier: list[Any] = []
    if path.exists():
        try:
            before = read_machine_facts(path)
            listed = before.pop("earlier", [])
            earlier = listed if isinstance(listed, list) else []
            earlier += [before] if before != latest else []
        except ConfigError as error:
            _log.warning("%s: it is begun anew", error)
    write_json(path, latest | ({"earlier": earlier} if earlier else {}))


_log = logging.getLogger(__name__)

# What may change the last bits of results, of what `machine_facts` knows.
MOVES_BITS = (
    "device", "gpus", "instructions", "operator_instructions", "threads", "torch", "torch_cuda", "numpy", "gymnasium",
    "mujoco", "qcse",
)  # fmt: skip


def moves_bits(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the machine's facts that may change the last bits of results: plain data, for a checkpoint."""
    return {name: facts[name] for name in MOVES_BITS if name in facts}


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between two of `moves_bits`, such as "torch 2.11.0 -> 2.13.0"; None where nothing does.

    What only one of them has is left out: an older version did not look.
    """

    def told(value: Any) -> str:
        return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)

    changed = [
        f"{name.replace('_', ' ')} {told(before[name])} -> {told(now[name])}"
        for name in MOVES_BITS
        if name in before and name in now and before[name] != now[name]
    ]
    return ", ".join(changed) or None


def machine_facts() -> dict[str, Any]:
    """Hardware, versions and commit: what someone needs to know to judge or repeat a number. None: not known."""
    import torch

    import qcse_ext

    gpus = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # the widest vectors: many processors share a name
        "operator_instructions": qcse_ext.build_info()["cpu_instruction_set"],  # those that our own kernels use
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "gpus": gpus,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "numpy": _version("numpy"),
        "gymnasium": _version("gymnasium"),
        "mujoco": _version("mujoco"),
        "qcse": _qcse_version(),
        "commit": commit_of(Path(__file__).resolve().parent),
        "threads": torch.get_num_threads(),
    }


def usable_cores() -> int | None:
    """Cores that this process may use; None: not known."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _qcse_version() -> str:
    from .. import __version__

    return __version__


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None


def commit_of(folder: Path) -> str | None:
    """Commit of the checkout that this package lies in, "+changes" added where tracked files differ from it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):  # no git, no checkout
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    # A virtual environment may lie in some other project's checkout, whose commit says nothing of this package.
    if not top or not (Path(top) / "python" / "qcse" / "__init__.py").is_file():
        return None
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit

"""Compiles the emulator with the kernels of csrc/cuda inside into one shared library; nothing but g++ is needed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = [
    "-std=c++20",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
]
# The compiler reports every load and store of the kernels to checker.cpp, which takes the sanitizer's place.
INSTRUMENTED = ["-O1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]
PLAIN = ["-O2"]


class CompileError(RuntimeError):
    """The compiler rejected a source; the message is its output."""


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++"):
        if name and shutil.which(name):
            return name
    raise CompileError("the emulator needs g++; install it (Debian, Ubuntu: apt-get install g++) or set CXX to it")


def _fused_multiply_add() -> list[str]:
    """Lets std::fma be an instruction where the processor has it; the result is the same without, only slower."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and cpuinfo.exists() and " fma " in cpuinfo.read_text():
        return ["-mfma"]
    return []


def _with_includes(source: Path, folders: list[Path], seen: set[Path] | None = None) -> set[Path]:
    """The source and every file of the project that it includes, directly or not."""
    seen = set() if seen is None else seen
    seen.add(source)
    for name in re.findall(r'^#include "(.+)"', source.read_text(), re.MULTILINE):
        for folder in [source.parent, *folders]:
            header = (folder / name).resolve()
            if header.exists():
                if header not in seen:
                    _with_includes(header, folders, seen)
                break
    return seen


def build(
    csrc: Path = ROOT / "csrc",
    folder: Path = ROOT / "build" / "emulator",
    jobs: int = 2,
    strict: bool = True,
    tuning: bool = False,
) -> Path:
    """Builds what changed and returns the library's path.

    ``csrc`` is the tree that holds ``knn.h`` and ``cuda/``, by default the repository's. Copies with planted faults are
    built the same way, with ``strict=False``: they may leave a variable unused. ``tuning``: with every tile variant
    that the laboratory measures. Objects are kept in ``folder`` under a digest of every source they include.
    """
    kernels = sorted((csrc / "cuda").glob("*.cu"))
    compiler = _compiler()
    common = [
        *FLAGS,
        *([] if strict else ["-w"]),
        *_fused_multiply_add(),
        "-DQCSE_EMULATED_CUDA",
        *(["-DQCSE_TUNING"] if tuning else []),
    ]
    folder.mkdir(parents=True, exist_ok=True)

    objects: list[Path] = []
    work: list[list[str]] = []
    own = [HERE / name for name in ("emulator.cpp", "checker.cpp", "c_api.cpp", "self_kernels.cpp")]
    for source in [*own, *kernels]:
        # knn_cuda.cu is the host's part alone: it chooses a kernel.
        instrumented = (source in kernels and source.stem != "knn_cuda") or source.name == "self_kernels.cpp"
        options = [*common, *(INSTRUMENTED if instrumented else PLAIN)]
        digest = hashlib.sha256(f"{compiler}{options}".encode())
        for text in sorted(path.read_bytes() for path in _with_includes(source, [csrc, csrc / "cuda", HERE])):
            digest.update(text)
        target = folder / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        objects.append(target)
        if not target.exists():
            folders = [f"-I{csrc}", f"-I{HERE}"]  # not part of the digest: copies share what they have in common
            work.append([compiler, *options, *folders, "-x", "c++", "-c", str(source), "-o", str(target)])
    library = folder / f"libemulator-{hashlib.sha256(' '.join(o.name for o in objects).encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library

    def run(command: list[str]) -> None:
        target = Path(command[-1])
        command = [*command[:-1], str(target.with_suffix(f".{os.getpid()}.tmp"))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise CompileError(f"{' '.join(command)}\n{done.stderr}")
        os.replace(command[-1], target)

    with (folder / "lock").open("w") as lock:  # several test processes may ask at once: one compiles, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, [command for command in work if not Path(command[-1]).exists()]))
    run([compiler, "-shared", "-Wl,-z,noexecstack", *map(str, objects), "-ldl", "-o", str(library)])
    return library


if __name__ == "__main__":
    print(build())

"""Compiles the emulator with the kernels of csrc/*/cuda inside into one shared library; nothing but g++ is needed."""

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


def _run(command: list[str]) -> None:
    """A compiler's or linker's command whose last word is the file it makes, which appears when it is complete."""
    target = Path(command[-1])
    command = [*command[:-1], str(target.with_suffix(f".{os.getpid()}.tmp"))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{done.stderr}")
    os.replace(command[-1], target)


def _compile(sources: list[Path], csrc: Path, folder: Path, jobs: int, strict: bool, tuning: bool) -> list[Path]:
    """The sources' objects, kept in ``folder`` under a digest of all that they include; compiles those that are new."""
    kernels = set(csrc.glob("*/cuda/*.cu"))
    compiler = _compiler()
    common = [
        *FLAGS,
        *([] if strict else ["-w"]),
        *_fused_multiply_add(),
        *(["-DQCSE_TUNING"] if tuning else []),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    objects: list[Path] = []
    work: list[list[str]] = []
    for source in sources:
        # A launch.cu is the host's part alone: it chooses a kernel.
        instrumented = (source in kernels and source.stem != "launch") or source.name == "self_kernels.cpp"
        options = [*common, *(INSTRUMENTED if instrumented else PLAIN)]
        if source in kernels or csrc not in source.parents:
            options.append("-DQCSE_EMULATED_CUDA")
        digest = hashlib.sha256(f"{compiler}{options}".encode())
        for text in sorted(path.read_bytes() for path in _with_includes(source, [csrc, HERE])):
            digest.update(text)
        target = folder / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        objects.append(target)
        if not target.exists():
            folders = [f"-I{csrc}", f"-I{HERE}"]  # not part of the digest: copies share what they have in common
            work.append([compiler, *options, *folders, "-x", "c++", "-c", str(source), "-o", str(target)])
    with (folder / "lock").open("w") as lock:  # several test processes may ask at once: one compiles, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(_run, [command for command in work if not Path(command[-1]).exists()]))
    return objects


def _link(objects: list[Path], target: str, options: list[str]) -> Path:
    """``target`` with a digest of the objects in its name."""
    stem, dot, suffix = target.partition(".")
    digest = hashlib.sha256(" ".join(o.name for o in objects).encode()).hexdigest()[:16]
    linked = objects[0].parent / f"{stem}-{digest}{dot}{suffix}"
    if not linked.exists():
        _run([_compiler(), "-Wl,-z,noexecstack", *map(str, objects), "-ldl", "-lpthread", *options, "-o", str(linked)])
    return linked


def build(
    csrc: Path = ROOT / "csrc",
    folder: Path = ROOT / "build" / "emulator",
    jobs: int = 2,
    strict: bool = True,
    tuning: bool = False,
) -> Path:
    """Builds what changed and returns the library's path.

    ``csrc`` is the tree of the sources, by default the repository's. Copies with planted faults are built the same way,
    with ``strict=False``: they may leave a variable unused. ``tuning``: with every tile variant that the laboratory
    measures.
    """
    own = [HERE / name for name in ("emulator.cpp", "gates.cpp", "checker.cpp", "self_kernels.cpp")]
    own += sorted(HERE.glob("c_api*.cpp"))
    oracles = [csrc / "bonus" / "cpu" / "launch.cpp"]  # kernels of the CPU that the emulated ones are compared with
    objects = _compile([*own, *oracles, *sorted(csrc.glob("*/cuda/*.cu"))], csrc, folder, jobs, strict, tuning)
    return _link(objects, "libemulator.so", ["-shared"])


def build_lab(folder: Path = ROOT / "build" / "emulator", jobs: int = 2) -> Path:
    """Builds the laboratory (benchmarks/gpu/lab.cu) for the emulated GPU and returns the program's path."""
    csrc = ROOT / "csrc"
    own = [HERE / name for name in ("emulator.cpp", "gates.cpp", "checker.cpp")]
    own.append(ROOT / "benchmarks" / "gpu" / "lab.cu")
    cpu = [path for folder in ("knn/cpu", "isa", "isa/portable") for path in sorted((csrc / folder).glob("*.cpp"))]
    objects = _compile([*own, *cpu, *sorted(csrc.glob("*/cuda/*.cu"))], csrc, folder, jobs, True, True)
    return _link(objects, "qcse_lab", [])


if __name__ == "__main__":
    print(build())

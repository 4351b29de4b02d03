"""Packs what a machine with a GPU needs into one folder, so that no second there goes into compiling or fetching.

python benchmarks/gpu/kit.py [--kit build/gpu-kit] [--python FLOOR_PYTHON] [--architecture 90] [--corl CHECKOUT]

    _C.cpython-*.so   the extension, taken from FLOOR_PYTHON's environment (make floor: torch 2.11)
    qcse_lab          the laboratory
    wheels/           packages that such a machine may lack; pure Python, so laying them out is all
    data/             trajectories of Hopper and HalfCheetah for the benchmarks (needs Gymnasium with MuJoCo)
    corl/             CORL's own trainers, where a checkout is named
    commit, sources   this tree's commit, and a digest of what was compiled

Run it with a Python that has cmake, pip and the training layer's packages; nvcc is needed, a GPU is not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ["gymnasium", "farama-notifications", "tyro", "docstring-parser", "typeguard", "flashlib"]
SOURCE_ONLY = ["pykeops", "keopscore"]  # published without wheels
FIND = "import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec('qcse_ext').origin).parent)"


def commit() -> str:
    """Of this tree, with '-dirty' where it holds changes; 'unknown' where git cannot tell."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def digest_of_sources() -> str:
    """Of all that the kit's compiled files are made from."""
    digest = hashlib.sha256()
    sources = [*(ROOT / "csrc").rglob("*"), *(ROOT / "benchmarks" / "gpu").glob("lab*"), ROOT / "CMakeLists.txt"]
    for path in sorted(path for path in sources if path.is_file()):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def build_lab(architecture: str, folder: Path) -> Path:
    beside = Path(sys.executable).parent
    cmake = str(beside / "cmake") if (beside / "cmake").exists() else "cmake"
    ninja = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={beside / 'ninja'}"] if (beside / "ninja").exists() else []
    options = [f"-DQCSE_CUDA_ARCHITECTURES={architecture}", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run([cmake, "-S", str(ROOT / "benchmarks" / "gpu"), "-B", str(folder), *ninja, *options], check=True)
    subprocess.run([cmake, "--build", str(folder), "-j", str(os.cpu_count() or 1)], check=True)
    return folder / "qcse_lab"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, default=ROOT / "build" / "gpu-kit")
    parser.add_argument("--python", help="its environment holds the extension to carry; none: only the laboratory")
    parser.add_argument("--architecture", default="90", help="compute capability of the GPU (default: 90)")
    parser.add_argument("--corl", type=Path)
    parser.add_argument("--lab-only", action="store_true", help="build the laboratory and nothing else")
    options = parser.parse_args()
    kit: Path = options.kit.resolve()
    kit.mkdir(parents=True, exist_ok=True)
    lab = kit / "qcse_lab"
    shutil.copy2(build_lab(options.architecture, ROOT / "build" / f"lab-{options.architecture}"), lab)
    subprocess.run(["strip", str(lab)], check=True)
    sources = kit / "sources"
    if not sources.exists() or sources.read_text().strip() != digest_of_sources():
        for old in kit.glob("_C.*.so"):  # of other sources
            old.unlink()
    (kit / "commit").write_text(commit() + "\n")
    sources.write_text(digest_of_sources() + "\n")
    if options.lab_only:
        return 0
    if options.python:
        # From elsewhere: in the source tree the folder qcse_ext would be found first.
        python = os.path.abspath(options.python) if os.sep in options.python else options.python
        found = subprocess.run([python, "-c", FIND], cwd="/", check=True, capture_output=True, text=True)
        modules = list(Path(found.stdout.strip()).glob("_C.*.so"))
        if not modules:
            sys.exit(f"kit: {found.stdout.strip()} holds no compiled module; install the package there: make floor")
        for old in kit.glob("_C.*.so"):
            old.unlink()
        shutil.copy2(modules[0], kit)
    shutil.rmtree(kit / "wheels", ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "download", "--no-deps", "--only-binary=:all:", "-d", str(kit / "wheels"), *WHEELS], check=True
    )
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(kit / "wheels"), *SOURCE_ONLY], check=True)
    record = (
        "from qcse_ext.bench import data as b; [b.load(k, n) for k in ('hopper', 'halfcheetah') for n in (4096, 65536)]"
    )
    environment = {**os.environ, "QCSE_CACHE": str(kit / "data")}
    subprocess.run([sys.executable, "-P", "-c", record], env=environment, check=True)
    if options.corl is not None:
        shutil.copytree(
            options.corl / "algorithms" / "finetune", kit / "corl" / "algorithms" / "finetune", dirs_exist_ok=True
        )
    total = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file())
    print(f"{kit}: {total / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

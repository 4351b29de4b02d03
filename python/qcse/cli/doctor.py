"""`qcse doctor`: what is installed, which kernels are built, which device is used, what is missing and its remedy."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Sequence

# package -> what it is needed for, and the remedy
PACKAGES = {
    "torch": ("everything", "pip install torch"),
    "numpy": ("everything", "pip install numpy"),
    "gymnasium": ("environments", "pip install 'qcse[train]'"),
    "mujoco": ("MuJoCo environments", "pip install 'qcse[train]'"),
    "h5py": ("D4RL files", "pip install 'qcse[train]'"),
    "tyro": ("the command line", "pip install 'qcse[train]'"),
    "tensorboard": ("event files", "pip install 'qcse[train]'"),
    "matplotlib": ("reports", "pip install 'qcse[train]'"),
    "tqdm": ("progress bars", "pip install 'qcse[train]'"),
}


def doctor(argv: Sequence[str] = ()) -> int:
    """Print the findings; 0 where training can run, 1 where something that it needs is missing."""
    argparse.ArgumentParser(prog="qcse doctor", description="What is installed, built, and missing.").parse_args(argv)
    problems = 0

    def line(ok: bool, what: str, found: str, remedy: str = "") -> None:
        nonlocal problems
        problems += not ok
        print(f"{'ok     ' if ok else 'MISSING'} {what:<22} {found}{'' if ok else f'  -> {remedy}'}")

    line(True, "python", platform.python_version())
    for package, (purpose, remedy) in PACKAGES.items():
        try:
            line(True, package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            line(False, package, f"not installed; needed for {purpose}", remedy)
    if problems:
        print(f"{problems} package(s) missing: everything else was left unchecked")
        return 1

    import torch

    try:
        import qcse_ext

        for name, value in qcse_ext.build_info().items():
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            line(True, f"operator: {name}", shown)
        radius, _ = qcse_ext.knn(torch.arange(4.0).view(4, 1), torch.zeros(4), 1)
        line(
            bool((radius == 1).all()),
            "operator: runs",
            "four points on a line",
            "rebuild: pip install --no-build-isolation .",
        )
    except ImportError as error:
        line(False, "operator", str(error), "pip install --no-build-isolation .")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        line(True, "CUDA devices", ", ".join(names))
    else:
        line(True, "CUDA devices", "none; training uses the CPU")
    line(True, "CPU threads", str(torch.get_num_threads()))
    try:
        import gymnasium

        gymnasium.make("Hopper-v5").reset(seed=0)
        line(True, "Hopper-v5", "made and reset")
    except Exception as error:  # whatever breaks here, the user should read it rather than a traceback
        line(False, "Hopper-v5", f"{type(error).__name__}: {error}", "pip install 'qcse[train]'")
    print("everything that training needs is there" if problems == 0 else f"{problems} problem(s), see above")
    return 0 if problems == 0 else 1

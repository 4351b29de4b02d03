"""Everything that a machine with an NVIDIA GPU is wanted for, in one command of at most 570 seconds (`make gpu-run`).

[OUT=folder] [KIT=folder] [CORL=checkout] [DRY_RUN=1] [REST=1 | STAGES=names] python benchmarks/gpu/run.py

It needs the Python and torch that are there, and no network, no make, no git and no virtual environment. What `make
gpu-kit` packed elsewhere (KIT, by default build/gpu-kit) is used as it is; without it, or where it does not load, the
extension and the laboratory are built here first, and what no longer fits is left to the second command. Each stage has
its own process and time limit; whatever is killed leaves the results of the others. Files in OUT (build/gpu),
complete at any moment:

    gpu_run.json, gpu_run.log   how each stage ended; all output
    search.json                 the search, ours on each kernel and others'
    tuning.json                 every tile variant; benchmarks/gpu/tune.py turns it into csrc/knn/cuda/tuned.h
    training.json               updates per second beside CORL's and JAX's
    profile.ncu-rep.gz, profile.csv, profile_source.csv.gz   what Nsight Compute saw

REST=1, a second command of at most 200 seconds: what the first did not finish, then more. STAGES="cuda tests,training":
these alone, in this order, after a change that only they can judge. DRY_RUN=1: prints the plan
and runs, on a machine without a GPU, every stage that can do without one.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kit import commit, digest_of_sources
from stages import ROOT, Runner, Stage, unfinished

TOTAL_S, REST_S = 570.0, 200.0
WORK = ROOT / "build" / "gpu-work"
HERE = Path(__file__).resolve().parent


def flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


@dataclass(frozen=True)
class Tools:
    """What the stages stand on."""

    out: Path
    lab: Path
    environment: Mapping[str, str]
    extension_ready: bool  # a qcse_ext with CUDA kernels can be imported
    lab_ready: bool
    corl: str | None


def lay_out(kit: Path) -> dict[str, str]:
    """Makes WORK/site from this tree's Python and the kit's wheels and module; returns the stages' environment."""
    site = WORK / "site"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for wheel in sorted(kit.glob("wheels/*.whl")):
        try:
            importlib.metadata.version(wheel.name.split("-")[0])
        except importlib.metadata.PackageNotFoundError:  # what the machine has is not replaced
            with zipfile.ZipFile(wheel) as archive:  # pure Python: laying it out is all that installing would do
                archive.extractall(site)
    environment = {
        "QCSE_COMMIT": tree_commit(kit),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(WORK / "tree"), str(site), os.environ.get("PYTHONPATH")])),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if (kit / "data").is_dir():
        environment["QCSE_CACHE"] = str(kit / "data")
    return environment


def lay_out_tree(modules: list[Path]) -> None:
    """Makes WORK/tree: this tree's packages, with these compiled modules among them."""
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "qcse_ext", tree / "qcse_ext", ignore=ignored)
    shutil.copytree(ROOT / "python" / "qcse", tree / "qcse", ignore=ignored)
    for module in modules:
        shutil.copy2(module, tree / "qcse_ext")


def tree_commit(kit: Path) -> str:
    """git's word where it is here; otherwise what the kit was packed from."""
    found = commit() if shutil.which("git") else "unknown"
    if found == "unknown" and (kit / "commit").exists():
        found = (kit / "commit").read_text().strip()
    if (kit / "sources").exists() and (kit / "sources").read_text().strip() != digest_of_sources():
        print("the kit was packed from other sources than these: make gpu-kit again", flush=True)
        found += "-with-another-kit"
    return found


def answers(command: list[str], environment: Mapping[str, str], limit_s: float = 120) -> bool:
    try:
        done = subprocess.run(
            command,
            cwd=WORK,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{command[0]}: {error}", flush=True)
        return False
    if done.returncode != 0:
        print(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}", flush=True)
    return done.returncode == 0


def prepare(out: Path, dry: bool) -> Tools:
    kit = Path(os.environ.get("KIT") or ROOT / "build" / "gpu-kit").resolve()
    environment = lay_out(kit)
    look = "import torch, qcse_ext; assert qcse_ext.build_info()['cuda'], 'built without CUDA kernels'"
    lay_out_tree(list(kit.glob("_C.*.so")))
    ready = answers([sys.executable, "-c", look], environment)
    if not ready and dry:  # a rehearsal may use what is installed; a measurement must not, it may be of another tree
        shutil.rmtree(WORK / "tree")
        ready = answers([sys.executable, "-c", look], environment)
    lab = kit / "qcse_lab"
    # Whether it runs here, not whether it is right: a wrong answer on the GPU is for the stages to find.
    probe = [str(lab), "dump", "--folder", str(WORK / "probe"), "--sizes", "50x3", "--data", "normal"]
    lab_ready = lab.exists() and answers(probe, environment)
    corl = os.environ.get("CORL") or (str(kit / "corl") if (kit / "corl").is_dir() else None)
    return Tools(out, lab if lab_ready else WORK / "qcse_lab", environment, ready, lab_ready, corl)


def find_sanitizer() -> str:
    beside = Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc").resolve().parent / "compute-sanitizer"
    return shutil.which("compute-sanitizer") or str(beside)


def plan(tools: Tools, rest: bool) -> list[Stage]:
    """The stages in order; with `rest` those of the second command."""
    return _rest(tools) if rest else [*_right(tools), *_training(tools), *_laboratory(tools), *_tests(tools)]


PYTHON = [sys.executable]
ON_GPU = ["--device", "cuda"]
TRAINING = [*PYTHON, str(HERE / "training.py"), "--device"]
BENCH = [*PYTHON, "-m", "qcse_ext.bench", "--lines", "--runs", "5", "--limit", "5", "--device"]


def _sanitize(lab: str, tool: str, limit_s: float) -> Stage:
    # All that the laboratory launches is looked at, CUB's sort too: what that writes would else seem unwritten.
    command = [find_sanitizer(), "--tool", tool, "--error-exitcode", "9", lab, "check", *ON_GPU, "--largest", "300"]
    return Stage(tool, limit_s, [*command, "--budget", str(int(limit_s) - 12)])


def _cuda_tests() -> list[str]:
    # Named one by one: of a stage that is stopped the log then tells what has passed and what has failed.
    return [*PYTHON, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb", "short", "tests/cuda"]


def _device() -> dict[str, str]:
    return {"QCSE_CUDA_DEVICE": "cpu", "QCSE_CUDA_PROBLEMS": "10"} if flag("DRY_RUN") else {"QCSE_CUDA_DEVICE": "cuda"}


def _right(tools: Tools) -> list[Stage]:
    """Whether it is right comes before how fast it is."""
    tests = _cuda_tests()
    compared = "random_problem or size or separate or batch or values or half or strides or fewer"
    compared += " or gpu_nets or gpu_policy or gpu_random or gpu_update"
    lab, smoke = str(tools.lab), [*PYTHON, str(HERE / "smoke.py"), "--lab", str(tools.lab)]
    return [
        Stage("smoke", 25, smoke, rehearsal=[*smoke, "--device", "cpu"], results="search"),
        Stage("facts", 10, [lab, "facts", *ON_GPU], rehearsal=[lab, "facts"], results="search"),
        Stage(
            "laboratory, problems",
            15,
            [lab, "check", "--problems", "60", *ON_GPU, "--budget", "8"],
            rehearsal=[lab, "check", "--largest", "300"],
        ),
        Stage(
            "cuda tests",
            100,
            [*tests, "-n", "4", "--dist", "worksteal", "-k", "not memory"],
            rehearsal=[*tests, "-k", compared],
            # Else each of the four would take all cores for the CPU's answers.
            environment=_device() if flag("DRY_RUN") else _device() | {"OMP_NUM_THREADS": "4"},
        ),
    ]


def _laboratory(tools: Tools) -> list[Stage]:
    lab = str(tools.lab)
    return [
        Stage(
            "laboratory", 45, [lab, "search", *ON_GPU, "--budget", "39"], rehearsal=[lab, "search"], results="search"
        ),
        Stage(
            "tuning",
            70,
            [lab, "tune", *ON_GPU, "--budget", "61"],
            rehearsal=[lab, "tune", "--sizes", "256x17", "1024x17"],
            results="tuning",
        ),
        Stage("ncu", 60, [*PYTHON, str(HERE / "ncu.py"), lab, str(tools.out)], results="search"),
    ]


def _training(tools: Tools) -> list[Stage]:
    small = ["--seeds", "1", "2", "--batch-size", "32", "--rounds", "2", "--updates", "1"]
    corl = ["--corl", tools.corl] if tools.corl else []
    return [
        Stage(
            "training",
            35,
            [*TRAINING, "cuda", "--seeds", "1", "16", "8", "--no-jax", "--budget-s", "29", *corl],
            rehearsal=[*TRAINING, "cpu", *small, "--no-jax", *corl],
            results="training",
        ),
        # A stage of its own: should JAX end the process, what it is compared with is there already.
        Stage(
            "training beside JAX, TF32",
            50,
            [*TRAINING, "cuda", "--seeds", "1", "16", "8", "--precision", "tf32", "--budget-s", "43"],
            rehearsal=[*TRAINING, "cpu", *small],
            results="training",
        ),
    ]


def _tests(tools: Tools) -> list[Stage]:
    others = ["--implementations", "qcse", "torch-naive", "torch-cdist", "flashlib"]
    others += ["--sizes", "4096x17", "65536x17", "256x17", "65536x111", "1024x17"]
    return [
        # By itself: what is free on the GPU is not for one process alone to say.
        Stage("cuda tests, memory", 15, [*_cuda_tests(), "-k", "memory"], environment=_device()),
        _sanitize(str(tools.lab), "memcheck", 35),
        _sanitize(str(tools.lab), "racecheck", 40),
        Stage(
            "other libraries",
            35,
            [*BENCH, "cuda", *others, "--budget", "29"],
            rehearsal=[*BENCH, "cpu", "--sizes", "256x17"],
            results="search",
        ),
    ]


def _rest(tools: Tools) -> list[Stage]:
    lab = str(tools.lab)
    sizes, ks = ["--sizes", "65536x11", "1000000x29"], ["--sizes", "65536x17", "--k", "5", "50", "100"]
    few = [*TRAINING, "cuda", "--seeds", "1", "16", "--precision", "bf16", "--no-jax", "--budget-s", "20"]
    real = [*BENCH, "cuda", "--data", "hopper", "halfcheetah", "--n", "4096", "65536", "--budget", "19"]
    keops = [*BENCH, "cuda", "--implementations", "qcse", "keops", "--timing", "eager", "--budget", "15"]
    return [
        _sanitize(lab, "initcheck", 35),
        _sanitize(lab, "synccheck", 20),
        Stage("laboratory, more sizes", 40, [lab, "search", *sizes, *ON_GPU, "--budget", "34"], results="search"),
        Stage("laboratory, other k", 15, [lab, "search", *ks, *ON_GPU, "--budget", "11"], results="search"),
        Stage("training, bf16", 25, few, results="training"),
        Stage("real trajectories", 25, [*real, "--implementations", "qcse", "torch-cdist"], results="search"),
        # It compiles at its first call.
        Stage("KeOps", 20, [*keops, "--sizes", "4096x17", "65536x17"], results="search"),
    ]


def named(stages: list[Stage], names: str) -> list[Stage]:
    """Those that a list with commas names, in its order."""
    known = {stage.name: stage for stage in stages}
    # Some names have a comma of their own.
    ordered = sorted(known, key=len, reverse=True)
    found, left = [], names.strip()
    while left:
        name = next((n for n in ordered if left == n or left.startswith(n + ",")), None)
        if name is None:
            sys.exit(f"run: STAGES has {left!r}; expected names with commas between them, of: {'; '.join(known)}")
        found.append(known[name])
        left = left[len(name) + 1 :].strip()
    return found


def fitted(stages: list[Stage], more: list[Stage], total_s: float) -> list[Stage]:
    """In order, those whose limits fit into the time together; then the others, and more, for the time that is left."""
    chosen: list[Stage] = []
    spare: list[Stage] = []
    for stage in stages:
        fits = sum(s.limit_s for s in chosen) + stage.limit_s <= total_s
        (chosen if fits else spare).append(stage)
    return chosen + [replace(stage, spare=True) for stage in [*spare, *more]]


# --- Building what was not carried ------------------------------------------------------------------------------------
def tool(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def start_build(source: Path, folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
    cmake, ninja = tool("cmake"), tool("ninja")
    if cmake is None:
        sys.exit("run: cmake was not found; install it, or bring a kit (make gpu-kit)")
    options = [*options, "-DCMAKE_BUILD_TYPE=Release", "-DQCSE_CUDA=ON", "-DQCSE_CUDA_ARCHITECTURES=native"]
    if ninja:
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    subprocess.run([cmake, "-S", str(source), "-B", str(folder), *options], check=True)
    return subprocess.Popen([cmake, "--build", str(folder), "-j", str(os.cpu_count() or 1)])


def build(parts: list[str]) -> int:
    """Builds the laboratory and the extension for the GPU that is here, one beside the other."""
    going: dict[str, subprocess.Popen[bytes]] = {}
    if "lab" in parts:
        going["lab"] = start_build(HERE, WORK / "lab", [])
    if "extension" in parts:
        ask = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True)
        if ask.returncode != 0:
            sys.exit("run: pybind11 was not found; install it, or bring a kit (make gpu-kit)")
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={ask.stdout.strip()}"]
        going["extension"] = start_build(ROOT, WORK / "extension", options)
    failed = [name for name, process in going.items() if process.wait() != 0]
    if "lab" in going and "lab" not in failed:
        shutil.copy2(WORK / "lab" / "qcse_lab", WORK / "qcse_lab")
    if "extension" in going and "extension" not in failed:
        lay_out_tree(list((WORK / "extension").glob("_C*.so")))
    for name in failed:
        print(f"the build of the {name} failed")
    return 1 if failed else 0


# --- The command ------------------------------------------------------------------------------------------------------
def facts(environment: Mapping[str, str]) -> dict[str, object]:
    """The machine, without waking the GPU."""
    found: dict[str, object] = {"commit": environment["QCSE_COMMIT"], "python": platform.python_version()}
    found |= {"system": platform.platform(), "cores": os.cpu_count()}
    for package in ("torch", "triton", "jax", "flashlib", "pykeops"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if shutil.which("nvidia-smi"):
        query = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=15)
            found["nvidia_smi"] = done.stdout.strip() if done.returncode == 0 else None
        except subprocess.TimeoutExpired:
            found["nvidia_smi"] = "no answer"
    return found


def main() -> int:
    if sys.argv[1:2] == ["--build"]:
        return build(sys.argv[2:])
    if sys.argv[1:]:
        sys.exit(
            f"run: got {sys.argv[1:]}; expected no arguments: OUT, KIT, CORL, REST, STAGES and DRY_RUN are in the "
            "environment"
        )
    begin = time.monotonic()
    dry, rest = flag("DRY_RUN"), flag("REST")
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu").resolve() / ("rest" if rest else "")
    out.mkdir(parents=True, exist_ok=True)
    tools = prepare(out, dry)
    os.environ.update(tools.environment)
    state = ROOT / "build" / ("gpu-rehearsed.json" if dry else "gpu-done.json")
    known = tools.environment["QCSE_COMMIT"]
    stages, more = plan(tools, rest=False), plan(tools, rest=True)
    if names := os.environ.get("STAGES"):
        stages, more = named([*stages, *more], names), []
    elif rest:
        stages, more = unfinished(state, [*stages, *more], dry, known), []
    missing = [] if tools.lab_ready else ["lab"]
    missing += [] if tools.extension_ready else ["extension"]
    if missing:
        command = [sys.executable, str(HERE / "run.py"), "--build", *missing]
        stages.insert(0, Stage(f"build: {', '.join(missing)}", 150, command, rehearsal=command))
    spent = 0.0 if dry else time.monotonic() - begin
    total_s = (REST_S if rest else TOTAL_S) - spent
    runner = Runner(out, total_s, dry, facts(tools.environment), state=state)
    return runner.run(fitted(stages, more, total_s))


if __name__ == "__main__":
    sys.exit(main())

"""What gpu_check.py and gpu_bench.py share: stages with time limits, results on disk after each, a build for the GPU.

Everything is taken from the repository, the Python that runs this and its torch; WHEELS may name a folder of wheels for
what that Python lacks (cmake, ninja, pybind11, pytest, numpy; for the training step gymnasium, tyro, h5py and tqdm,
each with what it requires). No network and no virtual environment is used.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FACTS = """
import json, platform, torch
gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
print(json.dumps({
    "python": platform.python_version(),
    "torch": torch.__version__,
    "cuda_of_torch": torch.version.cuda,
    "device": gpu and gpu.name,
    "devices": torch.cuda.device_count(),
    "multiprocessors": gpu and gpu.multi_processor_count,
}))
"""


class Stages:
    """Runs commands one after the other; ``OUT/NAME.json`` and ``OUT/NAME.log`` are complete after each of them."""

    def __init__(self, name: str, total_s: float) -> None:
        self.out = Path(os.environ.get("OUT", ROOT / "build" / name)).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.dry = os.environ.get("DRY_RUN", "0") not in ("", "0")
        self.work = ROOT / "build" / "gpu"
        self.environment = dict(
            os.environ, PYTHONPATH=os.pathsep.join([str(self.work / "site"), str(self.work / "tools")])
        )
        self._log = (self.out / f"{name}.log").open("w")
        self._json = self.out / f"{name}.json"
        self._end = time.monotonic() + (4 * total_s if self.dry else total_s)  # a rehearsal may build on a slow machine
        self.record: dict[str, object] = {
            "name": name,
            "dry_run": self.dry,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "stages": [],
        }
        self.failed = False

    def say(self, text: str) -> None:
        print(text, flush=True)
        self._log.write(text + "\n")
        self._log.flush()

    def save(self) -> None:
        temporary = self._json.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.record, indent=2) + "\n")
        temporary.replace(self._json)

    def run(
        self, name: str, command: list[str], limit_s: float, needs_gpu: bool = True, result: Path | None = None
    ) -> bool:
        """Runs one stage within its limit and what is left of the total; False where it failed or had no time.

        `result`: a JSON file that the command writes, which is moved into the stage's record.
        """
        self.say(f"\n== {name}: {' '.join(command)}")
        stage: dict[str, object] = {"stage": name, "command": command}
        self.record["stages"].append(stage)  # type: ignore[attr-defined]
        limit = min(4 * limit_s if self.dry else limit_s, self._end - time.monotonic())
        if self.dry and needs_gpu:
            stage["status"] = "left out: it needs a GPU"
            self.say("   left out: it needs a GPU")
        elif limit < 5:
            stage["status"] = "left out: no time was left"
            self.failed = True
        else:
            begin = time.monotonic()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                output, _ = process.communicate(timeout=limit)
                stage["status"] = "passed" if process.returncode == 0 else f"failed with status {process.returncode}"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                output, _ = process.communicate()
                stage["status"] = f"stopped after {limit:.0f} s"
            stage["seconds"] = round(time.monotonic() - begin, 1)
            stage["tail"] = output[-3000:]
            self.say(output.rstrip())
            self.say(f"   {stage['status']} in {stage['seconds']} s")
            self.failed |= stage["status"] != "passed"
            if result is not None and result.exists():
                stage["result"] = json.loads(result.read_text())
                result.unlink()
        self.save()
        return stage["status"] == "passed" or str(stage["status"]).startswith("left out: it needs")

    def build(self, limit_s: float = 200, training: bool = False) -> bool:
        """Builds the extension for the GPU that is here (in a dry run for 8.0) and lays the packages out beside it.

        `training`: the training layer as well, with the packages that it needs.
        """
        tools, site = self.work / "tools", self.work / "site"
        for folder in (tools, site):
            folder.mkdir(parents=True, exist_ok=True)
        if wheels := os.environ.get("WHEELS"):
            wanted = ["cmake", "ninja", "pybind11", "pytest", "numpy"]
            wanted += ["gymnasium", "tyro", "h5py", "tqdm"] if training else []
            names = [n for n in wanted if list(Path(wheels).glob(f"{n}-*.whl"))]
            pip = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", wheels, "--target", str(tools)]
            if names and not self.run("tools", [*pip, "--upgrade", *names], 60, needs_gpu=False):
                return False
        ask = [sys.executable, "-m", "pybind11", "--cmakedir"]
        pybind = subprocess.run(ask, env=self.environment, capture_output=True, text=True)
        if pybind.returncode != 0:
            self.say("pybind11 is missing: install it, or name a folder that holds its wheel by WHEELS")
            self.failed = True
            return False
        beside = Path(sys.executable).parent
        cmake = next((str(p) for p in (tools / "bin" / "cmake", beside / "cmake") if p.exists()), shutil.which("cmake"))
        ninja = next((str(p) for p in (tools / "bin" / "ninja", beside / "ninja") if p.exists()), shutil.which("ninja"))
        if cmake is None:
            self.say("cmake is missing: install it, or name a folder that holds its wheel by WHEELS")
            self.failed = True
            return False
        folder = str(self.work / "cmake")
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            folder,
            "-DCMAKE_BUILD_TYPE=Release",
            "-DQCSE_CUDA=ON",
            f"-DQCSE_CUDA_ARCHITECTURES={'80' if self.dry else 'native'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind.stdout.strip()}",
        ]
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if not self.run("configure", configure, 60, needs_gpu=False):
            return False
        jobs = str(2 if self.dry else min(16, os.cpu_count() or 1))
        if not self.run("build", [cmake, "--build", folder, "-j", jobs], limit_s, needs_gpu=False):
            return False
        shutil.rmtree(site)
        shutil.copytree(ROOT / "qcse_ext", site / "qcse_ext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        if training:
            shutil.copytree(ROOT / "python" / "qcse", site / "qcse", ignore=shutil.ignore_patterns("__pycache__"))
        for module in Path(folder).glob("_C*.so"):
            shutil.copy2(module, site / "qcse_ext")
        look = "import qcse_ext, json; print(json.dumps(qcse_ext.build_info()))"
        return self.run("import", [sys.executable, "-c", look], 60, needs_gpu=False)

    def facts(self) -> None:
        """The machine, for the record."""
        done = subprocess.run([sys.executable, "-c", FACTS], capture_output=True, text=True)
        self.record["machine"] = (
            json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr[-500:]
        )
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
            self.record["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        self.record["commit"] = commit.stdout.strip() or None
        self.say(json.dumps({key: self.record.get(key) for key in ("machine", "nvidia_smi", "commit")}, indent=2))
        self.save()

    def finish(self) -> int:
        self.record["result"] = "failed" if self.failed else "rehearsed" if self.dry else "passed"
        self.save()
        self.say(f"\n{self.record['name']}: {self.record['result']}; see {self._json}")
        return 1 if self.failed else 0

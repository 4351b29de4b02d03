"""The compiled module itself: which symbols it needs, what it tells about itself, how it is steered."""

import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

import qcse_ext
from qcse_ext import _C

ROOT = pathlib.Path(__file__).parents[2]
# libc, libm, libgcc and libstdc++ carry versions; Python, the stable ABI and the start-up files have known names.
ALLOWED = re.compile(
    r"@(GLIBC|GLIBCXX|CXXABI|GCC)_"
    r"|^_?Py[A-Z_]"
    r"|^(aoti_torch|torch)_[a-z0-9_]+$"
    r"|^_ITM_|^__gmon_start__$|^__cxa_finalize|^__(asan|ubsan|sanitizer)_"
)


def undefined_symbols(path: str) -> list[str]:
    tool = shutil.which("nm")
    if tool is None or sys.platform != "linux":
        pytest.skip("needs nm on Linux")
    lines = subprocess.run([tool, "-D", "--undefined-only", path], check=True, capture_output=True, text=True).stdout
    return [line.split()[-1] for line in lines.splitlines()]


def test_module_needs_nothing_outside_the_stable_abi() -> None:
    symbols = undefined_symbols(_C.__file__)
    assert any(s.startswith("torch_call_dispatcher") for s in symbols), "nm shows no call into torch: wrong file?"
    assert [s for s in symbols if not ALLOWED.search(s)] == []


def test_module_leaves_no_search_path_and_needs_few_libraries() -> None:
    tool = shutil.which("readelf")
    if tool is None:
        pytest.skip("needs readelf")
    dynamic = subprocess.run([tool, "-d", _C.__file__], check=True, capture_output=True, text=True).stdout
    assert "RUNPATH" not in dynamic and "RPATH" not in dynamic
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\.so", dynamic))
    known = {"libtorch_cpu", "libc10", "libstdc++", "libm", "libgcc_s", "libc", "libdl", "librt", "libpthread"}
    assert {n for n in needed if not n.startswith(("ld-linux", "libasan", "libubsan"))} <= known


ISA = ROOT / "csrc" / "isa"
COMPILE = ["g++", "-std=c++20", "-w", "-DQCSE_X86_KERNELS", f"-I{ROOT / 'csrc'}"]


@pytest.mark.parametrize("name", sorted(path.name for path in ISA.iterdir() if path.is_dir()))
def test_kernels_share_no_function_with_the_rest(name: str, tmp_path: pathlib.Path) -> None:
    """A weak symbol compiled with AVX-512 could replace its namesake of a file that runs everywhere."""
    flags = ISA / name / f"{platform.machine()}.flags"
    if shutil.which("g++") is None or shutil.which("nm") is None or not (name == "portable" or flags.exists()):
        pytest.skip("needs g++, nm and a processor of the kind that the instruction set belongs to")
    output = tmp_path / "kernel.o"
    for source in sorted((ISA / name).glob("*.cpp")):
        # Without optimisation nothing is inlined, so whatever could become a symbol of its own does.
        command = [*COMPILE, "-O0", *(flags.read_text().split() if flags.exists() else [])]
        subprocess.run([*command, "-c", str(source), "-o", str(output)], check=True)
        symbols = subprocess.run(["nm", str(output)], check=True, capture_output=True, text=True).stdout
        assert re.findall(r"^.* [WVu] .*$", symbols, re.MULTILINE) == [], source


def test_every_folder_of_an_instruction_set_has_its_row() -> None:
    """One that has none is compiled and never run."""
    rows = re.findall(r"^  SET\((\w+),", (ISA / "isa.cpp").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(path.name for path in ISA.iterdir() if path.is_dir())


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("name", ["portable", "avx2"])
def test_a_compiler_that_may_use_more_changes_no_vector(name: str) -> None:
    """CXXFLAGS with -march=native, or a compiler made for newer processors, must still build every instruction set."""
    subprocess.run([*COMPILE, "-fsyntax-only", "-march=x86-64-v4", str(ISA / name / "nets.cpp")], check=True)


def test_build_info() -> None:
    info = qcse_ext.build_info()
    assert info["torch_abi_target"] == "2.11"
    assert info["cpu_instruction_sets"][0] == "portable"
    assert info["cpu_instruction_set"] in info["cpu_instruction_sets"]
    assert isinstance(info["cuda"], bool)
    assert (info["cuda_architectures"] is None) == (not info["cuda"])


@pytest.mark.parametrize("name", qcse_ext.build_info()["cpu_instruction_sets"])
def test_environment_variable_chooses_the_instruction_set(name: str) -> None:
    code = "import qcse_ext; print(qcse_ext.build_info()['cpu_instruction_set'])"
    environment = {**os.environ, "QCSE_CPU_ISA": name}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == name


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'mmx' is not available.*expected one of: portable"):
        _C.set_instruction_set("mmx")
    with pytest.raises(ValueError, match=r"must be 'auto', 'all', 'boxes' or 'screen', got 'guess'"):
        _C.set_search_path("guess")
    code = "import torch, qcse_ext; qcse_ext.knn(torch.rand(9, 2), torch.rand(9), 1)"
    environment = {**os.environ, "QCSE_CPU_ISA": "mmx"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode != 0 and "QCSE_CPU_ISA" in result.stderr


def find_cmake() -> str:
    beside = pathlib.Path(sys.executable).parent / "cmake"
    cmake = str(beside) if beside.exists() else shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake")
    return cmake


def test_pybind11_comes_before_the_copy_that_torch_brings(tmp_path: pathlib.Path) -> None:
    """torch 2.11's own pybind11.h refuses to compile under TORCH_TARGET_VERSION."""
    ask = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True)
    if ask.returncode != 0:
        pytest.skip("needs pybind11")
    options = ["-DQCSE_CUDA=OFF", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    command = [find_cmake(), "-S", str(ROOT), "-B", str(tmp_path), f"-Dpybind11_DIR={ask.stdout.strip()}", *options]
    subprocess.run(command, check=True, capture_output=True)
    units = json.loads((tmp_path / "compile_commands.json").read_text())
    unit = next(u for u in units if u["file"].endswith("csrc/module.cpp"))
    compile_it = [word for word in shlex.split(unit["command"]) if word not in ("-c", unit["file"])]
    output = compile_it.index("-o")
    includes = subprocess.run(
        [*compile_it[:output], *compile_it[output + 2 :], "-M", unit["file"]],
        cwd=unit["directory"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    used = {pathlib.Path(word) for word in includes.split() if word.endswith("/pybind11.h")}
    torch_headers = pathlib.Path(torch.__file__).parent / "include"
    assert used and not any(path.is_relative_to(torch_headers) for path in used), used
    assert (torch_headers / "pybind11/pybind11.h").exists(), "torch brings no copy any more: this test says nothing"


@pytest.mark.parametrize(
    ("wanted", "standing", "gpus", "expected"),
    [
        ("", "", "9.0", "90"),
        ("native", "", "9.0\n8.6\n9.0", "90;86"),
        ("native", "75", "10.0", "100"),
        ("", "", "[N/A]", "80"),
        ("native", "", "", "80"),
        ("", "75", "9.0", "75"),
        ("90-real", "", "", "90-real;90-virtual"),
        ("100-real;90-real", "", "", "100-real;90-real;100-virtual"),
        ("90a", "", "", "90a;90-virtual"),
        ("80-real;90-virtual", "", "", "80-real;90-virtual"),
        ("release", "", "", "80-real;86-real;89-real;90-real;100-real;120"),
    ],
)
def test_every_build_embeds_ptx(tmp_path: pathlib.Path, wanted: str, standing: str, gpus: str, expected: str) -> None:
    """Machine code of one generation alone leaves a newer GPU without any kernel."""
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text(f"#!/bin/sh\nprintf '{gpus}'\n" if gpus else "#!/bin/sh\nexit 9\n")
    stand_in.chmod(0o755)
    script = tmp_path / "ask.cmake"
    script.write_text(
        f'include("{ROOT}/csrc/cuda_architectures.cmake")\n'
        f'qcse_cuda_architectures(found "{wanted}" "{standing}")\nmessage(NOTICE "${{found}}")\n'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [find_cmake(), "-P", str(script)], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stderr.strip() == expected


STAND_IN = """
extern "C" int aoti_torch_get_current_cuda_stream(int device, void** stream) {
  if (device < 0) return 1;
  *stream = reinterpret_cast<void*>(0x1000 + device);
  return 0;
}
"""


FIND_STREAM = """
import ctypes, importlib.util, os, pathlib, sys

# Not torch itself: one with CUDA would bring the real library along.
torch_libraries = pathlib.Path(importlib.util.find_spec("torch").origin).parent / "lib"
for name in ("libc10.so", "libtorch_cpu.so"):
    ctypes.CDLL(str(torch_libraries / name), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

def stream(device):
    try:
        return module.current_cuda_stream(device)
    except RuntimeError as error:
        return str(error)

print(stream(3))
kept = ctypes.CDLL(sys.argv[2], mode=os.RTLD_LOCAL | os.RTLD_NOW)
print(stream(3), stream(0), stream(-1), sep="\\n")
assert "torch" not in sys.modules
"""


@pytest.mark.skipif(not _C.build_info()["cuda"], reason="this build holds no CUDA kernels")
@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="needs g++ on Linux")
def test_the_stream_is_found_in_a_library_whose_symbols_are_not_global(tmp_path: pathlib.Path) -> None:
    """torch loads libtorch_cuda.so with RTLD_LOCAL; this stand-in has its soname and is loaded the same way."""
    source, library = tmp_path / "stand_in.cpp", tmp_path / "elsewhere.so"
    source.write_text(STAND_IN)
    options = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
    subprocess.run(["g++", *options, str(source), "-o", str(library)], check=True)
    command = [sys.executable, "-P", "-c", FIND_STREAM, _C.__file__, str(library)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, third, first, failed = done.stdout.splitlines()
    assert "no CUDA library of torch is loaded" in before
    assert (int(third), int(first)) == (0x1003, 0x1000)
    assert "could not tell the current stream of CUDA device -1 (status 1)" in failed


def test_deterministic_over_repeated_calls() -> None:
    states, values = torch.rand(500, 6), torch.rand(500)
    first = qcse_ext.knn(states, values, 7)
    for _ in range(5):
        again = qcse_ext.knn(states, values, 7)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])

"""The compiled module itself: which symbols it needs, what it tells about itself, how it is steered."""

import os
import pathlib
import re
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


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512", "avx512vnni"])
def test_kernels_share_no_function_with_the_rest(name: str, tmp_path: pathlib.Path) -> None:
    """A weak symbol compiled with AVX-512 could replace its namesake of a file that runs everywhere."""
    if name not in _C.build_info()["cpu_instruction_sets"] or shutil.which("g++") is None or shutil.which("nm") is None:
        pytest.skip(f"needs g++, nm and a machine with {name}")
    flags = [] if name == "portable" else ["-mavx2", "-mfma"]
    if name.startswith("avx512"):
        flags += ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    if name == "avx512vnni":
        flags += ["-mavx512vnni", "-mavx512bf16", "-mavx512vbmi2"]
    output = tmp_path / "kernel.o"
    networks = "networks_avx512bf16" if name == "avx512vnni" else f"networks_{name}"
    for source in (f"kernel_{name}.cpp", f"{networks}.cpp"):
        # Without optimisation nothing is inlined, so whatever could become a symbol of its own does.
        command = ["g++", "-std=c++20", "-O0", "-w", "-DQCSE_X86_KERNELS", *flags, f"-I{ROOT / 'csrc'}"]
        subprocess.run([*command, "-c", str(ROOT / "csrc/cpu" / source), "-o", str(output)], check=True)
        symbols = subprocess.run(["nm", str(output)], check=True, capture_output=True, text=True).stdout
        assert re.findall(r"^.* [WVu] .*$", symbols, re.MULTILINE) == [], source


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("name", ["portable", "avx2"])
def test_a_compiler_that_may_use_more_changes_no_vector(name: str) -> None:
    """CXXFLAGS with -march=native, or a compiler made for newer processors, must still build every instruction set."""
    source = ROOT / f"csrc/cpu/networks_{name}.cpp"
    flags = ["-std=c++20", "-w", "-fsyntax-only", "-DQCSE_X86_KERNELS", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, "-march=x86-64-v4", str(source)], check=True)


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


def test_deterministic_over_repeated_calls() -> None:
    states, values = torch.rand(500, 6), torch.rand(500)
    first = qcse_ext.knn(states, values, 7)
    for _ in range(5):
        again = qcse_ext.knn(states, values, 7)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])

// Makes `qcse_ext._C` importable, which registers the operators, and tells the facts of the build.
#include <pybind11/pybind11.h>

#include <string>

#include "isa/isa.h"
#include "knn/cpu/launch.h"
#include "knn/cpu/measure.h"
#ifdef QCSE_WITH_CUDA
#include "base/op_cuda.h"
#include "knn/cuda/launch.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["torch_abi_target"] = QCSE_TORCH_TARGET;
  info["torch_built_with"] = QCSE_TORCH_BUILT;
  info["compiler"] = __VERSION__;
  py::list sets;
  for (const char* name : qcse::cpu::instruction_sets()) sets.append(name);
  info["cpu_instruction_sets"] = sets;
  info["cpu_instruction_set"] = qcse::cpu::instruction_set();
  info["cpu_bf16"] = qcse::cpu::has_bf16();
#ifdef QCSE_WITH_CUDA
  info["cuda"] = true;
  info["cuda_toolkit"] = QCSE_CUDA_TOOLKIT;
  info["cuda_architectures"] = QCSE_CUDA_ARCHITECTURES;
#else
  info["cuda"] = false;
  info["cuda_toolkit"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

py::tuple hot_loop_speed(int64_t dim, bool twofold) {
  const py::gil_scoped_release release;
  const qcse::cpu::HotLoopSpeed speed =
      twofold ? qcse::cpu::hot_loop_speed<double>(dim) : qcse::cpu::hot_loop_speed<float>(dim);
  const py::gil_scoped_acquire acquire;
  return py::make_tuple(speed.tile, speed.peak);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled half of qcse_ext. Importing it registers torch.ops.qcse.*; use the functions of qcse_ext.";
  m.def("build_info", &build_info, "Facts of this build: instruction sets, CUDA, torch ABI target, compiler.");
  m.def("set_instruction_set", &qcse::cpu::set_instruction_set, py::arg("name"),
        "Tests and benchmarks: use this instruction set from now on (empty: the best one). ValueError if unavailable.");
  m.def("set_search_path", &qcse::cpu::set_search_path, py::arg("name"),
        "Tests and benchmarks: 'auto' (the default), 'all' (every pair), 'boxes' or 'screen'.");
  m.def("multiply_adds", &qcse::cpu::multiply_adds, py::arg("rounds"), py::call_guard<py::gil_scoped_release>(),
        "Benchmarks: run float32 multiply-adds that are bound by nothing else; returns the floating-point operations.");
  m.def("hot_loop_speed", &hot_loop_speed, py::arg("dim"), py::arg("float64") = false,
        "Benchmarks: multiply-adds per second of one core in the hot loop of 'all', and in a loop of nothing else.");
#ifdef QCSE_WITH_CUDA
  m.def("set_cuda_path", &qcse::cuda::set_path, py::arg("name"),
        "Tests and benchmarks: 'auto' (the default), 'small', 'large' or 'screened'.");
  m.def(
      "current_cuda_stream",
      [](int32_t device) { return reinterpret_cast<uintptr_t>(qcse::current_cuda_stream(device)); }, py::arg("device"),
      "Tests: the address of torch's current stream on this device, as the operators find it.");
#endif
  m.def("set_work_per_thread", &qcse::cpu::set_work_per_thread, py::arg("work"),
        "Tests: pair-dimensions that make a further thread worth it; 1 uses every thread, 0 restores the default.");
}

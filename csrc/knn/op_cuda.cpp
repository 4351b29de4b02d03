// The CUDA registration of the operators: the tensors' device, torch's current stream on it, and a workspace from
// torch's allocator. Built against a torch without CUDA as well, so that every change compiles every line.
#include "knn/op_cuda.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <atomic>
#include <sstream>
#include <stdexcept>
#include <string>

#include "knn/cuda/launch.h"
#include "knn/op.h"

namespace qcse {
namespace {

using GetStream = AOTITorchError (*)(int32_t device_index, void** stream);

// The function lives in torch's CUDA library alone, which torch loads without adding its symbols to the global ones: no
// reference of this module, weak or not, would ever be bound to it. So it is looked up in the library that is there
// already; nothing is loaded. Null beside a torch without CUDA.
GetStream find_get_stream() {
  static std::atomic<GetStream> known = nullptr;
  if (const GetStream found = known.load(std::memory_order_relaxed)) return found;
  constexpr const char* kName = "aoti_torch_get_current_cuda_stream";
  void* symbol = dlsym(RTLD_DEFAULT, kName);
  if (symbol == nullptr) {
    // Never closed: the function stays in use.
    if (void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) symbol = dlsym(library, kName);
  }
  const auto found = reinterpret_cast<GetStream>(symbol);
  known.store(found, std::memory_order_relaxed);
  return found;
}

template <typename T>
std::string shape_of(const KnnProblem<T>& p) {
  std::ostringstream out;
  out << "batch " << p.batch << ", queries " << p.queries << ", references " << p.refs << ", dim " << p.dim << ", k "
      << p.k << (sizeof(T) == 4 ? ", float32" : ", float64");
  return out.str();
}

struct LaunchCuda {
  const char* op;

  template <typename T>
  void check(const KnnProblem<T>& p, const cuda::Status& status) const {
    if (status.error == nullptr) return;
    std::ostringstream message;
    message << op << ": " << status.kernel << " failed: " << status.error << " (" << shape_of(p)
            << "; kernels built for compute capability " << QCSE_CUDA_ARCHITECTURES << " by CUDA " << QCSE_CUDA_TOOLKIT
            << ")";
    throw std::runtime_error(message.str());
  }

  template <typename T>
  void operator()(const KnnProblem<T>& p, const Tensor& example) const {
    const int32_t index = example.get_device_index();
    void* const stream = current_cuda_stream(index);
    cuda::Device device;
    check(p, cuda::select_device(index, &device));
    const cuda::Choice choice = cuda::choose(p, device);  // once: another thread may change what is chosen
    const size_t bytes = cuda::workspace_bytes(p, device, choice);
    if (bytes == 0) return check(p, cuda::launch(p, device, nullptr, stream, choice));
    // Torch's allocator ties the workspace to the current stream, so it may be given back as soon as this returns.
    const Tensor workspace = torch::stable::new_empty(example, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
    check(p, cuda::launch(p, device, workspace.mutable_data_ptr(), stream, choice));
  }
};

std::tuple<Tensor, Tensor> knn_cuda(const Tensor& states, const Tensor& values, int64_t k,
                                    std::optional<Tensor> ref_states, std::optional<Tensor> ref_values,
                                    std::optional<Tensor> self_index) {
  const torch::stable::accelerator::DeviceGuard guard(states.get_device_index());
  return run_knn(check_arguments("qcse::knn", states, values, k, ref_states, ref_values, self_index),
                 LaunchCuda{"qcse::knn"});
}

Tensor entropy_cuda(const Tensor& states, const Tensor& values, int64_t k, std::optional<Tensor> ref_states,
                    std::optional<Tensor> ref_values, std::optional<Tensor> self_index, double offset) {
  const torch::stable::accelerator::DeviceGuard guard(states.get_device_index());
  return run_entropy(check_arguments("qcse::entropy", states, values, k, ref_states, ref_values, self_index), offset,
                     LaunchCuda{"qcse::entropy"});
}

}  // namespace

void* current_cuda_stream(int32_t device_index) {
  const GetStream get = find_get_stream();
  if (get == nullptr) {
    fail(
        "qcse: got a CUDA tensor, but no CUDA library of torch is loaded that offers a current stream (expected "
        "aoti_torch_get_current_cuda_stream in libtorch_cuda.so; torch 2.11 and newer have it in their CUDA builds)");
  }
  void* stream = nullptr;
  if (const AOTITorchError status = get(device_index, &stream); status != 0) {
    fail("qcse: torch could not tell the current stream of CUDA device ", device_index, " (status ", status, ")");
  }
  return stream;
}

}  // namespace qcse

STABLE_TORCH_LIBRARY_IMPL(qcse, CUDA, m) {
  m.impl("knn", TORCH_BOX(&qcse::knn_cuda));
  m.impl("entropy", TORCH_BOX(&qcse::entropy_cuda));
}

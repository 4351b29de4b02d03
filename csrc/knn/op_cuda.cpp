// The CUDA registration of the operators: the tensors' device, torch's current stream on it, and a workspace from
// torch's allocator. Built against a torch without CUDA as well, so that every change compiles every line.
#include <torch/csrc/stable/accelerator.h>

#include <sstream>
#include <string>

#include "base/op_cuda.h"
#include "knn/cuda/launch.h"
#include "knn/op.h"

namespace qcse {
namespace {

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
    expect_launched(op, status, shape_of(p));
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

}  // namespace qcse

STABLE_TORCH_LIBRARY_IMPL(qcse, CUDA, m) {
  m.impl("knn", TORCH_BOX(&qcse::knn_cuda));
  m.impl("entropy", TORCH_BOX(&qcse::entropy_cuda));
}

// The CUDA registration of the bonus of a training batch: torch's current stream, and a workspace from its allocator.
#include <torch/csrc/stable/accelerator.h>

#include <sstream>

#include "base/op_cuda.h"
#include "bonus/cuda/batch_entropy.h"
#include "bonus/op.h"

namespace qcse {
namespace {

template <typename T>
void launch_cuda(const BatchEntropy<T>& b, const Tensor& example) {
  const auto check = [&](const cuda::Status& status) {
    std::ostringstream shape;
    shape << "seeds " << b.seeds << ", rows " << b.rows << ", dim " << b.dim << ", k " << b.k
          << (sizeof(T) == 4 ? ", float32" : ", float64");
    expect_launched("qcse::batch_entropy", status, shape.str());
  };
  const int32_t device_index = example.get_device_index();
  void* const stream = current_cuda_stream(device_index);
  cuda::Device device;
  check(cuda::select_device(device_index, &device));
  const cuda::BatchPlan plan = cuda::plan(b, device);  // once: another thread may change what is chosen
  const auto bytes = static_cast<int64_t>(cuda::workspace_bytes(b, device, plan));
  // Torch's allocator ties the workspace to the current stream, so it may be given back as soon as this returns.
  const Tensor workspace = torch::stable::new_empty(example, {bytes}, ScalarType::Byte);
  check(cuda::launch(b, device, workspace.mutable_data_ptr(), stream, plan));
}

std::tuple<Tensor, Tensor, Tensor> batch_entropy_cuda(const Tensor& states, const Tensor& values, const Tensor& index,
                                                      const Tensor& eligible, Tensor mean, Tensor variance,
                                                      Tensor batches, int64_t k, bool count_self, bool learn,
                                                      double horizon, double divisor, double offset) {
  const torch::stable::accelerator::DeviceGuard guard(states.get_device_index());
  return run_batch_entropy(
      {states, values, index, eligible, mean, variance, batches, k, count_self, learn, horizon, divisor, offset},
      [](const auto& batch, const Tensor& example) { launch_cuda(batch, example); });
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_IMPL(qcse, CUDA, m) { m.impl("batch_entropy", TORCH_BOX(&qcse::batch_entropy_cuda)); }

// The CUDA registration of gathering transitions: the tensors' device and torch's current stream on it.
#include <torch/csrc/stable/accelerator.h>

#include "base/op_cuda.h"
#include "buffer/cuda/gather.h"
#include "buffer/op.h"

namespace qcse {
namespace {

std::tuple<std::vector<Tensor>, Tensor> gather_transitions_cuda(const std::vector<Tensor>& dataset,
                                                                const std::vector<Tensor>& online,
                                                                const Tensor& index) {
  const char* op = "qcse::gather_transitions";
  const int32_t device_index = index.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device_index);
  return run_gather(dataset, online, index, [&](const Gather& g) {
    cuda::Device device;
    expect_launched(op, cuda::select_device(device_index, &device), shape_of(index));
    expect_launched(op, cuda::gather(g, current_cuda_stream(device_index)), shape_of(index));
  });
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_IMPL(qcse, CUDA, m) { m.impl("gather_transitions", TORCH_BOX(&qcse::gather_transitions_cuda)); }

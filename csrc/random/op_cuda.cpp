// The CUDA registration of the random operators: the tensors' device and torch's current stream on it.
#include <torch/csrc/stable/accelerator.h>

#include "base/op_cuda.h"
#include "random/cuda/random.h"
#include "random/op.h"

namespace qcse {
namespace {

Tensor random_cuda(const Tensor& keys, Tensor counters, const std::vector<int64_t>& laws,
                   const std::vector<int64_t>& counts) {
  const char* op = "qcse::random";
  const int32_t index = keys.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  return run_random(keys, counters, laws, counts, [&](const RandomNumbers& draw) {
    cuda::Device device;
    expect_launched(op, cuda::select_device(index, &device), shape_of(keys));
    expect_launched(op, cuda::random_numbers(draw, device, current_cuda_stream(index)), shape_of(keys));
  });
}

Tensor random_rows_cuda(const Tensor& keys, Tensor counters, int64_t count, int64_t dataset, int64_t held,
                        std::optional<Tensor> held_there, std::optional<int64_t> leading) {
  const char* op = "qcse::random_rows";
  const int32_t index = keys.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  return run_random_rows(keys, counters, count, dataset, held, held_there, leading, [&](const RandomRows& draw) {
    cuda::Device device;
    expect_launched(op, cuda::select_device(index, &device), shape_of(keys));
    expect_launched(op, cuda::random_rows(draw, current_cuda_stream(index)), shape_of(keys));
  });
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_IMPL(qcse, CUDA, m) {
  m.impl("random", TORCH_BOX(&qcse::random_cuda));
  m.impl("random_rows", TORCH_BOX(&qcse::random_rows_cuda));
}

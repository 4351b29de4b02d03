// Adam for many tensors in one launch, and the averages that follow the new parameters.
#include <algorithm>

#include "nets/cuda/block_sum.h"
#include "nets/cuda/policy_launch.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;  // numbers of a thread
constexpr int64_t kPerBlock = kThreads * kEach;

// All that the kernel needs to know, as its parameters: nothing is copied to the device beside the launch.
template <typename T>
struct AdamLaunch {
  AdamTensor<T> tensors[kAdamTensors];
  int first_block[kAdamTensors + 1];  // tensor i has the blocks from first_block[i] to first_block[i + 1]
  int count;
  AdamSettings settings;
  int32_t* tickets;  // of each tensor: how many of its blocks have read the counter
};
static_assert(sizeof(AdamLaunch<float>) <= 4096, "the parameters of a kernel");

template <typename T>
__device__ __forceinline__ int tensor_of_block(const AdamLaunch<T>& launch, int block) {
  int low = 0, high = launch.count;  // first_block[low] <= block < first_block[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (launch.first_block[middle] <= block ? low : high) = middle;
  }
  return low;
}

// The last block of a tensor to come here writes the counter, which all of them have read before.
__device__ __forceinline__ void count_step(float* steps, float value, int32_t* ticket, int blocks) {
  if (blocks > 1) {
    __threadfence();
    if (atomicAdd(ticket, 1) != blocks - 1) return;
    __threadfence();
    atomicExch(ticket, 0);
  }
  *steps = value;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) adam_kernel(const AdamLaunch<T> launch) {
  SharedLayout layout;
  T* const corrections = shared_array<T>(layout.add<T>(2), 2);
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int which = tensor_of_block(launch, block);
  const AdamTensor<T>& tensor = launch.tensors[which];
  const AdamSettings& settings = launch.settings;
  const int64_t first = static_cast<int64_t>(block - launch.first_block[which]) * kPerBlock + thread;

  // Loads first: they are on their way while two threads take powers.
  T parameter[kEach], gradient[kEach], mean[kEach], square[kEach], target[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t at = first + i * kThreads;
    if (at >= tensor.count) continue;
    parameter[i] = tensor.parameter[at], gradient[i] = tensor.gradient[at];
    mean[i] = tensor.first_moment[at], square[i] = tensor.second_moment[at];
    if (tensor.target != nullptr) target[i] = tensor.target[at];
  }
  const float steps = *tensor.steps + 1;
  if (thread == 0) corrections[0] = static_cast<T>(tensor.rate / (1 - pow(settings.beta1, static_cast<double>(steps))));
  if (thread == kWarp) {
    corrections[1] = static_cast<T>(sqrt_rn(1 - pow(settings.beta2, static_cast<double>(steps))));
  }
  __syncthreads();  // and every thread has read the counter
  if (thread == 0) {
    const int blocks = launch.first_block[which + 1] - launch.first_block[which];
    count_step(tensor.steps, steps, launch.tickets + which, blocks);
  }

  const T step_size = corrections[0], root_correction = corrections[1];
  const T beta1 = static_cast<T>(settings.beta1), beta2 = static_cast<T>(settings.beta2);
  const T epsilon = static_cast<T>(settings.epsilon), rate = static_cast<T>(settings.target_rate);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t at = first + i * kThreads;
    if (at >= tensor.count) continue;
    const T g = gradient[i], g2 = g * g;
    mean[i] = fma_rn(beta1, mean[i], fma_rn(-beta1, g, g));
    square[i] = fma_rn(beta2, square[i], fma_rn(-beta2, g2, g2));
    parameter[i] = parameter[i] - step_size * mean[i] / (sqrt_rn(square[i]) / root_correction + epsilon);
    tensor.parameter[at] = parameter[i], tensor.first_moment[at] = mean[i], tensor.second_moment[at] = square[i];
    if (tensor.target == nullptr) continue;
    const T way = parameter[i] - target[i];
    tensor.target[at] = rate < T(0.5) ? target[i] + rate * way : parameter[i] - way * (1 - rate);
  }
}

}  // namespace

template <typename T>
Status adam(const std::vector<AdamTensor<T>>& tensors, const AdamSettings& settings, int32_t* tickets, void* stream) {
  AdamLaunch<T> launch{};
  int64_t blocks = 0;
  for (const AdamTensor<T>& tensor : tensors) {
    if (launch.count == kAdamTensors || blocks > 0x7fffffff) return {"adam", kTooManyBlocks};
    launch.first_block[launch.count] = static_cast<int>(blocks);
    launch.tensors[launch.count++] = tensor;
    blocks += std::max<int64_t>(1, (tensor.count + kPerBlock - 1) / kPerBlock);  // one at least counts the step
  }
  if (blocks == 0) return {"adam", nullptr};
  if (blocks > 0x7fffffff) return {"adam", kTooManyBlocks};
  launch.first_block[launch.count] = static_cast<int>(blocks);
  launch.settings = settings, launch.tickets = tickets;
  SharedLayout layout;
  layout.add<T>(2);
  const CaptureRelaxed relaxed;
  return status_of("adam", launch_kernel(adam_kernel<T>, static_cast<unsigned>(blocks), kThreads, layout.bytes(),
                                         static_cast<cudaStream_t>(stream), launch));
}

template Status adam(const std::vector<AdamTensor<float>>&, const AdamSettings&, int32_t*, void*);
template Status adam(const std::vector<AdamTensor<double>>&, const AdamSettings&, int32_t*, void*);

}  // namespace qcse::cuda

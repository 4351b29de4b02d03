// The head of a Gaussian policy: mean and bounded log standard deviation of a network's outputs, and the gradient.
#include "nets/cuda/block_sum.h"
#include "nets/cuda/policy_launch.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSumThreads = 512;

// Where a number of mean and log_std, which is the `at`-th, comes from: the position of the mean in raw.
template <typename T>
__device__ __forceinline__ int64_t raw_position(const GaussianHead<T>& head, int64_t at) {
  return at + quotient(at, head.dim) * head.dim;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gaussian_head_kernel(GaussianHead<T> head, T* mean, T* log_std) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, each = head.states * head.dim;
  if (at >= head.seeds * each) return;
  const int64_t seed = quotient(at, each), from = raw_position(head, at);
  const T x = head.multiplier[seed] * head.raw[from + head.dim] + head.offset[seed];
  mean[at] = head.raw[from];
  log_std[at] = x < head.low ? head.low : x > head.high ? head.high : x;  // a NaN stays
}

// A block for each seed, so that the sums need no other.
template <typename T>
__global__ void __launch_bounds__(kSumThreads) gaussian_head_backward_kernel(GaussianHeadGradient<T> gradient) {
  SharedLayout layout;
  constexpr int kNumbers = kSumThreads / kWarp * 2;
  T* const shared = shared_array<T>(layout.add<T>(kNumbers), kNumbers);
  const GaussianHead<T>& head = gradient.forward;
  const int64_t seed = blockIdx.x, each = head.states * head.dim;
  const T multiplier = head.multiplier[seed], offset = head.offset[seed];
  T sums[2] = {0, 0};
  for (int64_t at = seed * each + threadIdx.x; at < (seed + 1) * each; at += kSumThreads) {
    const int64_t to = raw_position(head, at);
    const T raw = head.raw[to + head.dim], x = multiplier * raw + offset;
    const T passed = head.low <= x && x <= head.high ? gradient.log_std_grad[at] : T(0);
    gradient.raw_grad[to] = gradient.mean_grad[at];
    gradient.raw_grad[to + head.dim] = passed * multiplier;
    sums[0] += passed * raw;
    sums[1] += passed;
  }
  block_sums<kSumThreads>(sums, shared);
  if (threadIdx.x == 0) gradient.multiplier_grad[seed] = sums[0], gradient.offset_grad[seed] = sums[1];
}

}  // namespace

template <typename T>
Status gaussian_head(const GaussianHead<T>& head, T* mean, T* log_std, void* stream) {
  const unsigned blocks = blocks_for(head.seeds * head.states * head.dim, kThreads);
  if (blocks == 0) return {"gaussian_head", kTooManyBlocks};
  const CaptureRelaxed relaxed;
  return status_of("gaussian_head", launch_kernel(gaussian_head_kernel<T>, blocks, kThreads, 0,
                                                  static_cast<cudaStream_t>(stream), head, mean, log_std));
}

template <typename T>
Status gaussian_head_backward(const GaussianHeadGradient<T>& gradient, void* stream) {
  const unsigned blocks = blocks_for(gradient.forward.seeds, 1);
  if (blocks == 0) return {"gaussian_head_backward", kTooManyBlocks};
  SharedLayout layout;
  layout.add<T>(kSumThreads / kWarp * 2);
  const CaptureRelaxed relaxed;
  return status_of("gaussian_head_backward",
                   launch_kernel(gaussian_head_backward_kernel<T>, blocks, kSumThreads, layout.bytes(),
                                 static_cast<cudaStream_t>(stream), gradient));
}

template Status gaussian_head(const GaussianHead<float>&, float*, float*, void*);
template Status gaussian_head(const GaussianHead<double>&, double*, double*, void*);
template Status gaussian_head_backward(const GaussianHeadGradient<float>&, void*);
template Status gaussian_head_backward(const GaussianHeadGradient<double>&, void*);

}  // namespace qcse::cuda

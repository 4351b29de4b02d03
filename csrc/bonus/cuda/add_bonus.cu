#include "bonus/cuda/add_bonus.h"

#include "base/cuda/device.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr double kSaturated = 0.95;

// The sum over the block, in every thread, in an order that is always the same. slots: [kWarps] of shared memory, which
// nobody else uses before the next barrier but one.
__device__ __forceinline__ double sum_of_block(double x, double* slots) {
#pragma unroll
  for (int stride = kWarp / 2; stride > 0; stride /= 2) x += __shfl_xor_sync(kFullWarp, x, stride);
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += slots[w];
  return sum;
}

template <typename T>
__device__ __forceinline__ T squashed(T x, bool squash) {
  return squash ? static_cast<T>(tanh(x)) : x;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) add_bonus_kernel(const AddBonus<T> batch) {
  constexpr int kSums = 6;
  SharedLayout layout;
  const size_t at = layout.add<double>(kSums * kWarps);
  double* const slots = shared_array<double>(at, kSums * kWarps);
  const int64_t seed = blockIdx.x;
  const T* const novelty = batch.novelty + seed * batch.rows;
  const bool* const covered = batch.covered + seed * batch.rows;
  const bool* const eligible = batch.eligible + seed * batch.rows;
  T* const rewards = batch.rewards + seed * batch.reward_stride;
  const T weight = *batch.weight;

  double candidates = 0, rows = 0, novelties = 0, saturated = 0, bonuses = 0;
  for (int64_t i = threadIdx.x; i < batch.rows; i += kThreads) {
    const bool counts = covered[i] && is_finite(novelty[i]);
    const T bonus = counts ? squashed(novelty[i], batch.squash) : T(0);
    rewards[i] += weight * bonus;
    candidates += eligible[i];
    bonuses += eligible[i] ? static_cast<double>(bonus) : 0.0;
    rows += counts;
    novelties += counts ? static_cast<double>(novelty[i]) : 0.0;
    saturated += magnitude(static_cast<double>(bonus)) > kSaturated;
  }
  candidates = larger(sum_of_block(candidates, slots), 1.0);
  rows = larger(sum_of_block(rows, slots + kWarps), 1.0);
  novelties = sum_of_block(novelties, slots + 2 * kWarps);
  saturated = sum_of_block(saturated, slots + 3 * kWarps);
  const double mean = sum_of_block(bonuses, slots + 4 * kWarps) / candidates;
  double squares = 0;
  for (int64_t i = threadIdx.x; i < batch.rows; i += kThreads) {
    if (!eligible[i]) continue;
    const bool counts = covered[i] && is_finite(novelty[i]);
    const double away = (counts ? static_cast<double>(squashed(novelty[i], batch.squash)) : 0.0) - mean;
    squares += away * away;
  }
  squares = sum_of_block(squares, slots + 5 * kWarps);
  if (threadIdx.x == 0) {
    T* const statistics = batch.statistics + seed;
    statistics[0] = static_cast<T>(mean);
    statistics[batch.seeds] = static_cast<T>(sqrt_rn(squares / candidates));
    statistics[2 * batch.seeds] = static_cast<T>(novelties / rows);
    statistics[3 * batch.seeds] = static_cast<T>(saturated / rows);
    statistics[4 * batch.seeds] = weight;
  }
}

}  // namespace

template <typename T>
Status add_bonus(const AddBonus<T>& batch, void* stream) {
  const CaptureRelaxed relaxed;
  if (batch.seeds > INT32_MAX) return {"add_bonus_kernel", kTooManyBlocks};
  SharedLayout layout;
  layout.add<double>(6 * kWarps);
  return status_of("add_bonus_kernel",
                   launch_kernel(add_bonus_kernel<T>, dim3(static_cast<unsigned>(batch.seeds)), dim3(kThreads),
                                 layout.bytes(), static_cast<cudaStream_t>(stream), batch));
}

template Status add_bonus(const AddBonus<float>&, void*);
template Status add_bonus(const AddBonus<double>&, void*);

}  // namespace qcse::cuda

#include "bonus/cuda/add_bonus.h"

#include "base/cuda/sums.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSums = 6;
constexpr double kSaturated = 0.95;

// The sums over the block, in every thread, the warps' added in order. slots: [kSums, kWarps] of shared memory, which
// nobody else uses.
template <int kSums>
__device__ __forceinline__ void sums_of_block(double (&sums)[kSums], double* slots) {
  warp_sums(sums);
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    if (threadIdx.x % kWarp == 0) slots[i * kWarps + threadIdx.x / kWarp] = sums[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    sums[i] = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sums[i] += slots[i * kWarps + w];
  }
}

template <typename T>
__device__ __forceinline__ T squashed(T x, bool squash) {
  return squash ? static_cast<T>(tanh(x)) : x;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) add_bonus_kernel(const AddBonus<T> batch) {
  SharedLayout layout;
  double* const slots = shared_array<double>(layout.add<double>(kSums * kWarps), kSums * kWarps);
  const int64_t seed = blockIdx.x;
  const T* const novelty = batch.novelty + seed * batch.rows;
  const bool* const covered = batch.covered + seed * batch.rows;
  const bool* const eligible = batch.eligible + seed * batch.rows;
  T* const rewards = batch.rewards + seed * batch.reward_stride;
  const T weight = *batch.weight;

  double sums[kSums - 1] = {};
  auto& [candidates, rows, novelties, saturated, bonuses] = sums;
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
  sums_of_block(sums, slots);
  candidates = larger(candidates, 1.0);
  rows = larger(rows, 1.0);
  const double mean = bonuses / candidates;
  double squares[1] = {};
  for (int64_t i = threadIdx.x; i < batch.rows; i += kThreads) {
    if (!eligible[i]) continue;
    const bool counts = covered[i] && is_finite(novelty[i]);
    const double away = (counts ? static_cast<double>(squashed(novelty[i], batch.squash)) : 0.0) - mean;
    squares[0] += away * away;
  }
  sums_of_block(squares, slots + (kSums - 1) * kWarps);
  // A division takes its time, so three warps have one each.
  T* const statistics = batch.statistics + seed;
  if (threadIdx.x == 0) {
    statistics[0] = static_cast<T>(mean);
    statistics[batch.seeds] = static_cast<T>(sqrt_rn(squares[0] / candidates));
    statistics[4 * batch.seeds] = weight;
  }
  if (threadIdx.x == kWarp) statistics[2 * batch.seeds] = static_cast<T>(novelties / rows);
  if (threadIdx.x == 2 * kWarp) statistics[3 * batch.seeds] = static_cast<T>(saturated / rows);
}

}  // namespace

template <typename T>
Status add_bonus(const AddBonus<T>& batch, void* stream) {
  const CaptureRelaxed relaxed;
  if (batch.seeds > INT32_MAX) return {"add_bonus_kernel", kTooManyBlocks};
  SharedLayout layout;
  layout.add<double>(kSums * kWarps);
  return status_of("add_bonus_kernel",
                   launch_kernel(add_bonus_kernel<T>, dim3(static_cast<unsigned>(batch.seeds)), dim3(kThreads),
                                 layout.bytes(), static_cast<cudaStream_t>(stream), batch));
}

template Status add_bonus(const AddBonus<float>&, void*);
template Status add_bonus(const AddBonus<double>&, void*);

}  // namespace qcse::cuda

// Functions of one number for float and double, sums over a block whose order does not depend on the schedule, and the
// size of a grid.
#pragma once
#include "base/cuda/device.h"

namespace qcse::cuda {

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float exponential_less_one(float x) { return expm1f(x); }
__device__ __forceinline__ double exponential_less_one(double x) { return expm1(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
template <typename T>
__device__ __forceinline__ bool is_nan(T x) {
  return x != x;
}

// a / b for counts: a division of 64 bits costs several of 32.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// Each thread's kSums numbers become their sums over the block in thread 0; the others' are of no use afterwards. All
// kThreads threads call it; `shared` holds kThreads / kWarp * kSums numbers.
template <int kThreads, int kSums, typename T>
__device__ __forceinline__ void block_sums(T (&sums)[kSums], T* shared) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(kThreads % kWarp == 0 && kWarps <= kWarp && (kWarps & (kWarps - 1)) == 0);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sums[i] += __shfl_xor_sync(kFullWarp, sums[i], lanes);
    if (lane == 0) shared[i * kWarps + warp] = sums[i];
  }
  __syncthreads();
  if (warp != 0) return;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    sums[i] = lane < kWarps ? shared[i * kWarps + lane] : T(0);
    for (int lanes = kWarps / 2; lanes > 0; lanes /= 2) sums[i] += __shfl_xor_sync(kFullWarp, sums[i], lanes);
  }
}

// The grid for `rows` rows of which a block takes `per_block`; none has too many blocks where this is not 0.
inline unsigned blocks_for(int64_t rows, int64_t per_block) {
  const int64_t blocks = (rows + per_block - 1) / per_block;
  return blocks > 0x7fffffff ? 0 : static_cast<unsigned>(blocks);
}

}  // namespace qcse::cuda

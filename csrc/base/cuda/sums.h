// Sums over a warp and over a block, in an order that does not depend on the schedule.
#pragma once
#include "base/cuda/device.h"

namespace qcse::cuda {

// Each lane's kSums numbers become their sums over the warp, in every lane. The sums are taken side by side: what one
// waits for, the others use.
template <int kSums, typename T>
__device__ __forceinline__ void warp_sums(T (&sums)[kSums]) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] += __shfl_xor_sync(kFullWarp, sums[i], lanes);
  }
}

// Each thread's kSums numbers become their sums over the block in thread 0; the others' are of no use afterwards. All
// kThreads threads call it; `shared` holds kThreads / kWarp * kSums numbers.
template <int kThreads, int kSums, typename T>
__device__ __forceinline__ void block_sums(T (&sums)[kSums], T* shared) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(kThreads % kWarp == 0 && kWarps <= kWarp && (kWarps & (kWarps - 1)) == 0);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  warp_sums(sums);
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    if (lane == 0) shared[i * kWarps + warp] = sums[i];
  }
  __syncthreads();
  if (warp != 0) return;
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = lane < kWarps ? shared[i * kWarps + lane] : T(0);
#pragma unroll
  for (int lanes = kWarps / 2; lanes > 0; lanes /= 2) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] += __shfl_xor_sync(kFullWarp, sums[i], lanes);
  }
}

}  // namespace qcse::cuda

// Sums over the rows of a network. A block has a slab of columns and all of their rows: a sum needs no second launch,
// no atomic and no memory of its own, and its order is the shape's. Wide slabs let memory work in longer pieces, narrow
// ones make enough blocks of few networks to keep it busy; 32 bytes are the least that a load fetches.
#pragma once
#include "base/cuda/device.h"
#include "nets/cuda/packs.h"

namespace qcse::cuda {

template <typename T, int V, int kBytes>
struct Slab {
  static constexpr int kColumns = kBytes / static_cast<int>(sizeof(T));
  static constexpr int kLanes = kColumns / V;  // threads side by side in a row
  static_assert(kLanes <= kWarp);
};

// Sums over the lanes of a warp that have the same columns; every lane gets them.
template <typename S, typename T, int V>
__device__ __forceinline__ void add_lanes(T (&sum)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
#pragma unroll
    for (int lanes = kWarp / 2; lanes >= S::kLanes; lanes /= 2) sum[v] += __shfl_xor_sync(kFullWarp, sum[v], lanes);
  }
}

// The same over a block: `partial` is [warps][kColumns] of shared memory, to be read by `total` behind a barrier.
template <typename S, typename T, int V>
__device__ __forceinline__ void gather(T (&sum)[V], T* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  add_lanes<S>(sum);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (lane < S::kLanes) partial[warp * S::kColumns + lane * V + v] = sum[v];
  }
}
template <int kWarps, typename T>
__device__ __forceinline__ T total(const T* partial, int stride, int at) {
  T sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += partial[w * stride + at];
  return sum;
}

template <typename S>
int64_t slabs_of(int64_t width) {
  return (width + S::kColumns - 1) / S::kColumns;
}

// Calls `launch` with the widest slab that leaves two blocks for each multiprocessor of a large GPU. Single elements
// are for widths and addresses that are rare.
template <typename T, int V, typename Launch>
Status with_slab(int64_t nets, int64_t width, const Launch& launch) {
  constexpr int64_t kBlocks = 256;
  if constexpr (V > 1) {
    using Wide = Slab<T, V, 128>;
    using Middle = Slab<T, V, 64>;
    if (nets * slabs_of<Wide>(width) >= kBlocks) return launch(Wide());
    if (nets * slabs_of<Middle>(width) >= kBlocks) return launch(Middle());
  }
  return launch(Slab<T, V, 32>());
}

}  // namespace qcse::cuda

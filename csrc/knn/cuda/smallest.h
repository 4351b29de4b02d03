// The k smallest keys seen so far, kept sorted across the lanes of a warp. Only values are kept, never indices: the
// k-th smallest value does not depend on which of several equal keys is dropped.
#pragma once
#include "base/cuda/device.h"

namespace qcse::cuda {

// Sorts a bitonic sequence of 32, one element a lane, into ascending order.
template <typename T>
__device__ __forceinline__ T sort_bitonic(T x, int lane) {
#pragma unroll
  for (int stride = kWarp / 2; stride > 0; stride /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, x, stride);
    x = (lane & stride) == 0 ? smaller(x, other) : larger(x, other);
  }
  return x;
}

// Sorts any 32 elements, one a lane, into ascending order.
template <typename T>
__device__ __forceinline__ T sort_warp(T x, int lane) {
#pragma unroll
  for (int size = 2; size <= kWarp; size *= 2) {
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2) {
      const T other = __shfl_xor_sync(kFullWarp, x, stride);
      const bool keep_smaller = ((lane & stride) == 0) == ((lane & size) == 0);
      x = keep_smaller ? smaller(x, other) : larger(x, other);
    }
  }
  return x;
}

template <typename T>
__device__ __forceinline__ void order(T& low, T& high) {
  const T least = smaller(low, high);
  high = larger(low, high);
  low = least;
}

// Element 32 r + l of the ascending list is `at[r]` of lane l; places that are not taken hold +inf.
template <typename T, int kRegisters>
struct SmallestList {
  static_assert(kRegisters == 1 || kRegisters == 4);
  T at[kRegisters];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) at[r] = infinity<T>();
  }

  // The element of this rank (0 is the smallest), the same in every lane.
  __device__ __forceinline__ T rank(int rank) const {
    T x = __shfl_sync(kFullWarp, at[0], rank % kWarp);
#pragma unroll
    for (int r = 1; r < kRegisters; ++r) {
      // Shuffled before it is chosen: a choice between registers would put the list into local memory.
      const T y = __shfl_sync(kFullWarp, at[r], rank % kWarp);
      x = rank / kWarp == r ? y : x;
    }
    return x;
  }

  // One key, the same in every lane: each element becomes the median of itself, its predecessor and the key.
  __device__ __forceinline__ void insert(T key, int lane) {
    T carry = key;  // what the first place of the register would take over
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      const T rotated = __shfl_sync(kFullWarp, at[r], (lane + kWarp - 1) % kWarp);
      const T previous = lane == 0 ? carry : rotated;
      at[r] = smaller(at[r], larger(previous, key));
      carry = rotated;  // in lane 0: the last element of this register as it was
    }
  }

  // 32 keys in ascending order, one a lane.
  __device__ __forceinline__ void merge_sorted(T keys, int lane) {
    // The smallest 32 of the last register and the new keys; nothing else can still be in the list.
    T low = smaller(at[kRegisters - 1], __shfl_xor_sync(kFullWarp, keys, kWarp - 1));
    low = sort_bitonic(low, lane);
#pragma unroll
    for (int r = kRegisters - 2; r >= 0; --r) {
      const T reversed = __shfl_xor_sync(kFullWarp, low, kWarp - 1);
      at[r + 1] = sort_bitonic(larger(at[r], reversed), lane);
      low = sort_bitonic(smaller(at[r], reversed), lane);
    }
    at[0] = low;
  }

  // Another list of the same size.
  __device__ __forceinline__ void merge(const SmallestList& other, int lane) {
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      at[r] = smaller(at[r], __shfl_xor_sync(kFullWarp, other.at[kRegisters - 1 - r], kWarp - 1));
    }
    // What is left is bitonic over all registers. (Written out: a loop over the stride would index at run time.)
    if constexpr (kRegisters == 4) {
      order(at[0], at[2]);
      order(at[1], at[3]);
      order(at[0], at[1]);
      order(at[2], at[3]);
    }
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) at[r] = sort_bitonic(at[r], lane);
  }
};

}  // namespace qcse::cuda

// Vectors of 16 bytes along a layer's width, and what the kernels between the products do with them.
#pragma once
#include <initializer_list>

#include "base/cuda/device.h"

namespace qcse::cuda {

template <typename T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// torch's max(v, 0): a NaN stays.
template <typename T>
__device__ __forceinline__ T relu(T v) {
  return v <= T(0) ? T(0) : v;
}

// Whether rows of this width, from these addresses on (null: none), are whole packs.
template <typename T>
bool in_packs(int64_t width, std::initializer_list<const T*> pointers) {
  if (width % kPack<T> != 0) return false;
  for (const T* p : pointers) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) return false;
  }
  return true;
}

}  // namespace qcse::cuda

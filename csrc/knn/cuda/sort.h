// Sorting of (key, row) pairs by key: CUB on a GPU, a stable sort in the emulator.
#pragma once
#include "base/cuda/device.h"

namespace qcse::cuda {

// Values of several batch entries are sorted at once: the entry's number in the high bits, and below it the value's
// bits, changed so that they ascend with the value. CUB sorts no more bits than hold something.
template <typename T>
struct Joint;
template <>
struct Joint<float> {
  using Bits = uint32_t;
  using Key = uint64_t;
};
template <>
struct Joint<double> {
  using Bits = uint64_t;
  using Key = unsigned __int128;
};

template <typename T>
inline constexpr int kValueBits = 8 * static_cast<int>(sizeof(T));

template <typename T>
__device__ __forceinline__ typename Joint<T>::Key join(int64_t entry, T value) {
  using Bits = typename Joint<T>::Bits;
  using Key = typename Joint<T>::Key;
  const Bits bits = __builtin_bit_cast(Bits, value);
  const Bits sign = Bits{1} << (kValueBits<T> - 1);
  return static_cast<Key>(entry) << kValueBits<T> | ((bits & sign) != 0 ? ~bits : bits | sign);
}

// The value of a joint key.
template <typename T>
__device__ __forceinline__ T value_of(typename Joint<T>::Key key) {
  using Bits = typename Joint<T>::Bits;
  const auto bits = static_cast<Bits>(key);
  const Bits sign = Bits{1} << (kValueBits<T> - 1);
  return __builtin_bit_cast(T, (bits & sign) != 0 ? bits & ~sign : ~bits);
}

// Device memory that sort_pairs needs beside its arrays; at least 1. Key: float, double, or a joint key of one of them.
template <typename Key>
size_t sort_bytes(int64_t elements, int bits);

// keys_out, rows_out: keys_in and rows_in in ascending order of the keys, none of which is NaN. bits: of the keys, from
// the lowest, that may differ.
template <typename Key>
cudaError_t sort_pairs(void* temporary, size_t temporary_bytes, const Key* keys_in, Key* keys_out, const int* rows_in,
                       int* rows_out, int64_t elements, int bits, cudaStream_t stream);

}  // namespace qcse::cuda

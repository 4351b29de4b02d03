#include "sort.h"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#else
#include <algorithm>
#include <type_traits>
#include <vector>
#endif

namespace qcse::cuda {

#if defined(__CUDACC__)

template <typename Key>
size_t sort_bytes(int64_t elements, int bits) {
  size_t bytes = 0;
  cub::DeviceRadixSort::SortPairs<Key, int>(nullptr, bytes, nullptr, nullptr, nullptr, nullptr, elements, 0, bits);
  return bytes > 0 ? bytes : 1;
}

template <typename Key>
cudaError_t sort_pairs(void* temporary, size_t temporary_bytes, const Key* keys_in, Key* keys_out, const int* rows_in,
                       int* rows_out, int64_t elements, int bits, cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairs(temporary, temporary_bytes, keys_in, keys_out, rows_in, rows_out, elements, 0,
                                         bits, stream);
}

#else

template <typename Key>
size_t sort_bytes(int64_t, int) {
  return 1;
}

template <typename Key>
cudaError_t sort_pairs(void*, size_t, const Key* keys_in, Key* keys_out, const int* rows_in, int* rows_out,
                       int64_t elements, int bits, cudaStream_t) {
  emulator::library_call();
  if (const cudaError_t last = cudaGetLastError(); last != cudaSuccess) return last;  // like CUB, whoever made it
  // Like CUB, it looks at no other bits of whole numbers.
  const auto seen = [=](Key key) {
    if constexpr (std::is_floating_point_v<Key>) {
      return key;
    } else {
      return key & ((Key{1} << bits) - 1);
    }
  };
  std::vector<int> order(static_cast<size_t>(elements));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(), [=](int a, int b) { return seen(keys_in[a]) < seen(keys_in[b]); });
  std::vector<Key> keys;
  std::vector<int> rows;
  for (const int i : order) {
    keys.push_back(keys_in[i]);
    rows.push_back(rows_in[i]);
  }
  emulator::write(keys_out, keys.data(), keys.size() * sizeof(Key));
  emulator::write(rows_out, rows.data(), rows.size() * sizeof(int));
  return cudaSuccess;
}

#endif

#define QCSE_SORT(Key)                           \
  template size_t sort_bytes<Key>(int64_t, int); \
  template cudaError_t sort_pairs(void*, size_t, const Key*, Key*, const int*, int*, int64_t, int, cudaStream_t);
QCSE_SORT(float)
QCSE_SORT(double)
QCSE_SORT(Joint<float>::Key)
QCSE_SORT(Joint<double>::Key)
#undef QCSE_SORT

}  // namespace qcse::cuda

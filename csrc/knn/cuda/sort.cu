#include "sort.h"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#else
#include <algorithm>
#include <vector>
#endif

namespace qcse::cuda {

#if defined(__CUDACC__)

template <typename T>
size_t sort_bytes(int64_t elements) {
  size_t bytes = 0;
  cub::DeviceRadixSort::SortPairs<T, int>(nullptr, bytes, nullptr, nullptr, nullptr, nullptr, elements);
  return bytes > 0 ? bytes : 1;
}

template <typename T>
cudaError_t sort_pairs(void* temporary, size_t temporary_bytes, const T* keys_in, T* keys_out, const int* rows_in,
                       int* rows_out, int64_t elements, cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairs(temporary, temporary_bytes, keys_in, keys_out, rows_in, rows_out, elements, 0,
                                         static_cast<int>(8 * sizeof(T)), stream);
}

#else

template <typename T>
size_t sort_bytes(int64_t) {
  return 1;
}

template <typename T>
cudaError_t sort_pairs(void*, size_t, const T* keys_in, T* keys_out, const int* rows_in, int* rows_out,
                       int64_t elements, cudaStream_t) {
  std::vector<int> order(static_cast<size_t>(elements));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(), [=](int a, int b) { return keys_in[a] < keys_in[b]; });
  std::vector<T> keys;
  std::vector<int> rows;
  for (const int i : order) {
    keys.push_back(keys_in[i]);
    rows.push_back(rows_in[i]);
  }
  emulator::write(keys_out, keys.data(), keys.size() * sizeof(T));
  emulator::write(rows_out, rows.data(), rows.size() * sizeof(int));
  return cudaSuccess;
}

#endif

template size_t sort_bytes<float>(int64_t);
template size_t sort_bytes<double>(int64_t);
template cudaError_t sort_pairs(void*, size_t, const float*, float*, const int*, int*, int64_t, cudaStream_t);
template cudaError_t sort_pairs(void*, size_t, const double*, double*, const int*, int*, int64_t, cudaStream_t);

}  // namespace qcse::cuda

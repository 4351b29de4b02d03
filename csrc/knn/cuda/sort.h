// Sorting of (value, row) pairs by value: CUB on a GPU, a stable sort in the emulator.
#pragma once
#include "base/cuda/device.h"

namespace qcse::cuda {

// Device memory that sort_pairs needs beside its arrays; at least 1.
template <typename T>
size_t sort_bytes(int64_t elements);

// keys_out, rows_out: keys_in and rows_in in ascending order of the keys, none of which is NaN.
template <typename T>
cudaError_t sort_pairs(void* temporary, size_t temporary_bytes, const T* keys_in, T* keys_out, const int* rows_in,
                       int* rows_out, int64_t elements, cudaStream_t stream);

}  // namespace qcse::cuda

// The contract of gathering transitions on any device: plain pointers and sizes, no torch.
//
// A row number below N is one of the dataset, which all seeds share; number N + slot is a slot of the seed's own ring
// of online transitions. Every column is gathered alike: out[s, b, :] = dataset[i, :] or online[s, i - N, :], i =
// index[s, b].
#pragma once
#include <cstdint>

namespace qcse {

struct Column {
  const float* dataset = nullptr;  // [N, width]
  const float* online = nullptr;   // [S, capacity, width]
  float* out = nullptr;            // [S, B, width]
  int64_t width = 0;
};
inline constexpr int kMaxColumns = 16;

struct Gather {
  int64_t seeds = 0, rows = 0, dataset_size = 0, capacity = 0;  // S, B, N
  int64_t columns = 0;
  Column column[kMaxColumns];
  const int64_t* index = nullptr;  // [S, B]
  bool* is_online = nullptr;       // [S, B]
};

}  // namespace qcse

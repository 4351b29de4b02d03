// Which tiles are looked at next.
#pragma once
#include <cstdint>
#include <limits>

#include "base/memory.h"

namespace qcse::cpu {

// Tiles whose boxes are within a squared distance, roughly nearest first: a counting sort by distance.
template <typename T>
class NearTiles {
 public:
  // Leaves out tiles [skip_begin, skip_end).
  NearTiles(const T* distance, int64_t tiles, T limit, int64_t skip_begin, int64_t skip_end)
      : distance_(distance), list_(tiles) {
    constexpr int64_t kBuckets = 64;
    const bool usable = limit > 0 && limit < std::numeric_limits<T>::max();
    const auto bucket = [&](int64_t tile) {
      return usable ? static_cast<int64_t>((kBuckets - 1) * (distance[tile] / limit)) : int64_t{0};
    };
    const auto wanted = [&](int64_t tile) {
      return (tile < skip_begin || tile >= skip_end) && !(distance[tile] > limit);
    };
    int64_t start[kBuckets + 1] = {};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      if (wanted(tile)) ++start[bucket(tile) + 1];
    }
    for (int64_t b = 0; b < kBuckets; ++b) start[b + 1] += start[b];
    count_ = start[kBuckets];
    for (int64_t tile = 0; tile < tiles; ++tile) {
      if (wanted(tile)) list_[start[bucket(tile)]++] = static_cast<int32_t>(tile);
    }
  }

  // The next tiles, at most `most`, that are still within `limit`; 0 at the end.
  int64_t take(int64_t most, T limit, int32_t* chosen) {
    int64_t taken = 0;
    for (; next_ < count_ && taken < most; ++next_) {
      if (!(distance_[list_[next_]] > limit)) chosen[taken++] = list_[next_];
    }
    return taken;
  }

 private:
  const T* distance_;
  Buffer<int32_t> list_;
  int64_t count_ = 0, next_ = 0;
};

}  // namespace qcse::cpu

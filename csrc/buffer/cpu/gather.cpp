#include "buffer/cpu/gather.h"

#include <atomic>
#include <cstring>

namespace qcse::cpu {

bool gather(const Gather& g, const Threads& threads) {
  constexpr int64_t kGrain = 64;  // rows that are worth a thread
  std::atomic<bool> in_range = true;
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t row = g.index[at], slot = row - g.dataset_size;
      if (row < 0 || slot >= g.capacity) {
        in_range.store(false, std::memory_order_relaxed);
        return;
      }
      g.is_online[at] = slot >= 0;
      const int64_t own = at / g.rows * g.capacity + slot;
      for (int64_t c = 0; c < g.columns; ++c) {
        const Column& column = g.column[c];
        const float* const from = slot >= 0 ? column.online + own * column.width : column.dataset + row * column.width;
        float* const to = column.out + at * column.width;
        if (column.width == 1) {
          *to = *from;
        } else {
          std::memcpy(to, from, static_cast<size_t>(column.width) * sizeof(float));
        }
      }
    }
  };
  for_ranges(threads, g.seeds * g.rows, run, kGrain);
  return in_range.load();
}

}  // namespace qcse::cpu

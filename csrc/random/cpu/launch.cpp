#include "random/cpu/launch.h"

#include <algorithm>

#include "base/integers.h"

namespace qcse::cpu {
namespace {

constexpr int64_t kChunk = 256;  // blocks that one call of a loop below makes

// Blocks `block` to block + count - 1 of this key, four numbers each.
template <Law kLaw>
[[gnu::always_inline]] inline void fill(uint64_t key, uint64_t block, int64_t count, float* numbers) {
  for (int64_t i = 0; i < count; ++i) {
    const Numbers n = numbers_of<kLaw>(philox(key, block + static_cast<uint64_t>(i)));
    for (int j = 0; j < kNumbersPerBlock; ++j) numbers[kNumbersPerBlock * i + j] = n.at[j];
  }
}

using Fill = void (*)(uint64_t key, uint64_t block, int64_t count, float* numbers);

template <Law kLaw>
void fill_anywhere(uint64_t key, uint64_t block, int64_t count, float* numbers) {
  fill<kLaw>(key, block, count, numbers);
}

#ifdef QCSE_X86_KERNELS
// The same source and so the same bits: it has no fused operation.
template <Law kLaw>
[[gnu::target("avx2")]] void fill_avx2(uint64_t key, uint64_t block, int64_t count, float* numbers) {
  fill<kLaw>(key, block, count, numbers);
}
#endif

template <Law kLaw>
Fill fill_here() {
#ifdef QCSE_X86_KERNELS
  if (__builtin_cpu_supports("avx2")) return fill_avx2<kLaw>;
#endif
  return fill_anywhere<kLaw>;
}

void move_counters(const Stream& stream, int64_t blocks) {
  for (int64_t s = 0; s < stream.seeds; ++s) stream.counters[s] += blocks;
}

}  // namespace

void random_numbers(const RandomNumbers& draw, const Threads& threads) {
  const Fill fills[kLaws] = {fill_here<Law::kNormal>(), fill_here<Law::kUnit>(), fill_here<Law::kSymmetric>()};
  for (int64_t i = 0; i < draw.segments; ++i) {
    const Segment& segment = draw.segment[i];
    const Fill fill_chunk = fills[static_cast<int>(segment.law)];
    const int64_t chunks = ceil_div(segment.count, kNumbersPerBlock * kChunk);
    for_each(threads, draw.stream.seeds * chunks, [&](int64_t item) {
      const int64_t seed = item / chunks, first = item % chunks * kChunk;
      const auto key = static_cast<uint64_t>(draw.stream.keys[seed]);
      const auto block = static_cast<uint64_t>(draw.stream.counters[seed] + segment.first_block + first);
      float* const to = draw.numbers + segment.at + seed * segment.count + kNumbersPerBlock * first;
      const int64_t count = std::min(kNumbersPerBlock * kChunk, segment.count - kNumbersPerBlock * first);
      const int64_t whole = count / kNumbersPerBlock;
      fill_chunk(key, block, whole, to);
      if (count > kNumbersPerBlock * whole) {
        float last[kNumbersPerBlock];
        fill_chunk(key, block + static_cast<uint64_t>(whole), 1, last);
        std::copy_n(last, count - kNumbersPerBlock * whole, to + kNumbersPerBlock * whole);
      }
    });
  }
  move_counters(draw.stream, draw.blocks);
}

void random_rows(const RandomRows& draw, const Threads& threads) {
  const int64_t held = draw.held_there != nullptr ? static_cast<int64_t>(*draw.held_there) : draw.held;
  for_each(threads, draw.stream.seeds, [&](int64_t seed) {
    const auto key = static_cast<uint64_t>(draw.stream.keys[seed]);
    const auto counter = static_cast<uint64_t>(draw.stream.counters[seed]);
    for (int64_t place = 0; place < draw.count; ++place) {
      const Words w = philox(key, counter + static_cast<uint64_t>(place / kRowsPerBlock));
      const int64_t j = 2 * (place % kRowsPerBlock);
      draw.rows[seed * draw.count + place] = row_of(draw, held, place, w.at[j], w.at[j + 1]);
    }
  });
  move_counters(draw.stream, ceil_div(draw.count, kRowsPerBlock));
}

}  // namespace qcse::cpu

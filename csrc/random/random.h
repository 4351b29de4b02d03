// The contract of the random operators on any device: plain pointers and sizes, no torch.
//
// Seed s has a key and a counter, the number of blocks of 128 bits (philox.h) that it has used up. A call takes the
// blocks from counter on and moves the counter past them; what it draws for s depends on these two numbers alone, not
// on the other seeds and not on how the work is divided.
#pragma once
#include <cstdint>

#include "random/philox.h"

namespace qcse {

// The upper bits of a counter are the CUDA kernel's, while it runs.
inline constexpr int kCounterBits = 48;
inline constexpr int64_t kRowLimit = (int64_t{1} << 31) - 1;

struct Stream {
  int64_t seeds = 0;              // S
  const int64_t* keys = nullptr;  // [S]
  int64_t* counters = nullptr;    // [S], below 2^48
};

enum class Law { kNormal, kUnit, kSymmetric };  // standard normal; uniform in [0, 1); uniform in [-1, 1)
inline constexpr int kLaws = 3;

// `count` numbers of one law for each seed, from whole blocks of their own: a block makes four.
struct Segment {
  Law law;
  int64_t count;
  int64_t first_block;  // of the call's blocks
  int64_t at;           // of the first seed's first number in the output, a multiple of 4; [S, count] lies there
};
inline constexpr int kMaxSegments = 16;
inline constexpr int kNumbersPerBlock = 4;

struct RandomNumbers {
  Stream stream;
  int64_t segments = 0, blocks = 0;  // blocks: of one seed
  Segment segment[kMaxSegments] = {};
  float* numbers = nullptr;
};

// The numbers of a block.
struct Numbers {
  float at[kNumbersPerBlock];
};

template <Law kLaw>
QCSE_HOST_DEVICE Numbers numbers_of(const Words& w) {
  if constexpr (kLaw == Law::kNormal) {
    const Pair a = normal(w.at[0], w.at[1]), b = normal(w.at[2], w.at[3]);
    return {{a.x, a.y, b.x, b.y}};
  } else if constexpr (kLaw == Law::kUnit) {
    return {{unit(w.at[0]), unit(w.at[1]), unit(w.at[2]), unit(w.at[3])}};
  } else {
    return {{symmetric(w.at[0]), symmetric(w.at[1]), symmetric(w.at[2]), symmetric(w.at[3])}};
  }
}

// Row numbers of transitions for each seed: the first `leading` uniform among the dataset's rows 0 .. dataset - 1, the
// others among the `held` rows that follow them or, `together`, among both. A block makes two.
struct RandomRows {
  Stream stream;
  int64_t count = 0, leading = 0, dataset = 0;
  int64_t held = 0;
  const double* held_there = nullptr;  // the number of held rows in the device's memory, in the place of `held`
  bool together = false;
  int64_t* rows = nullptr;  // [S, count]
};
inline constexpr int kRowsPerBlock = 2;

QCSE_HOST_DEVICE int64_t row_of(const RandomRows& r, int64_t held, int64_t place, uint32_t first, uint32_t second) {
  if (place < r.leading) return below(r.dataset, first, second);
  return r.together ? below(r.dataset + held, first, second) : r.dataset + below(held, first, second);
}

}  // namespace qcse

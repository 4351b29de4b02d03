// How fast the hot loop is, and how fast it could be.
#pragma once
#include <cstdint>

namespace qcse::cpu {

// Runs float32 multiply-adds that are bound by nothing else, on this thread; returns the floating-point operations.
int64_t multiply_adds(int64_t rounds);

// Multiply-adds per second of the calling thread's processor time: those of scan_all's register tile (one for each
// dimension of a pair, its subtraction not counted) where no pair survives, and those of a loop that does nothing else.
// Medians of interleaved runs of a millisecond.
struct HotLoopSpeed {
  double tile, peak;
};
template <typename T>
HotLoopSpeed hot_loop_speed(int64_t dim);

}  // namespace qcse::cpu

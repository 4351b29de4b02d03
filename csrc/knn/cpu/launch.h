// The CPU backend's launcher and its run-time choices. No torch header: the caller lends its thread pool.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/threads.h"
#include "knn/knn.h"

namespace qcse::cpu {

// Solves the problem. Same bits for every thread count, instruction set and search path.
template <typename T>
void knn(const KnnProblem<T>& problem, const Threads& threads);

// How candidates are searched: "all" pairs; through bounding "boxes"; all pairs behind an 8-bit "screen", where the
// instruction set has one; "auto" decides from the shape and a small sample of the data.
void set_search_path(const std::string& name);

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

// A thread is added for each so many pair-dimensions; 0 restores the default. 1 uses every thread for any problem.
void set_work_per_thread(int64_t work);

}  // namespace qcse::cpu

// The CPU backend's launcher and its run-time choices. No torch header: the caller lends its thread pool.
#pragma once
#include <cstdint>
#include <string>

#include "base/threads.h"
#include "knn/knn.h"

namespace qcse::cpu {

// Solves the problem. Same bits for every thread count, instruction set and search path.
template <typename T>
void knn(const KnnProblem<T>& problem, const Threads& threads);

// How candidates are searched: "all" pairs; through bounding "boxes"; all pairs behind an 8-bit "screen", where the
// instruction set has one; "auto" decides from the shape and a small sample of the data.
void set_search_path(const std::string& name);

// A thread is added for each so many pair-dimensions; 0 restores the default. 1 uses every thread for any problem.
void set_work_per_thread(int64_t work);

}  // namespace qcse::cpu

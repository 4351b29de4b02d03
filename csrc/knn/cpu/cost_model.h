// Which way to search should take the least time.
#pragma once
#include <cstdint>

#include "knn/cpu/entry.h"
#include "knn/cpu/kernels.h"
#include "knn/cpu/quantise.h"

namespace qcse::cpu {

enum class Path { kAuto, kAll, kBoxes, kScreen };

// Of some queries that were searched through boxes.
struct Sampled {
  int64_t queries = 0, work = 0;
  double radii = 0, halves = 0;  // sums of the distances to the k-th neighbour and to the one halfway there
  int64_t count = 0;             // sum of the counts
};

// Is the arithmetic of all pairs so much more than that of the tree and of a sampled cell that a look at the data is
// worth it?
template <typename T>
bool worth_arranging(const Entry<T>& entry, const Kernels<T>& kernels);

// The way that should take the least time, from what a sample took through boxes. Where a screen may be it, the steps
// of the shadows are chosen here.
template <typename T>
Path choose(const Entry<T>& entry, const Kernels<T>& kernels, const Sampled& sample, Shadows<T>& shadows);

}  // namespace qcse::cpu

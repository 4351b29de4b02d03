// Spatial order: near points side by side.
#pragma once
#include <cstdint>
#include <vector>

#include "base/threads.h"

namespace qcse::cpu {

// Some rows of a set of points: the coordinates of row r are its state, then its value.
template <typename T>
struct Points {
  const T* states;
  const T* values;
  int64_t dim;
  T at(int64_t row, int64_t d) const { return d < dim ? states[row * dim + d] : values[row]; }
};

// Spread of each coordinate (dim + 1 of them) over at most `most` rows, evenly picked. Never NaN.
template <typename T>
std::vector<double> spreads(const Points<T>& points, const int32_t* rows, int64_t count, int64_t most);

// Orders rows so that each run of kTile is a compact cell of a k-d tree over states and value.
template <typename T>
void order_spatially(const Points<T>& points, std::vector<int32_t>& rows, const Threads& threads);

}  // namespace qcse::cpu

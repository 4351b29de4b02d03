// The definition of the operator as plain loops: the oracle of the emulated kernels.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "knn/digamma.h"
#include "knn/knn.h"

namespace emulator {

template <typename T>
void brute_force(const qcse::KnnProblem<T>& p) {
  const auto finite_row = [&](const T* states, T value) {
    bool finite = std::isfinite(value);
    for (int64_t d = 0; d < p.dim; ++d) finite = finite && std::isfinite(states[d]);
    return finite;
  };
  std::vector<T> keys, gaps;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t i = 0; i < p.queries; ++i) {
      const int64_t at = b * p.queries + i;
      const T* const query = p.states + at * p.dim;
      const T query_value = p.values[at];
      const int64_t self = p.self_join ? i : p.self_index != nullptr ? p.self_index[at] : -1;
      keys.clear();
      gaps.clear();
      for (int64_t j = 0; j < p.refs; ++j) {
        const T* const row = p.ref_states + (b * p.refs + j) * p.dim;
        const T value = p.ref_values[b * p.refs + j];
        if (j == self || !finite_row(row, value)) continue;
        T sum = 0;
        for (int64_t d = 0; d < p.dim; ++d) {
          const T difference = query[d] - row[d];
          sum = std::fma(difference, difference, sum);
        }
        gaps.push_back(std::fabs(query_value - value));
        keys.push_back(std::max(std::sqrt(sum), gaps.back()));
      }
      T radius = std::numeric_limits<T>::quiet_NaN();
      int64_t count = -1;
      if (finite_row(query, query_value) && static_cast<int64_t>(keys.size()) >= p.k) {
        std::nth_element(keys.begin(), keys.begin() + (p.k - 1), keys.end());
        radius = keys[static_cast<size_t>(p.k - 1)];
        count = std::count_if(gaps.begin(), gaps.end(), [=](T gap) { return gap < radius; });
      }
      if (p.radius != nullptr) p.radius[at] = radius;
      if (p.count != nullptr) p.count[at] = count;
      if (p.entropy != nullptr) {
        p.entropy[at] = static_cast<T>(qcse::entropy_of(static_cast<double>(radius), count, p.dim, p.offset));
      }
    }
  }
}

}  // namespace emulator

// The laboratory's judge: the CPU operator, which every answer of a GPU is compared with bit by bit, and for that
// operator itself a plain loop over all pairs.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "knn/cpu/launch.h"

namespace lab {

using qcse::KnnProblem;

inline void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                         void* context) {
  const int64_t most = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t parts = std::clamp<int64_t>((end - begin) / std::max<int64_t>(1, grain), 1, most);
  std::vector<std::thread> threads;
  for (int64_t part = 1; part < parts; ++part) {
    threads.emplace_back(body, begin + (end - begin) * part / parts, begin + (end - begin) * (part + 1) / parts,
                         context);
  }
  body(begin, begin + (end - begin) / parts, context);
  for (std::thread& thread : threads) thread.join();
}

template <typename T>
struct Answer {
  std::vector<T> radius;
  std::vector<int64_t> count;
};

template <typename T>
Answer<T> solve_on_cpu(KnnProblem<T> problem) {
  Answer<T> answer;
  answer.radius.resize(problem.batch * problem.queries);
  answer.count.resize(problem.batch * problem.queries);
  problem.radius = answer.radius.data();
  problem.count = answer.count.data();
  problem.entropy = nullptr;
  qcse::cpu::knn(problem, {parallel_for, static_cast<int64_t>(std::max(1u, std::thread::hardware_concurrency()))});
  return answer;
}

template <typename T>
Answer<T> solve_by_brute_force(const KnnProblem<T>& p) {
  Answer<T> answer;
  const auto finite = [&](const T* state, T value) {
    bool all = std::isfinite(value);
    for (int64_t d = 0; d < p.dim; ++d) all &= std::isfinite(state[d]);
    return all;
  };
  for (int64_t row = 0; row < p.batch * p.queries; ++row) {
    const int64_t entry = row / p.queries;
    const int64_t self = p.self_join ? row % p.queries : p.self_index != nullptr ? p.self_index[row] : -1;
    std::vector<T> keys, gaps;
    for (int64_t j = 0; j < p.refs; ++j) {
      const T* const other = p.ref_states + (entry * p.refs + j) * p.dim;
      const T value = p.ref_values[entry * p.refs + j];
      if (j == self || !finite(other, value)) continue;
      T sum = 0;
      for (int64_t d = 0; d < p.dim; ++d) {
        const T difference = p.states[row * p.dim + d] - other[d];
        sum = std::fma(difference, difference, sum);
      }
      gaps.push_back(std::abs(p.values[row] - value));
      keys.push_back(std::max(std::sqrt(sum), gaps.back()));
    }
    const bool solvable = finite(p.states + row * p.dim, p.values[row]) && static_cast<int64_t>(keys.size()) >= p.k;
    T radius = std::numeric_limits<T>::quiet_NaN();
    int64_t count = -1;
    if (solvable) {
      std::nth_element(keys.begin(), keys.begin() + p.k - 1, keys.end());
      radius = keys[p.k - 1];
      count = std::count_if(gaps.begin(), gaps.end(), [&](T gap) { return gap < radius; });
    }
    answer.radius.push_back(radius);
    answer.count.push_back(count);
  }
  return answer;
}

template <typename T>
bool same_bits(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(T)) == 0;
}

// Whether `got` has the judge's bits in these rows.
template <typename T>
bool agrees(const Answer<T>& judge, const Answer<T>& got, const std::vector<int64_t>& rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!same_bits(judge.radius[i], got.radius[rows[i]]) || judge.count[i] != got.count[rows[i]]) return false;
  }
  return true;
}

}  // namespace lab

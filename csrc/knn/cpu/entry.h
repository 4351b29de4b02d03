// One entry of a batch: who is a candidate, which queries have an answer, and the answers.
#pragma once
#include <cstdint>
#include <vector>

#include "base/memory.h"
#include "knn/knn.h"

namespace qcse::cpu {

template <typename T>
struct Entry {
  // Finds the candidates and the queries that have an answer; the others get theirs here.
  Entry(const KnnProblem<T>& problem, int64_t number);

  const KnnProblem<T>& p;  // sizes and options
  const T* const states;
  const T* const values;
  const T* const ref_states;
  const T* const ref_values;

  std::vector<int32_t> rows;        // candidate position -> reference row
  std::vector<int32_t> query_rows;  // queries that have an answer
  Buffer<T> sorted_values;          // of the candidates, ascending

  int64_t queries() const { return static_cast<int64_t>(query_rows.size()); }
  int64_t candidates() const { return static_cast<int64_t>(rows.size()); }

  // To be called when `rows` are in another order.
  void number_candidates();

  // Position of the candidate that is query i itself, or -1.
  int32_t self_position(int64_t i) const {
    const int64_t row = self_row(i);
    return row < 0 ? -1 : position_[row];
  }

  // Query i's answer, from the distance to its k-th neighbour; returns its count.
  int64_t finish(int64_t i, T radius) const;

 private:
  // Reference row that is query i itself, or -1.
  int64_t self_row(int64_t i) const {
    if (p.self_join) return i;
    return self_index_ == nullptr ? -1 : self_index_[i];
  }
  void collect_candidates();
  void collect_queries();
  void answer(int64_t i, T radius, int64_t count) const;

  const int64_t* const self_index_;
  T* const radius_;
  int64_t* const count_;
  T* const entropy_;
  Buffer<int32_t> position_;  // reference row -> candidate position, -1 where it is no candidate
};

}  // namespace qcse::cpu

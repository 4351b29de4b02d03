// The contract between the operator's glue and its kernels: plain pointers, sizes and options.
// No torch, no CUDA and no pybind11 header is included here; every backend implements these launchers.
//
// What is computed, for each query i of each batch entry (arXiv 2310.19805; Kraskov et al. 2004):
//   d2_ij     = fma-accumulated sum over d ascending of (s_i[d] - s_j[d])^2
//   key_ij    = max(sqrt(d2_ij), |q_i - q_j|)             (correctly rounded square root)
//   radius_i  = the k-th smallest key over the candidates j
//   count_i   = #{ candidates j : |q_i - q_j| < radius_i }
//   entropy_i = digamma(count_i + 1) / dim + log(2 * radius_i + offset)
// Candidates are the reference rows whose state and value are all finite, less the query itself.
// The k-th smallest value is an order statistic: it does not depend on who finds it, nor in which order,
// so radius and count have the same bits for any tiling, thread count, pruning rule and device.
#pragma once
#include <cstddef>
#include <cstdint>

namespace qcse {

inline constexpr int64_t kMaxNeighbours = 128;
inline constexpr int64_t kMaxDim = 1024;

// All arrays are dense and row-major. T is float or double.
template <typename T>
struct KnnProblem {
  int64_t batch = 0;    // independent problems, one after the other (one per seed)
  int64_t queries = 0;  // rows of `states` per batch entry
  int64_t refs = 0;     // rows of `ref_states` per batch entry
  int64_t dim = 0;      // 1 .. kMaxDim
  int64_t k = 0;        // 1 .. kMaxNeighbours

  const T* states = nullptr;      // [batch, queries, dim]
  const T* values = nullptr;      // [batch, queries]
  const T* ref_states = nullptr;  // [batch, refs, dim]; the same pointer as `states` where a set is searched in itself
  const T* ref_values = nullptr;  // [batch, refs]

  // Which reference row is the query itself. `self_join` is true where a set is searched in itself: row i is
  // then the self of query i, and `self_index` is null. Otherwise self_index is null (no query is a reference
  // row) or [batch, queries] with -1 for none.
  bool self_join = false;
  const int64_t* self_index = nullptr;

  // Outputs, [batch, queries] each; null where the caller does not want it.
  T* radius = nullptr;       // NaN where the query is not finite or fewer than k candidates are left
  int64_t* count = nullptr;  // -1 there
  T* entropy = nullptr;      // NaN there
  double offset = 1e-5;      // inside the logarithm; keeps the answer finite where radius is 0
};

// cpu/launch.h: runs on the calling thread and on torch's pool through `parallel_for`.
// cuda/launch.h: launchers that also take a workspace and a stream.

}  // namespace qcse

#include "sorted.h"

#include "sort.h"

namespace qcse::cuda {
namespace {

constexpr int kRowThreads = 256;
constexpr int kRowsPerBlock = kRowThreads / kWarp;

// A warp for each row: its sort key and its number.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    knn_keys_kernel(const T* states, const T* values, int dim, SortedSet<T> set, int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;
  const T value = values[row];
  bool bad = !is_finite(value);
  for (int d = lane; d < dim; d += kWarp) bad |= !is_finite(states[row * dim + d]);
  bad = __any_sync(kFullWarp, bad);
  if (lane == 0) {
    set.keys[row] = bad ? infinity<T>() : value;
    set.rows[row] = static_cast<int>(row % set.count);
  }
}

// A warp for each sorted place: brings the state there, and tells where the finite rows end.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    knn_gather_kernel(const T* states, int dim, SortedRefs<T> refs, int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (at >= rows) return;
  const int64_t entry = at / refs.set.count;
  const int64_t place = at % refs.set.count;
  const int64_t row = refs.set.order[at];
  const T* const from = states + (entry * refs.set.count + row) * dim;
  T* const to = refs.states + (entry * refs.stride + place) * dim;
  for (int d = lane; d < dim; d += kWarp) to[d] = from[d];
  if (lane == 0) {
    if (refs.place != nullptr) refs.place[entry * refs.set.count + row] = static_cast<int>(place);
    const bool finite = is_finite(refs.set.values[at]);
    if (place == 0 && !finite) refs.finite[entry] = 0;
    if (finite && (place + 1 == refs.set.count || !is_finite(refs.set.values[at + 1]))) {
      refs.finite[entry] = static_cast<int>(place) + 1;
    }
  }
}

template <typename T>
Status sort_set(const SortedProblem<T>& sorted, const SortedSet<T>& set, const T* states, const T* values,
                cudaStream_t stream) {
  const KnnProblem<T>& p = sorted.problem;
  const int64_t rows = p.batch * set.count;
  const int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  if (blocks > INT32_MAX) return {"knn_keys_kernel", kTooManyBlocks};
  Status status = status_of("knn_keys_kernel",
                            launch_kernel(knn_keys_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads), 0,
                                          stream, states, values, static_cast<int>(p.dim), set, rows));
  for (int64_t entry = 0; entry < p.batch && status.error == nullptr; ++entry) {
    const int64_t at = entry * set.count;
    status = status_of("sort_pairs", sort_pairs(sorted.sorting, sorted.sorting_bytes, set.keys + at, set.values + at,
                                                set.rows + at, set.order + at, set.count, stream));
  }
  return status;
}

}  // namespace

template <typename T>
SortedProblem<T>::SortedProblem(const KnnProblem<T>& p, Workspace& workspace) : problem(p) {
  const auto set = [&](int64_t rows) {
    SortedSet<T> s;
    s.keys = workspace.take<T>(p.batch * rows);
    s.rows = workspace.take<int>(p.batch * rows);
    s.values = workspace.take<T>(p.batch * rows);
    s.order = workspace.take<int>(p.batch * rows);
    s.count = rows;
    return s;
  };
  refs.set = set(p.refs);
  refs.stride = (p.refs + 3) / 4 * 4;
  refs.states = workspace.take<T>(p.batch * refs.stride * p.dim);
  refs.finite = workspace.take<int>(p.batch);
  if (p.self_index != nullptr) refs.place = workspace.take<int>(p.batch * p.refs);
  queries = p.self_join ? refs.set : set(p.queries);
  sorting_bytes = sort_bytes<T>(p.refs > p.queries ? p.refs : p.queries);
  sorting = workspace.take<unsigned char>(static_cast<int64_t>(sorting_bytes));
}

template <typename T>
Status SortedProblem<T>::sort(cudaStream_t stream) const {
  Status status = sort_set(*this, refs.set, problem.ref_states, problem.ref_values, stream);
  if (status.error == nullptr && !problem.self_join) {
    status = sort_set(*this, queries, problem.states, problem.values, stream);
  }
  if (status.error != nullptr) return status;
  const int64_t rows = problem.batch * problem.refs;
  const int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  return status_of("knn_gather_kernel",
                   launch_kernel(knn_gather_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads), 0,
                                 stream, problem.ref_states, static_cast<int>(problem.dim), refs, rows));
}

template struct SortedProblem<float>;
template struct SortedProblem<double>;

}  // namespace qcse::cuda

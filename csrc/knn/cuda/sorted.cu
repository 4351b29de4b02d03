#include "sorted.h"

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
    const T key = bad ? infinity<T>() : value;
    if (set.joint != nullptr) {
      set.joint[row] = join(row / set.count, key);
    } else {
      set.keys[row] = key;
    }
    set.rows[row] = static_cast<int>(row % set.count);
  }
}

// A thread for each sorted place of several batch entries: its value.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) knn_values_kernel(SortedSet<T> set, int64_t rows) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (at < rows) set.values[at] = value_of<T>(set.joint_sorted[at]);
}

// By one lane for each sorted place: what others look up of it.
template <typename T>
__device__ __forceinline__ void register_place(const SortedRefs<T>& refs, int64_t entry, int64_t place, int64_t row) {
  const T* const values = refs.set.values + entry * refs.set.count;
  if (refs.place != nullptr) refs.place[entry * refs.set.count + row] = static_cast<int>(place);
  const bool finite = is_finite(values[place]);
  if (place == 0 && !finite) refs.finite[entry] = 0;
  if (finite && (place + 1 == refs.set.count || !is_finite(values[place + 1]))) {
    refs.finite[entry] = static_cast<int>(place) + 1;
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
  if (lane == 0) register_place(refs, entry, place, row);
}

// A warp for each row of the stages, of which a block never has rows of two.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) knn_stages_kernel(const T* states, int dim, SortedRefs<T> refs) {
  constexpr int kBlocks = kStageRows / kRowsPerBlock;  // that share a stage
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned stage = blockIdx.x / kBlocks;
  const int at = static_cast<int>(blockIdx.x % kBlocks) * kRowsPerBlock + static_cast<int>(threadIdx.x) / kWarp;
  const int64_t entry = stage / static_cast<unsigned>(refs.tiles);
  const int64_t place = static_cast<int64_t>(stage % static_cast<unsigned>(refs.tiles)) * kStageRows + at;
  const bool exists = place < refs.set.count;
  const int64_t row = exists ? refs.set.order[entry * refs.set.count + place] : 0;
  const bool finite = exists && is_finite(refs.set.values[entry * refs.set.count + place]);
  const int pitch = stage_pitch(refs.depth);
  const T* const from = states + (entry * refs.set.count + row) * dim;
  T* to = refs.stages + (static_cast<int64_t>(stage) * refs.chunks * kStageRows + at) * pitch;
  for (int first = 0; first < dim; first += refs.depth) {
    for (int d = lane; d < pitch; d += kWarp) {
      to[d] = finite && d < refs.depth && first + d < dim ? from[first + d] : T(0);
    }
    to += kStageRows * pitch;
  }
  if (exists && lane == 0) register_place(refs, entry, place, row);
}

// Of a joint key, those that differ.
template <typename T>
int joint_bits(int64_t batch) {
  int bits = kValueBits<T>;
  while (((batch - 1) >> (bits - kValueBits<T>)) != 0) ++bits;
  return bits;
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
  if (status.error != nullptr) return status;
  if (set.joint == nullptr) {
    return status_of("sort_pairs", sort_pairs(sorted.sorting, sorted.sorting_bytes, set.keys, set.values, set.rows,
                                              set.order, rows, kValueBits<T>, stream));
  }
  status = status_of("sort_pairs", sort_pairs(sorted.sorting, sorted.sorting_bytes, set.joint, set.joint_sorted,
                                              set.rows, set.order, rows, joint_bits<T>(p.batch), stream));
  if (status.error != nullptr) return status;
  const int64_t value_blocks = (rows + kRowThreads - 1) / kRowThreads;
  return status_of("knn_values_kernel", launch_kernel(knn_values_kernel<T>, dim3(static_cast<unsigned>(value_blocks)),
                                                      dim3(kRowThreads), 0, stream, set, rows));
}

}  // namespace

template <typename T>
SortedProblem<T>::SortedProblem(const KnnProblem<T>& p, Workspace& workspace, int depth) : problem(p) {
  using Key = typename Joint<T>::Key;
  const auto set = [&](int64_t rows) {
    SortedSet<T> s;
    if (p.batch > 1) {
      s.joint = workspace.take<Key>(p.batch * rows);
      s.joint_sorted = workspace.take<Key>(p.batch * rows);
    } else {
      s.keys = workspace.take<T>(rows);
    }
    s.rows = workspace.take<int>(p.batch * rows);
    s.values = workspace.take<T>(p.batch * rows);
    s.order = workspace.take<int>(p.batch * rows);
    s.count = rows;
    return s;
  };
  refs.set = set(p.refs);
  if (depth > 0) {
    refs.depth = depth;
    refs.chunks = static_cast<int>((p.dim + depth - 1) / depth);
    refs.tiles = static_cast<int>((p.refs + kStageRows - 1) / kStageRows);
    refs.stages = workspace.take<T>(p.batch * refs.tiles * refs.chunks * kStageRows * stage_pitch(depth));
  } else {
    refs.stride = (p.refs + 3) / 4 * 4;
    refs.states = workspace.take<T>(p.batch * refs.stride * p.dim);
  }
  refs.finite = workspace.take<int>(p.batch);
  if (p.self_index != nullptr) refs.place = workspace.take<int>(p.batch * p.refs);
  queries = p.self_join ? refs.set : set(p.queries);
  const int64_t most = p.batch * (p.refs > p.queries ? p.refs : p.queries);
  sorting_bytes = p.batch > 1 ? sort_bytes<Key>(most, joint_bits<T>(p.batch)) : sort_bytes<T>(most, kValueBits<T>);
  sorting = workspace.take<unsigned char>(static_cast<int64_t>(sorting_bytes));
}

template <typename T>
Status SortedProblem<T>::sort(cudaStream_t stream) const {
  Status status = sort_set(*this, refs.set, problem.ref_states, problem.ref_values, stream);
  if (status.error == nullptr && !problem.self_join) {
    status = sort_set(*this, queries, problem.states, problem.values, stream);
  }
  if (status.error != nullptr) return status;
  const int dim = static_cast<int>(problem.dim);
  if (refs.stages != nullptr) {
    const int64_t blocks = problem.batch * refs.tiles * (kStageRows / kRowsPerBlock);
    if (blocks > INT32_MAX) return {"knn_stages_kernel", kTooManyBlocks};
    return status_of("knn_stages_kernel", launch_kernel(knn_stages_kernel<T>, dim3(static_cast<unsigned>(blocks)),
                                                        dim3(kRowThreads), 0, stream, problem.ref_states, dim, refs));
  }
  const int64_t rows = problem.batch * problem.refs;
  const int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  return status_of("knn_gather_kernel",
                   launch_kernel(knn_gather_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads), 0,
                                 stream, problem.ref_states, dim, refs, rows));
}

template struct SortedProblem<float>;
template struct SortedProblem<double>;

}  // namespace qcse::cuda

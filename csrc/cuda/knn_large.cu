#include "knn_large.h"

#include "digamma.h"
#include "sort.h"
#include "tile.h"

namespace qcse::cuda {
namespace {

// --- Sorting by value -----------------------------------------------------------------------------------------------
// One set of points in ascending order of value; rows that are not finite have the key +inf and come last.
template <typename T>
struct SortedSet {
  T* keys = nullptr;     // [batch, rows], as the points came
  int* rows = nullptr;   // [batch, rows], 0, 1, 2...
  T* values = nullptr;   // [batch, rows], sorted
  int* order = nullptr;  // [batch, rows], the row at each sorted place
  int64_t count = 0;     // rows of a batch entry
};

// The references once more, in sorted order.
template <typename T>
struct SortedRefs {
  SortedSet<T> set;
  T* states = nullptr;    // [batch, stride, dim]
  int64_t stride = 0;     // rows, rounded up so that every batch entry starts at a multiple of 16 bytes
  int* place = nullptr;   // [batch, rows], the sorted place of each row; null where nobody asks
  int* finite = nullptr;  // [batch], how many rows are finite
};

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

// --- The search -----------------------------------------------------------------------------------------------------
// The first place in [0, count) for which `reached` holds, or count; once it holds, it holds for all later places.
// Called by a whole warp, which looks at 32 places at a time.
template <typename Reached>
__device__ __forceinline__ int first_place(int count, int lane, const Reached& reached) {
  int low = 0;
  int high = count;  // the answer is in [low, high]
  while (low < high) {
    const int step = (high - low + kWarp - 1) / kWarp;
    const int place = low + lane * step;
    const unsigned hits = __ballot_sync(kFullWarp, place >= high || reached(place));
    const int first = hits == 0 ? kWarp : __ffs(static_cast<int>(hits)) - 1;
    if (first == 0) return low;
    const int end = low + first * step;
    if (end < high) high = end;
    low += (first - 1) * step + 1;
  }
  return low;
}

template <typename Shape, int kRegisters>
struct LargeLayout {
  using T = typename Shape::T;
  static constexpr size_t kSlots = static_cast<size_t>(Shape::kWarps) * Shape::kQueriesPerWarp * kRegisters * kWarp;

  size_t queries, query_values, self, values, stages, bounds, flags, radius, bytes, stage_elements;

  __host__ __device__ LargeLayout(int dim, int depth) {
    const size_t stage = 2 * static_cast<size_t>(Shape::stage_for(depth));
    stage_elements = stage > kSlots ? stage : kSlots;  // the lists are merged where candidates were staged
    SharedLayout layout;
    queries = layout.add<T>(static_cast<size_t>(dim) * Shape::kQueries);
    query_values = layout.add<T>(Shape::kQueries);
    self = layout.add<int>(Shape::kQueries);
    values = layout.add<T>(2 * Shape::kTile);
    stages = layout.add<T>(stage_elements);
    bounds = layout.add<T>(2 * Shape::kQueries * Shape::kSplits);
    flags = layout.add<unsigned>(2 * Shape::kWarps);
    radius = layout.add<T>(Shape::kQueries);
    bytes = layout.bytes();
  }
};

template <typename T>
struct LargeParameters {
  KnnProblem<T> problem;
  SortedRefs<T> refs;
  SortedSet<T> queries;  // the references' own where a set is searched in itself
  int tiles = 0;         // blocks a batch entry
  int depth = 0;
};

// What a warp tells the block at the end of a step, one bit each.
constexpr unsigned kWantsLeft = 1;   // the next tile on the left may hold a neighbour of one of its queries
constexpr unsigned kWantsRight = 2;  // likewise on the right
constexpr unsigned kAlive = 4;       // the present tile may, going by the dimensions summed up so far

// One block for each tile of queries in sorted order: blockIdx.x = batch entry * tiles + tile.
template <typename Shape, int kRegisters>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    knn_large_kernel(const LargeParameters<typename Shape::T> parameters) {
  using T = typename Shape::T;
  constexpr int kQueries = Shape::kQueries;
  constexpr int kTile = Shape::kTile;
  constexpr int kQ = Shape::kQueriesPerWarp;
  const KnnProblem<T>& problem = parameters.problem;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp;
  const int lane = thread % kWarp;
  const int group = warp / Shape::kSplits;
  const int split = warp % Shape::kSplits;
  const int dim = static_cast<int>(problem.dim);
  const int k = static_cast<int>(problem.k);
  const int depth = parameters.depth;
  const int pitch = Shape::pitch_for(depth);

  const int64_t entry = blockIdx.x / static_cast<unsigned>(parameters.tiles);
  const int64_t first_query = static_cast<int64_t>(blockIdx.x % static_cast<unsigned>(parameters.tiles)) * kQueries;
  const int64_t left_over = problem.queries - first_query;
  const int live = left_over < kQueries ? static_cast<int>(left_over) : kQueries;
  const int* const order = parameters.queries.order + entry * problem.queries + first_query;
  const T* const sorted_values = parameters.refs.set.values + entry * problem.refs;
  const T* const sorted_states = parameters.refs.states + entry * parameters.refs.stride * dim;
  const int finite = parameters.refs.finite[entry];

  const LargeLayout<Shape, kRegisters> layout(dim, depth);
  T* const queries = shared_array<T>(layout.queries, static_cast<size_t>(dim) * kQueries);  // [dim][kQueries]
  T* const query_values = shared_array<T>(layout.query_values, kQueries);                   // +inf for what is no query
  int* const self = shared_array<int>(layout.self, kQueries);                               // sorted place, or -1
  T* const values = shared_array<T>(layout.values, 2 * kTile);                              // of the staged tiles
  T* const stages = shared_array<T>(layout.stages, layout.stage_elements);
  T* const bounds = shared_array<T>(layout.bounds, 2 * kQueries * Shape::kSplits);
  unsigned* const flags = shared_array<unsigned>(layout.flags, 2 * Shape::kWarps);
  T* const radius = shared_array<T>(layout.radius, kQueries);

  for (int i = thread; i < kQueries; i += Shape::kThreads) {
    query_values[i] = i < live ? parameters.queries.values[entry * problem.queries + first_query + i] : infinity<T>();
    int place = -1;
    if (i < live && problem.self_join) place = static_cast<int>(first_query) + i;
    if (i < live && problem.self_index != nullptr) {
      const int64_t own = problem.self_index[entry * problem.queries + order[i]];
      if (own >= 0 && own < problem.refs) place = parameters.refs.place[entry * problem.refs + own];
    }
    self[i] = place < finite ? place : -1;  // a row that is not finite is nobody's self
  }
  for (int i = warp; i < kQueries; i += Shape::kWarps) {
    const T* const row = problem.states + (entry * problem.queries + (i < live ? order[i] : 0)) * dim;
    for (int d = lane; d < dim; d += kWarp) queries[d * kQueries + i] = i < live ? row[d] : T(0);
  }
  __syncthreads();

  WarpSearch<Shape, kRegisters> search;
  search.start(lane);
#pragma unroll
  for (int i = 0; i < kQ; ++i) {
    if (!is_finite(query_values[group * kQ + i])) search.close(i);
  }

  const int column = split * kWarp * Shape::kCandidatesPerLane;  // the warp's first candidate within a tile
  const int chunks = (dim + depth - 1) / depth;
  const int tiles = (finite + kTile - 1) / kTile;
  // Chunk `chunk` of a tile, and with the first chunk the tile's values, to stage `step & 1`. `turn & 1` chooses among
  // the two places for values, which change less often.
  const auto stage = [&](int step, int turn, int tile, int chunk) {
    const int rows = finite - tile * kTile;
    const int first_dim = chunk * depth;
    if (chunk == 0) {
      for (int j = thread; j < kTile; j += Shape::kThreads) {
        values[(turn & 1) * kTile + j] = j < rows ? sorted_values[tile * kTile + j] : not_a_number<T>();
      }
    }
    stage_chunk<Shape>(stages + (step & 1) * Shape::stage_for(depth),
                       sorted_states + static_cast<int64_t>(tile) * kTile * dim, dim, rows, first_dim,
                       dim - first_dim < depth ? dim - first_dim : depth, pitch);
  };

  // Every warp follows the visit: the tile at hand, the next one on either side, and the values that bound them.
  const T middle = query_values[live / 2];
  const int home_place = first_place(finite, lane, [&](int place) { return sorted_values[place] >= middle; });
  int tile = home_place < finite ? home_place / kTile : tiles - 1;
  int left = tile - 1;
  int right = tile + 1;
  T left_edge = left >= 0 ? sorted_values[left * kTile + kTile - 1] : T(0);
  T right_edge = right < tiles ? sorted_values[right * kTile] : T(0);
  unsigned told = kWantsLeft | kWantsRight | kAlive;
  if (tile >= 0) stage(0, 0, tile, 0);
  copies_wait();
  __syncthreads();

  T* group_bounds = bounds + group * kQ * Shape::kSplits;
  int chunk = 0;
  int visited = 0;
  bool alive = true;
#pragma unroll 1
  for (int step = 0; tile >= 0; ++step) {
    // Either the last chunk is at hand, or nobody wants to see the rest of this tile.
    const bool over = (told & kAlive) == 0;
    const bool leaves = over || chunk == chunks - 1;
    int next_tile = tile;
    int next_chunk = chunk + 1;
    if (leaves) {
      // The nearer side first. The far side of a gap stays out of reach, for bounds only fall.
      const bool may_left = left >= 0 && (told & kWantsLeft) != 0;
      const bool may_right = right < tiles && (told & kWantsRight) != 0;
      const bool goes_left = may_left && (!may_right || middle - left_edge <= right_edge - middle);
      next_tile = goes_left ? left-- : may_right ? right++ : -1;
      next_chunk = 0;
      if (goes_left && left >= 0) left_edge = sorted_values[left * kTile + kTile - 1];
      if (!goes_left && may_right && right < tiles) right_edge = sorted_values[right * kTile];
    }
    if (next_tile >= 0) stage(step + 1, visited + leaves, next_tile, next_chunk);

    if (chunk == 0) {
      search.clear_sums();
      alive = true;
    }
    if (!over && alive) {
      search.accumulate(stages + (step & 1) * Shape::stage_for(depth) + column * pitch,
                        queries + chunk * depth * kQueries + group * kQ,
                        chunk == chunks - 1 ? dim - chunk * depth : depth, pitch);
      alive = search.alive();
      if (leaves && alive) {
        search.offer(tile * kTile + column, values + (visited & 1) * kTile + column, query_values + group * kQ,
                     self + group * kQ, k);
      }
    }
    unsigned tells = alive || leaves ? kAlive : 0;
#pragma unroll
    for (int i = 0; i < kQ; ++i) {
      // Rounding keeps the order of gaps: behind the edge none is smaller than the gap to the edge, which is negative
      // where the query lies behind the edge itself.
      const T value = query_values[group * kQ + i];
      const bool open = search.bound[i] > 0;
      if (open && left >= 0 && value - left_edge < search.bound[i]) tells |= kWantsLeft;
      if (open && right < tiles && right_edge - value < search.bound[i]) tells |= kWantsRight;
    }
    if (lane == 0) flags[(step & 1) * Shape::kWarps + warp] = tells;
    // As in the small kernel: after 1, 2, 4, 8... tiles, in two sets of slots that take turns.
    const bool exchange = Shape::kSplits > 1 && leaves && ((visited + 1) & visited) == 0;
    if (exchange) search.publish(group_bounds, split, k);
    copies_wait();
    __syncthreads();
    told = __reduce_or_sync(kFullWarp, lane < Shape::kWarps ? flags[(step & 1) * Shape::kWarps + lane] : 0u);
    if (exchange) {
      search.adopt(group_bounds);
      group_bounds = bounds + (group_bounds < bounds + kQueries * Shape::kSplits ? kQueries * Shape::kSplits : 0) +
                     group * kQ * Shape::kSplits;
    }
    visited += leaves;
    tile = next_tile;
    chunk = next_chunk;
  }

  search.merge_splits(stages, group, split);
  if (split == 0) {
#pragma unroll
    for (int i = 0; i < kQ; ++i) {
      const T kth = search.list[i].rank(k - 1);
      if (lane == 0) radius[group * kQ + i] = kth;
    }
  }
  __syncthreads();

  for (int i = warp; i < live; i += Shape::kWarps) {
    const T value = query_values[i];
    const int own = self[i];
    T answer = not_a_number<T>();
    int64_t count = -1;
    if (is_finite(value) && finite - (own >= 0) >= k) {
      answer = radius[i];
      count = 0;
      if (answer > 0) {
        const int begin = first_place(finite, lane, [&](int place) {
          const T other = sorted_values[place];
          return other >= value || value - other < answer;
        });
        const int end = first_place(finite, lane, [&](int place) {
          const T other = sorted_values[place];
          return other > value && !(other - value < answer);
        });
        count = end - begin - (own >= 0 && magnitude(value - sorted_values[own]) < answer);
      }
    }
    if (lane == 0) {
      const int64_t at = entry * problem.queries + order[i];
      if (problem.radius != nullptr) problem.radius[at] = answer;
      if (problem.count != nullptr) problem.count[at] = count;
      if (problem.entropy != nullptr) {
        problem.entropy[at] =
            static_cast<T>(entropy_of(static_cast<double>(answer), count, problem.dim, problem.offset));
      }
    }
  }
}

// --- Host side ------------------------------------------------------------------------------------------------------
// Hands out pieces of the workspace; with a null base it only measures.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

template <typename T>
struct Plan {
  LargeParameters<T> parameters;
  void* sorting;
  size_t sorting_bytes;
  size_t bytes;

  Plan(const KnnProblem<T>& p, void* base) {
    Workspace workspace(base);
    const auto set = [&](int64_t rows) {
      SortedSet<T> s;
      s.keys = workspace.take<T>(p.batch * rows);
      s.rows = workspace.take<int>(p.batch * rows);
      s.values = workspace.take<T>(p.batch * rows);
      s.order = workspace.take<int>(p.batch * rows);
      s.count = rows;
      return s;
    };
    SortedRefs<T>& refs = parameters.refs;
    refs.set = set(p.refs);
    refs.stride = (p.refs + 3) / 4 * 4;
    refs.states = workspace.take<T>(p.batch * refs.stride * p.dim);
    refs.finite = workspace.take<int>(p.batch);
    if (p.self_index != nullptr) refs.place = workspace.take<int>(p.batch * p.refs);
    parameters.queries = p.self_join ? refs.set : set(p.queries);
    parameters.problem = p;
    sorting_bytes = sort_bytes<T>(p.refs > p.queries ? p.refs : p.queries);
    sorting = workspace.take<unsigned char>(static_cast<int64_t>(sorting_bytes));
    bytes = workspace.used();
  }
};

constexpr const char* kTooMany = "the batch needs more than 2147483647 blocks";

Status status_of(const char* kernel, cudaError_t error) {
  return {kernel, error == cudaSuccess ? nullptr : cudaGetErrorString(error)};
}

template <typename T>
Status sort_set(const KnnProblem<T>& p, const SortedSet<T>& set, const T* states, const T* values, const Plan<T>& plan,
                cudaStream_t stream) {
  const int64_t rows = p.batch * set.count;
  const int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  if (blocks > INT32_MAX) return {"knn_keys_kernel", kTooMany};
  Status status = status_of("knn_keys_kernel",
                            launch_kernel(knn_keys_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads), 0,
                                          stream, states, values, static_cast<int>(p.dim), set, rows));
  for (int64_t entry = 0; entry < p.batch && status.error == nullptr; ++entry) {
    const int64_t at = entry * set.count;
    status = status_of("sort_pairs", sort_pairs(plan.sorting, plan.sorting_bytes, set.keys + at, set.values + at,
                                                set.rows + at, set.order + at, set.count, stream));
  }
  return status;
}

template <typename Shape, int kRegisters>
struct LargeKernel {
  using T = typename Shape::T;

  static int64_t tiles(const KnnProblem<T>& p) { return (p.queries + Shape::kQueries - 1) / Shape::kQueries; }
  static size_t shared_bytes(const KnnProblem<T>& p) {
    const int dim = static_cast<int>(p.dim);
    return LargeLayout<Shape, kRegisters>(dim, Shape::depth_for(dim)).bytes;
  }
  // Worth its larger tile when the grid still gives work to three quarters of the machine.
  static bool suits(const KnnProblem<T>& p, const Device& device) {
    return shared_bytes(p) <= device.shared_bytes_per_block && 4 * p.batch * tiles(p) >= 3 * device.multiprocessors;
  }
  static Status launch(LargeParameters<T> parameters, cudaStream_t stream) {
    const KnnProblem<T>& p = parameters.problem;
    const int64_t blocks = p.batch * tiles(p);
    if (blocks > INT32_MAX) return {"knn_large_kernel", kTooMany};
    parameters.tiles = static_cast<int>(tiles(p));
    parameters.depth = Shape::depth_for(static_cast<int>(p.dim));
    return status_of("knn_large_kernel",
                     launch_kernel(knn_large_kernel<Shape, kRegisters>, dim3(static_cast<unsigned>(blocks)),
                                   dim3(Shape::kThreads), shared_bytes(p), stream, parameters));
  }
};

template <typename T, int kRegisters>
Status search_with(const LargeParameters<T>& parameters, const Device& device, cudaStream_t stream) {
  using Large = LargeKernel<LargeTile<T>, kRegisters>;
  using Medium = LargeKernel<TileShape<T, 4, 1>, kRegisters>;
  using Fine = LargeKernel<TileShape<T, 1, 1>, kRegisters>;
  if (Large::suits(parameters.problem, device)) return Large::launch(parameters, stream);
  if (Medium::suits(parameters.problem, device)) return Medium::launch(parameters, stream);
  return Fine::launch(parameters, stream);
}

}  // namespace

template <typename T>
size_t large_workspace_bytes(const KnnProblem<T>& problem, const Device&) {
  return Plan<T>(problem, nullptr).bytes;
}

template <typename T>
Status launch_large(const KnnProblem<T>& problem, const Device& device, void* workspace, cudaStream_t stream) {
  const Plan<T> plan(problem, workspace);
  const SortedRefs<T>& refs = plan.parameters.refs;
  Status status = sort_set(problem, refs.set, problem.ref_states, problem.ref_values, plan, stream);
  if (status.error == nullptr && !problem.self_join) {
    status = sort_set(problem, plan.parameters.queries, problem.states, problem.values, plan, stream);
  }
  if (status.error != nullptr) return status;
  const int64_t rows = problem.batch * problem.refs;
  const int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  status = status_of("knn_gather_kernel",
                     launch_kernel(knn_gather_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads), 0,
                                   stream, problem.ref_states, static_cast<int>(problem.dim), refs, rows));
  if (status.error != nullptr) return status;
  return problem.k <= kWarp ? search_with<T, 1>(plan.parameters, device, stream)
                            : search_with<T, 4>(plan.parameters, device, stream);
}

template size_t large_workspace_bytes(const KnnProblem<float>&, const Device&);
template size_t large_workspace_bytes(const KnnProblem<double>&, const Device&);
template Status launch_large(const KnnProblem<float>&, const Device&, void*, cudaStream_t);
template Status launch_large(const KnnProblem<double>&, const Device&, void*, cudaStream_t);

}  // namespace qcse::cuda

#include "large.h"

#include <algorithm>

#include "sorted.h"
#include "tile.h"

namespace qcse::cuda {
namespace {

template <typename Shape, int kRegisters>
struct LargeLayout {
  using T = typename Shape::T;
  static constexpr size_t kSlots = static_cast<size_t>(Shape::kWarps) * Shape::kQueriesPerWarp * kRegisters * kWarp;

  static_assert(Shape::kTile == kStageRows);

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
  SortedSet<T> queries;
  int tiles = 0;       // query tiles of a batch entry
  T* lists = nullptr;  // [batch, queries, splits, kRegisters, 32], where several blocks share the queries
};

// Beside what a visit asks: the present tile may hold a neighbour, going by the dimensions summed up so far.
constexpr unsigned kAlive = 4;

// gridDim.y blocks for each tile of queries in sorted order: blockIdx.x = batch entry * tiles + tile. They take turns
// at the candidates' tiles, and leave their lists to knn_merge_kernel.
template <typename Shape, int kRegisters>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    knn_large_kernel(const LargeParameters<typename Shape::T> parameters) {
  using T = typename Shape::T;
  constexpr int kQueries = Shape::kQueries;
  constexpr int kTile = Shape::kTile;
  constexpr int kQ = Shape::kQueriesPerWarp;
  const KnnProblem<T>& problem = parameters.problem;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = __shfl_sync(kFullWarp, thread / kWarp, 0);  // tells the compiler that it is the same in every lane
  const int lane = thread % kWarp;
  const int group = warp / Shape::kSplits;
  const int split = warp % Shape::kSplits;
  const int dim = static_cast<int>(problem.dim);
  const int k = static_cast<int>(problem.k);
  const SortedRefs<T>& refs = parameters.refs;
  const int depth = refs.depth;
  const int pitch = Shape::pitch_for(depth);
  const int stage_size = Shape::stage_for(depth);

  const SortedView<T> view(problem, parameters.refs, parameters.queries, parameters.tiles, kQueries);
  const int live = view.live;
  const int finite = view.finite;

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
    query_values[i] = view.query_value(i);
    self[i] = view.self_of(i);
  }
  for (int i = warp; i < kQueries; i += Shape::kWarps) {
    const T* const row = view.query_row(i < live ? i : 0);
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
  const int chunks = refs.chunks;
  const T* const tiles = refs.stages + view.entry * refs.tiles * chunks * stage_size;
  // Chunk `chunk` of a tile, and with the first chunk the tile's values, to stage `step & 1`. `turn & 1` chooses among
  // the two places for values, which change less often.
  const auto stage = [&](int step, int turn, int tile, int chunk) {
    constexpr int kVector = 16 / sizeof(T);
    if (chunk == 0) {
      const int rows = finite - tile * kTile;
#pragma unroll 1
      for (int j = thread; j < kTile; j += Shape::kThreads) {
        T* const to = values + (turn & 1) * kTile + j;
        if (j < rows) {
          copy_async<sizeof(T)>(to, view.values + tile * kTile + j);
        } else {
          *to = not_a_number<T>();
        }
      }
    }
    const T* const from = tiles + (static_cast<int64_t>(tile) * chunks + chunk) * stage_size;
    T* const to = stages + (step & 1) * stage_size;
#pragma unroll 2
    for (int e = thread * kVector; e < stage_size; e += Shape::kThreads * kVector) copy_async<16>(to + e, from + e);
    copies_commit();
  };

  Visit<T, kTile> visit(view.values, finite, query_values[live / 2], lane, static_cast<int>(gridDim.y),
                        static_cast<int>(blockIdx.y));
  unsigned told = kWantsLeft | kWantsRight | kAlive;
  if (visit.tile >= 0) stage(0, 0, visit.tile, 0);
  copies_wait();
  __syncthreads();

  T* group_bounds = bounds + group * kQ * Shape::kSplits;
  int chunk = 0;
  int visited = 0;
  bool alive = true;
#pragma unroll 1
  for (int step = 0; visit.tile >= 0; ++step) {
    // Either the last chunk is at hand, or nobody wants to see the rest of this tile.
    const bool over = (told & kAlive) == 0;
    const bool leaves = over || chunk == chunks - 1;
    const int tile = visit.tile;
    const int next_tile = leaves ? visit.next(told, query_values[live / 2]) : tile;
    const int next_chunk = leaves ? 0 : chunk + 1;
    if (next_tile >= 0) stage(step + 1, visited + leaves, next_tile, next_chunk);

    if (chunk == 0) {
      search.clear_sums();
      alive = true;
    }
    if (!over && alive) {
      search.accumulate(stages + (step & 1) * stage_size + column * pitch,
                        queries + chunk * depth * kQueries + group * kQ,
                        chunk == chunks - 1 ? dim - chunk * depth : depth, pitch);
      if (leaves) {
        search.offer(tile * kTile + column, values + (visited & 1) * kTile + column, query_values + group * kQ,
                     self + group * kQ, k);
      } else {
        alive = search.alive();
      }
    }
    unsigned tells = alive || leaves ? kAlive : 0;
#pragma unroll
    for (int i = 0; i < kQ; ++i) tells |= visit.wants(query_values[group * kQ + i], search.bound[i]);
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
    visit.tile = next_tile;
    chunk = next_chunk;
  }

  search.lay_out(stages, group, split);
  __syncthreads();
#pragma unroll 1
  for (int i = split; i < kQ; i += Shape::kSplits) {
    const SmallestList<T, kRegisters> list = search.taken(stages, group, i);
    const int own = group * kQ + i;
    if (parameters.lists == nullptr) {
      const T kth = list.rank(k - 1);
      if (lane == 0) radius[own] = kth;
    } else if (own < live) {
      const int64_t query = view.entry * problem.queries + view.first_query + own;
      T* const to = parameters.lists + (query * gridDim.y + blockIdx.y) * kRegisters * kWarp + lane;
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) to[r * kWarp] = list.at[r];
    }
  }
  if (parameters.lists != nullptr) return;
  __syncthreads();

  for (int i = warp; i < live; i += Shape::kWarps) view.answer(i, query_values[i], self[i], radius[i], lane);
}

constexpr int kMergeThreads = 256;
constexpr int kMerged = kMergeThreads / kWarp;  // queries of a block

// A warp for each query whose candidates several blocks have shared: blockIdx.x = batch entry * tiles + tile.
template <typename T, int kRegisters>
__global__ void __launch_bounds__(kMergeThreads)
    knn_merge_kernel(const LargeParameters<T> parameters, int tiles, int splits) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int i = static_cast<int>(threadIdx.x) / kWarp;
  const SortedView<T> view(parameters.problem, parameters.refs, parameters.queries, tiles, kMerged);
  if (i >= view.live) return;
  const int64_t query = view.entry * parameters.problem.queries + view.first_query + i;
  const T* from = parameters.lists + query * splits * kRegisters * kWarp + lane;
  constexpr int kAtOnce = 4;  // chains of merges that do not wait for each other
  SmallestList<T, kRegisters> all[kAtOnce];
#pragma unroll
  for (int u = 0; u < kAtOnce; ++u) all[u].clear();
#pragma unroll 1
  for (int s = 0; s < splits; s += kAtOnce) {
    SmallestList<T, kRegisters> more[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      more[u].clear();
      if (s + u < splits) {
#pragma unroll
        for (int r = 0; r < kRegisters; ++r) more[u].at[r] = from[(u * kRegisters + r) * kWarp];
      }
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) all[u].merge(more[u], lane);
    from += kAtOnce * kRegisters * kWarp;
  }
  all[0].merge(all[1], lane);
  all[2].merge(all[3], lane);
  all[0].merge(all[2], lane);
  view.answer(i, view.query_value(i), view.self_of(i), all[0].rank(static_cast<int>(parameters.problem.k) - 1), lane);
}

// --- Host side ------------------------------------------------------------------------------------------------------
template <typename Shape, int kRegisters>
struct LargeKernel {
  using T = typename Shape::T;
  // Candidate tiles of a block at least, where several share its queries: fewer would not be worth the merging.
  static constexpr int64_t kLeastTiles = 2;
  static constexpr int64_t kMostSplits = 64;

  static int64_t tiles(const KnnProblem<T>& p) { return (p.queries + Shape::kQueries - 1) / Shape::kQueries; }
  static size_t shared_bytes(const KnnProblem<T>& p) {
    const int dim = static_cast<int>(p.dim);
    return LargeLayout<Shape, kRegisters>(dim, Shape::depth_for(dim)).bytes;
  }
  // How many blocks share each tile of queries: as many as the machine has room for at once.
  static int64_t splits(const KnnProblem<T>& p, const Device& device) {
    const int64_t room = int64_t{Shape::kBlocks} * device.multiprocessors / (p.batch * tiles(p));
    const int64_t most = std::min((p.refs + Shape::kTile - 1) / Shape::kTile / kLeastTiles, kMostSplits);
    return std::max<int64_t>(std::min(room, most), 1);
  }
  static int64_t blocks(const KnnProblem<T>& p, const Device& device) { return p.batch * tiles(p) * splits(p, device); }
  // Elements of the lists that the blocks leave.
  static int64_t list_elements(const KnnProblem<T>& p, const Device& device) {
    const int64_t shared_by = splits(p, device);
    return shared_by > 1 ? p.batch * p.queries * shared_by * kRegisters * kWarp : 0;
  }

  static Status launch(LargeParameters<T> parameters, const Device& device, Workspace& workspace, cudaStream_t stream) {
    const KnnProblem<T>& p = parameters.problem;
    const auto by = static_cast<unsigned>(splits(p, device));
    if (p.batch * tiles(p) > INT32_MAX) return {"knn_large_kernel", kTooManyBlocks};
    parameters.tiles = static_cast<int>(tiles(p));
    if (by > 1) parameters.lists = workspace.take<T>(list_elements(p, device));
    const Status status =
        status_of("knn_large_kernel", launch_kernel(knn_large_kernel<Shape, kRegisters>,
                                                    dim3(static_cast<unsigned>(p.batch * tiles(p)), by),
                                                    dim3(Shape::kThreads), shared_bytes(p), stream, parameters));
    if (by == 1 || status.error != nullptr) return status;
    const int64_t merges = (p.queries + kMerged - 1) / kMerged;
    return status_of(
        "knn_merge_kernel",
        launch_kernel(knn_merge_kernel<T, kRegisters>, dim3(static_cast<unsigned>(p.batch * merges)),
                      dim3(kMergeThreads), 0, stream, parameters, static_cast<int>(merges), static_cast<int>(by)));
  }
};

template <typename T, int kRegisters>
int64_t list_elements(const KnnProblem<T>& problem, const Device& device, int number) {
  int64_t elements = 0;
  if (number < 0) number = tile_by_rule<LargeKernel, T, kRegisters>(problem, device);
  with_variant<kTiles<T, kRegisters>>(number, [&]<int kNumber>() {
    elements = LargeKernel<Tile<T, kNumber>, kRegisters>::list_elements(problem, device);
  });
  return elements;
}

// Of a chunk of the staged references; the same for all variants.
template <typename T>
int stage_depth(const KnnProblem<T>& problem) {
  return Tile<T, 0>::depth_for(static_cast<int>(problem.dim));
}

}  // namespace

template <typename T>
bool large_fits(const KnnProblem<T>& problem, const Device& device, int variant) {
  const size_t bytes = problem.k <= kWarp ? tile_bytes<LargeKernel, T, 1>(variant, problem)
                                          : tile_bytes<LargeKernel, T, 4>(variant, problem);
  return bytes <= device.shared_bytes_per_block;
}

template <typename T>
size_t large_workspace_bytes(const KnnProblem<T>& problem, const Device& device, int variant) {
  Workspace workspace(nullptr);
  static_cast<void>(SortedProblem<T>(problem, workspace, stage_depth(problem)));
  workspace.take<T>(problem.k <= kWarp ? list_elements<T, 1>(problem, device, variant)
                                       : list_elements<T, 4>(problem, device, variant));
  return workspace.used();
}

template <typename T>
Status launch_large(const KnnProblem<T>& problem, const Device& device, void* workspace, cudaStream_t stream,
                    int variant) {
  Workspace pieces(workspace);
  const SortedProblem<T> sorted(problem, pieces, stage_depth(problem));
  const Status status = sorted.sort(stream);
  if (status.error != nullptr) return status;
  const LargeParameters<T> parameters{problem, sorted.refs, sorted.queries};
  return problem.k <= kWarp
             ? launch_tile<LargeKernel, T, 1>(variant, problem, device, parameters, device, pieces, stream)
             : launch_tile<LargeKernel, T, 4>(variant, problem, device, parameters, device, pieces, stream);
}

template bool large_fits(const KnnProblem<float>&, const Device&, int);
template bool large_fits(const KnnProblem<double>&, const Device&, int);
template size_t large_workspace_bytes(const KnnProblem<float>&, const Device&, int);
template size_t large_workspace_bytes(const KnnProblem<double>&, const Device&, int);
template Status launch_large(const KnnProblem<float>&, const Device&, void*, cudaStream_t, int);
template Status launch_large(const KnnProblem<double>&, const Device&, void*, cudaStream_t, int);

}  // namespace qcse::cuda

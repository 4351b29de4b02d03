#include "small.h"

#include "knn/digamma_table.h"
#include "tile.h"

namespace qcse::cuda {
namespace {

// Shared memory of a block. `padded` is refs rounded up to whole tiles.
template <typename Shape, int kRegisters>
struct SmallLayout {
  using T = typename Shape::T;
  static constexpr size_t kSlots = static_cast<size_t>(Shape::kWarps) * Shape::kQueriesPerWarp * kRegisters * kWarp;

  size_t queries, query_values, self, values, not_finite, stages, bounds, radius, counts, candidates, shares, bytes;
  size_t padded, words, stage_elements, share_count;

  __host__ __device__ SmallLayout(int dim, int refs, int depth) {
    padded = static_cast<size_t>(refs + Shape::kTile - 1) / Shape::kTile * Shape::kTile;
    words = padded / 32;
    const size_t stage = 2 * static_cast<size_t>(Shape::stage_for(depth));
    stage_elements = stage > kSlots ? stage : kSlots;  // the lists are merged where candidates were staged
    share_count = refs < kDigammas ? static_cast<size_t>(refs) + 1 : 0;
    SharedLayout layout;
    queries = layout.add<T>(static_cast<size_t>(dim) * Shape::kQueries);
    query_values = layout.add<T>(Shape::kQueries);
    self = layout.add<int>(Shape::kQueries);
    values = layout.add<T>(padded);
    not_finite = layout.add<unsigned>(words);
    stages = layout.add<T>(stage_elements);
    bounds = layout.add<T>(2 * Shape::kQueries * Shape::kSplits);
    radius = layout.add<T>(Shape::kQueries);
    counts = layout.add<int>(Shape::kQueries);
    candidates = layout.add<int>(1);
    shares = layout.add<double>(share_count);
    bytes = layout.bytes();
  }
};

// One block for each tile of queries: blockIdx.x = batch entry * tiles + tile.
template <typename Shape, int kRegisters>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    knn_small_kernel(const KnnProblem<typename Shape::T> problem, int tiles, int depth) {
  using T = typename Shape::T;
  constexpr int kQueries = Shape::kQueries;
  constexpr int kTile = Shape::kTile;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = __shfl_sync(kFullWarp, thread / kWarp, 0);  // tells the compiler that it is the same in every lane
  const int lane = thread % kWarp;
  const int group = warp / Shape::kSplits;
  const int split = warp % Shape::kSplits;
  const int refs = static_cast<int>(problem.refs);
  const int dim = static_cast<int>(problem.dim);
  const int k = static_cast<int>(problem.k);

  const int64_t entry = blockIdx.x / static_cast<unsigned>(tiles);
  const int64_t first_query = static_cast<int64_t>(blockIdx.x % static_cast<unsigned>(tiles)) * kQueries;
  const int64_t left = problem.queries - first_query;
  const int live = left < kQueries ? static_cast<int>(left) : kQueries;
  const int64_t at = entry * problem.queries + first_query;  // of the block's first query in [batch, queries]
  const T* const query_rows = problem.states + at * dim;
  const T* const ref_rows = problem.ref_states + entry * refs * dim;
  const T* const ref_values = problem.ref_values + entry * refs;

  const SmallLayout<Shape, kRegisters> layout(dim, refs, depth);
  T* const queries = shared_array<T>(layout.queries, static_cast<size_t>(dim) * kQueries);  // [dim][kQueries]
  T* const query_values = shared_array<T>(layout.query_values, kQueries);                   // NaN for what is no query
  int* const self = shared_array<int>(layout.self, kQueries);
  T* const values = shared_array<T>(layout.values, layout.padded);
  unsigned* const not_finite = shared_array<unsigned>(layout.not_finite, layout.words);  // a bit for each candidate
  T* const stages = shared_array<T>(layout.stages, layout.stage_elements);
  T* const bounds = shared_array<T>(layout.bounds, 2 * kQueries * Shape::kSplits);
  T* const radius = shared_array<T>(layout.radius, kQueries);
  int* const counts = shared_array<int>(layout.counts, kQueries);
  int* const candidates = shared_array<int>(layout.candidates, 1);
  // digamma(count + 1) / dim of all counts, where they are few: computed while the first candidates are on their way.
  double* const shares = shared_array<double>(layout.shares, layout.share_count);

  const int pitch = Shape::pitch_for(depth);
  const int chunks = (dim + depth - 1) / depth;
  const auto stage = [&](int step, int tile, int chunk) {
    const int rows = refs - tile * kTile;
    const int first_dim = chunk * depth;
    stage_chunk<Shape>(stages + (step & 1) * Shape::stage_for(depth),
                       ref_rows + static_cast<int64_t>(tile) * kTile * dim, dim, rows, first_dim,
                       dim - first_dim < depth ? dim - first_dim : depth, pitch);
  };
#pragma unroll 1
  for (int j = thread; j < static_cast<int>(layout.padded); j += Shape::kThreads) {
    if (j < refs) {
      copy_async<sizeof(T)>(values + j, ref_values + j);
    } else {
      values[j] = not_a_number<T>();
    }
  }
  stage(0, 0, 0);

#pragma unroll 1
  for (int i = warp; i < kQueries; i += Shape::kWarps) {
    const T value = i < live ? problem.values[at + i] : not_a_number<T>();
    bool bad = !is_finite(value);
#pragma unroll 1
    for (int d = lane; d < dim; d += kWarp) {
      const T x = i < live ? query_rows[i * dim + d] : T(0);
      queries[d * kQueries + i] = x;
      bad |= !is_finite(x);
    }
    bad = __any_sync(kFullWarp, bad);
    if (lane == 0) {
      query_values[i] = bad ? not_a_number<T>() : value;
      int64_t own = -1;
      if (i < live && problem.self_join) own = first_query + i;
      if (i < live && problem.self_index != nullptr) own = problem.self_index[at + i];
      self[i] = own >= 0 && own < refs ? static_cast<int>(own) : -1;
      counts[i] = 0;
    }
  }
  if (thread == 0) *candidates = 0;
#pragma unroll 1
  for (int n = thread; n < static_cast<int>(layout.share_count); n += Shape::kThreads) {
    shares[n] = kDigamma[n] / static_cast<double>(dim);
  }
  copies_wait();
  __syncthreads();

  WarpSearch<Shape, kRegisters> search;
  search.start(lane);
#pragma unroll
  for (int i = 0; i < Shape::kQueriesPerWarp; ++i) {
    if (!is_finite(query_values[group * Shape::kQueriesPerWarp + i])) search.close(i);
  }
  const int steps = static_cast<int>(layout.padded) / kTile * chunks;
  const int column = split * kWarp * Shape::kCandidatesPerLane;  // the warp's first candidate within a tile
  T* group_bounds = bounds + group * Shape::kQueriesPerWarp * Shape::kSplits;
  int tile = 0;
  int chunk = 0;
  bool alive = true;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const bool complete = chunk == chunks - 1;
    const int next_tile = complete ? tile + 1 : tile;
    const int next_chunk = complete ? 0 : chunk + 1;
    const bool more = step + 1 < steps;
    if (more) stage(step + 1, next_tile, next_chunk);
    if (chunk == 0) {
      search.clear_sums();
      alive = true;
    }
    // The groups take turns to look for rows that are not finite, for which they need the whole sum.
    const bool inspects = tile % Shape::kGroups == group;
    if (alive || inspects) {
      search.accumulate(stages + (step & 1) * Shape::stage_for(depth) + column * pitch,
                        queries + chunk * depth * kQueries + group * Shape::kQueriesPerWarp,
                        complete ? dim - chunk * depth : depth, pitch);
      if (!complete) alive = search.alive();
    }
    if (complete) {
      const int first = tile * kTile + column;
      if (inspects) {
        search.find_not_finite(not_finite + first / 32, ref_rows + static_cast<int64_t>(first) * dim, refs - first,
                               dim);
      }
      if (alive) {
        search.offer(first, values + first, query_values + group * Shape::kQueriesPerWarp,
                     self + group * Shape::kQueriesPerWarp, k);
      }
    }
    // Bounds fall ever more slowly, so the warps tell each other after 1, 2, 4, 8... tiles. Two sets of slots take
    // turns: whoever writes one has passed a barrier since it was last read.
    const bool exchange = Shape::kSplits > 1 && complete && more && (next_tile & tile) == 0;
    if (exchange) search.publish(group_bounds, split, k);
    copies_wait();
    __syncthreads();
    if (exchange) {
      search.adopt(group_bounds);
      group_bounds = bounds + (group_bounds < bounds + kQueries * Shape::kSplits ? kQueries * Shape::kSplits : 0) +
                     group * Shape::kQueriesPerWarp * Shape::kSplits;
    }
    tile = next_tile;
    chunk = next_chunk;
  }

  search.lay_out(stages, group, split);
  // From here on a value is NaN exactly where its row is no candidate.
  int finite = 0;
  for (int j = thread; j < static_cast<int>(layout.padded); j += Shape::kThreads) {
    const bool candidate = is_finite(values[j]) && (not_finite[j / 32] >> (j % 32) & 1) == 0;
    if (!candidate) values[j] = not_a_number<T>();
    finite += candidate;
  }
  finite = __reduce_add_sync(kFullWarp, finite);
  if (lane == 0) atomicAdd(candidates, finite);
  __syncthreads();
#pragma unroll 1
  for (int i = split; i < Shape::kQueriesPerWarp; i += Shape::kSplits) {
    const T kth = search.taken(stages, group, i).rank(k - 1);
    if (lane == 0) radius[group * Shape::kQueriesPerWarp + i] = kth;
  }
  __syncthreads();

  // Counting: a warp takes two queries where there are as many, otherwise a slice of the candidates of one.
  constexpr int kCounted = kQueries > Shape::kWarps ? kQueries / Shape::kWarps : 1;
  constexpr int kSlices = Shape::kWarps * kCounted / kQueries;
  const int counted = warp / kSlices * kCounted;
  T own_value[kCounted], own_radius[kCounted];
  int inside[kCounted];
#pragma unroll
  for (int i = 0; i < kCounted; ++i) {
    own_value[i] = query_values[counted + i];
    own_radius[i] = radius[counted + i];
    inside[i] = 0;
  }
#pragma unroll 4
  for (int j = warp % kSlices * kWarp + lane; j < static_cast<int>(layout.padded); j += kSlices * kWarp) {
    const T value = values[j];
#pragma unroll
    for (int i = 0; i < kCounted; ++i) inside[i] += magnitude(own_value[i] - value) < own_radius[i];
  }
#pragma unroll
  for (int i = 0; i < kCounted; ++i) {
    const int sum = __reduce_add_sync(kFullWarp, inside[i]);
    if (lane == 0) atomicAdd(&counts[counted + i], sum);
  }
  __syncthreads();

  if (thread < live) {
    const int own = self[thread];
    const T value = query_values[thread];
    const bool self_counts = own >= 0 && is_finite(values[own]);
    T answer = not_a_number<T>();
    int64_t count = -1;
    double share = 0;
    if (is_finite(value) && *candidates - self_counts >= k) {
      answer = radius[thread];
      count = counts[thread] - (self_counts && magnitude(value - values[own]) < answer);
      share = layout.share_count > 0 ? shares[count] : digamma_by_table(count + 1) / static_cast<double>(dim);
    }
    if (problem.radius != nullptr) problem.radius[at + thread] = answer;
    if (problem.count != nullptr) problem.count[at + thread] = count;
    if (problem.entropy != nullptr) {
      problem.entropy[at + thread] = static_cast<T>(entropy_with(share, static_cast<double>(answer), problem.offset));
    }
  }
}

template <typename Shape, int kRegisters>
struct SmallKernel {
  using T = typename Shape::T;

  static int64_t blocks(const KnnProblem<T>& p, const Device& = {}) {
    return p.batch * ((p.queries + Shape::kQueries - 1) / Shape::kQueries);
  }
  static size_t shared_bytes(const KnnProblem<T>& p) {
    const int dim = static_cast<int>(p.dim);
    return SmallLayout<Shape, kRegisters>(dim, static_cast<int>(p.refs), Shape::depth_for(dim)).bytes;
  }
  static Status launch(const KnnProblem<T>& p, cudaStream_t stream) {
    if (blocks(p) > INT32_MAX) return {"knn_small_kernel", kTooManyBlocks};
    const int tiles = static_cast<int>((p.queries + Shape::kQueries - 1) / Shape::kQueries);
    return status_of("knn_small_kernel",
                     launch_kernel(knn_small_kernel<Shape, kRegisters>, dim3(static_cast<unsigned>(blocks(p))),
                                   dim3(Shape::kThreads), shared_bytes(p), stream, p, tiles,
                                   Shape::depth_for(static_cast<int>(p.dim))));
  }
};

}  // namespace

template <typename T>
bool small_fits(const KnnProblem<T>& problem, const Device& device, int variant) {
  const size_t bytes = problem.k <= kWarp ? tile_bytes<SmallKernel, T, 1>(variant, problem)
                                          : tile_bytes<SmallKernel, T, 4>(variant, problem);
  return problem.refs <= kSmallMaxRefs && bytes <= device.shared_bytes_per_block;
}

template <typename T>
Status launch_small(const KnnProblem<T>& problem, const Device& device, cudaStream_t stream, int variant) {
  return problem.k <= kWarp ? launch_tile<SmallKernel, T, 1>(variant, problem, device, problem, stream)
                            : launch_tile<SmallKernel, T, 4>(variant, problem, device, problem, stream);
}

template bool small_fits(const KnnProblem<float>&, const Device&, int);
template bool small_fits(const KnnProblem<double>&, const Device&, int);
template Status launch_small(const KnnProblem<float>&, const Device&, cudaStream_t, int);
template Status launch_small(const KnnProblem<double>&, const Device&, cudaStream_t, int);

}  // namespace qcse::cuda

// Points in ascending order of value: what the kernels for many references share. Neighbours in value lie side by side
// there, so that a block visits candidate tiles outward from its queries' values and stops a side where the gap in
// value alone rules out all that is left, and the count is two binary searches.
#pragma once
#include "base/cuda/device.h"
#include "knn/digamma_table.h"
#include "launch.h"
#include "sort.h"

namespace qcse::cuda {

// --- The sorted sets, in the workspace ------------------------------------------------------------------------------
// One set of points in ascending order of value; rows that are not finite have the key +inf and come last.
template <typename T>
struct SortedSet {
  T* keys = nullptr;     // [batch, rows], as the points came; of a single batch entry
  int* rows = nullptr;   // [batch, rows], 0, 1, 2...
  T* values = nullptr;   // [batch, rows], sorted
  int* order = nullptr;  // [batch, rows], the row at each sorted place
  int64_t count = 0;     // rows of a batch entry
  // Of several batch entries, in place of `keys`: as the points came, and sorted.
  typename Joint<T>::Key* joint = nullptr;
  typename Joint<T>::Key* joint_sorted = nullptr;
};

// Of a stage, the piece of the references that a block of the large kernel copies at a time.
inline constexpr int kStageRows = 256;
// Lanes read one dimension of consecutive rows: an odd pitch keeps them in different banks.
__host__ __device__ constexpr int stage_pitch(int depth) { return depth | 1; }

// The references once more, in sorted order: row after row or, if `depth` is not 0, as stages, [batch, tiles, chunks,
// kStageRows, pitch], which take `depth` dimensions each. What is no finite reference, no dimension or a pitch's rest
// is 0 there.
template <typename T>
struct SortedRefs {
  SortedSet<T> set;
  T* stages = nullptr;
  int depth = 0, chunks = 0;
  int tiles = 0;          // of a batch entry
  T* states = nullptr;    // [batch, stride, dim]
  int64_t stride = 0;     // rows, rounded up so that every batch entry starts at a multiple of 16 bytes
  int* place = nullptr;   // [batch, rows], the sorted place of each row; null where nobody asks
  int* finite = nullptr;  // [batch], how many rows are finite
};

template <typename T>
struct SortedProblem {
  KnnProblem<T> problem;
  SortedRefs<T> refs;
  SortedSet<T> queries;  // the references' own where a set is searched in itself
  void* sorting = nullptr;
  size_t sorting_bytes = 0;

  // depth: 0 for the references row after row.
  SortedProblem(const KnnProblem<T>& problem, Workspace& workspace, int depth = 0);
  // Enqueues the sorting.
  Status sort(cudaStream_t stream) const;
};

// --- In the kernels -------------------------------------------------------------------------------------------------
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

// The same by one lane alone.
template <typename Reached>
__device__ __forceinline__ int first_place(int count, const Reached& reached) {
  int low = 0;
  while (count > 0) {  // the answer is in [low, low + count]
    const int half = count / 2;
    const bool later = !reached(low + half);
    low = later ? low + half + 1 : low;
    count = later ? count - half - 1 : half;
  }
  return low;
}

// One batch entry as a block sees it: its queries are `live` places of the sorted order, from `first_query` on.
template <typename T>
struct SortedView {
  const KnnProblem<T>& problem;
  const SortedRefs<T>& refs;
  const SortedSet<T>& queries;
  int64_t entry, first_query;
  int live, finite;  // queries that exist; finite references
  const int* order;  // the block's queries: rows of the problem
  const T* values;   // of the references, sorted
  const T* states;   // likewise

  __device__ __forceinline__ SortedView(const KnnProblem<T>& problem_, const SortedRefs<T>& refs_,
                                        const SortedSet<T>& queries_, int tiles, int queries_per_block)
      : problem(problem_), refs(refs_), queries(queries_) {
    // blockIdx.x = batch entry * tiles + tile
    entry = blockIdx.x / static_cast<unsigned>(tiles);
    first_query = static_cast<int64_t>(blockIdx.x % static_cast<unsigned>(tiles)) * queries_per_block;
    const int64_t left_over = problem.queries - first_query;
    live = left_over < queries_per_block ? static_cast<int>(left_over) : queries_per_block;
    order = queries.order + entry * problem.queries + first_query;
    values = refs.set.values + entry * problem.refs;
    states = refs.states + entry * refs.stride * problem.dim;
    finite = refs.finite[entry];
  }

  // Of the block's i-th query; +inf where it does not exist or is not finite.
  __device__ __forceinline__ T query_value(int i) const {
    return i < live ? queries.values[entry * problem.queries + first_query + i] : infinity<T>();
  }
  // [dim], of a query that exists.
  __device__ __forceinline__ const T* query_row(int i) const { return row(order[i]); }
  __device__ __forceinline__ const T* row(int number) const {
    return problem.states + (entry * problem.queries + number) * problem.dim;
  }
  // The sorted place of the reference that is the i-th query itself, or -1; a row that is not finite is nobody's self.
  __device__ __forceinline__ int self_of(int i) const {
    int place = -1;
    if (i < live && problem.self_join) place = static_cast<int>(first_query) + i;
    if (i < live && problem.self_index != nullptr) {
      const int64_t own = problem.self_index[entry * problem.queries + order[i]];
      if (own >= 0 && own < problem.refs) place = refs.place[entry * problem.refs + own];
    }
    return place < finite ? place : -1;
  }

  // Writes what the caller asked for of the i-th query, whose value and self are as above; a warp works on a query.
  // kth: its k-th smallest key, if there are k candidates.
  __device__ __forceinline__ void answer(int i, T value, int self, T kth, int lane) const {
    answer_by(i, value, self, kth, lane == 0, [&](const auto& reached) { return first_place(finite, lane, reached); });
  }
  // A lane works on a query of its own, which need not exist.
  __device__ __forceinline__ void answer_alone(int i, T value, int self, T kth) const {
    answer_by(i, value, self, kth, i < live, [&](const auto& reached) { return first_place(finite, reached); });
  }
  template <typename First>
  __device__ __forceinline__ void answer_by(int i, T value, int self, T kth, bool writes, const First& first) const {
    T radius = not_a_number<T>();
    int64_t count = -1;
    if (is_finite(value) && finite - (self >= 0) >= problem.k) {
      radius = kth;
      count = 0;
      if (radius > 0) {
        const int begin = first([&](int place) {
          const T other = values[place];
          return other >= value || value - other < radius;
        });
        const int end = first([&](int place) {
          const T other = values[place];
          return other > value && !(other - value < radius);
        });
        count = end - begin - (self >= 0 && magnitude(value - values[self]) < radius);
      }
    }
    if (writes) {
      const double share = count < 0 ? 0.0 : digamma_by_table(count + 1) / static_cast<double>(problem.dim);
      const int64_t at = entry * problem.queries + order[i];
      if (problem.radius != nullptr) problem.radius[at] = radius;
      if (problem.count != nullptr) problem.count[at] = count;
      if (problem.entropy != nullptr) {
        problem.entropy[at] = static_cast<T>(entropy_with(share, static_cast<double>(radius), problem.offset));
      }
    }
  }
};

// What a warp tells the block at the end of a step, one bit each.
inline constexpr unsigned kWantsLeft = 1;   // the next tile on the left may hold a neighbour of one of its queries
inline constexpr unsigned kWantsRight = 2;  // likewise on the right

// The visit of candidate tiles, which every warp of the block follows in step: the home tile, then the nearer of the
// next tiles on either side. The far side of a gap stays out of reach, for bounds only fall. Blocks that share queries
// take turns at the tiles: each visits those whose number leaves the rest `turn` when divided by `stride`.
template <typename T, int kTile>
struct Visit {
  const T* values;  // sorted
  int tiles, tile;  // how many; the one at hand, -1 for none
  int left, right;  // the next one on either side
  int stride;
  T left_edge, right_edge;

  // middle: a value among the block's queries, here and below.
  __device__ __forceinline__ Visit(const T* values_, int finite, T middle, int lane, int stride_ = 1, int turn = 0)
      : values(values_), tiles((finite + kTile - 1) / kTile), stride(stride_) {
    const int place = first_place(finite, lane, [&](int place) { return values[place] >= middle; });
    const int home = place < finite ? place / kTile : tiles - 1;
    tile = home - (home + stride - turn) % stride;  // the last of the block's own up to there
    if (tile < 0) tile = turn < tiles ? turn : -1;
    left = tile - stride;
    right = tile + stride;
    left_edge = left >= 0 ? values[left * kTile + kTile - 1] : T(0);
    right_edge = right < tiles ? values[right * kTile] : T(0);
  }

  // The tile to go to, or -1. wanted: what all warps together told.
  __device__ __forceinline__ int next(unsigned wanted, T middle) {
    const bool may_left = left >= 0 && (wanted & kWantsLeft) != 0;
    const bool may_right = right < tiles && (wanted & kWantsRight) != 0;
    const bool goes_left = may_left && (!may_right || middle - left_edge <= right_edge - middle);
    const int to = goes_left ? left : may_right ? right : -1;
    if (goes_left) {
      left -= stride;
    } else if (may_right) {
      right += stride;
    }
    if (goes_left && left >= 0) left_edge = values[left * kTile + kTile - 1];
    if (!goes_left && may_right && right < tiles) right_edge = values[right * kTile];
    return to;
  }

  // Which sides a query still wants. Rounding keeps the order of gaps: behind the edge none is smaller than the gap to
  // the edge, which is negative where the query lies behind the edge itself. A bound of 0 wants nothing.
  __device__ __forceinline__ unsigned wants(T value, T bound) const {
    unsigned tells = 0;
    const bool open = bound > 0;
    if (open && left >= 0 && value - left_edge < bound) tells |= kWantsLeft;
    if (open && right < tiles && right_edge - value < bound) tells |= kWantsRight;
    return tells;
  }
};

}  // namespace qcse::cuda

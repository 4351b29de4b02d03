// The queries of one warp behind the screen (screened.cu): their lists, and the pairs that wait to be computed.
#pragma once
#include "screen.h"
#include "smallest.h"
#include "sorted.h"

namespace qcse::cuda {

struct Pair {
  int query;  // of the warp's 32
  int place;  // of the candidate in sorted order
};

// Pairs that a warp keeps until it has 32 to compute: fewer than 32 from before, and one more of each lane.
inline constexpr int kQueue = 2 * kWarp;

// What a warp keeps of its own, at offsets known to the compiler.
template <typename T, int kRegisters>
struct WarpLayout {
  size_t lists = 0, bounds = 0, limits = 0, errors = 0, norms = 0, values = 0, self = 0, queue = 0, bytes = 0;

  __host__ __device__ constexpr WarpLayout() {
    SharedLayout layout;
    lists = layout.add<T>(kWarp * kRegisters * kWarp);
    bounds = layout.add<T>(kWarp);
    limits = layout.add<float>(kWarp);
    errors = layout.add<float>(kWarp);
    norms = layout.add<float>(kWarp);
    values = layout.add<T>(kWarp);
    self = layout.add<int>(kWarp);
    queue = layout.add<Pair>(kQueue);
    bytes = layout.bytes();
  }
};

// What a warp knows of its 32 queries, in shared memory, and the pairs that the screen left it.
template <typename T, int kRegisters>
struct WarpQueries {
  // From this many keys for one query on, sorting and merging them together costs less than inserting each.
  static constexpr int kBatch = 10;
  // Queries whose sums a lane keeps side by side while it reads a candidate of the first tile.
  static constexpr int kTogether = 8;

  const SortedView<T>& view;
  int first;  // of the warp's queries within the block
  int lane;
  T scale;
  T* lists;              // [32][kRegisters][32], each in ascending order
  T* bounds;             // [32]: no key at or above this is wanted
  float* limits;         // [32]: no sum at or above this is of a wanted pair, for the tile at hand
  float* errors;         // [32]: e_x of screen.h
  float* norms;          // [32]: n_x
  T* values;             // [32]
  int* self;             // [32]
  Pair* queue;           // [kQueue]
  int queued = 0;        // how many; fewer than 32 between two calls
  float tile_error = 0;  // the largest e_y of the tile at hand

  __device__ __forceinline__ WarpQueries(const SortedView<T>& view_, int warp, int lane_, T scale_)
      : view(view_), first(warp * kWarp), lane(lane_), scale(scale_) {
    constexpr WarpLayout<T, kRegisters> kOwn;
    const size_t at = kOwn.bytes * warp;
    lists = shared_array<T>(at + kOwn.lists, kWarp * kRegisters * kWarp);
    bounds = shared_array<T>(at + kOwn.bounds, kWarp);
    limits = shared_array<float>(at + kOwn.limits, kWarp);
    errors = shared_array<float>(at + kOwn.errors, kWarp);
    norms = shared_array<float>(at + kOwn.norms, kWarp);
    values = shared_array<T>(at + kOwn.values, kWarp);
    self = shared_array<int>(at + kOwn.self, kWarp);
    queue = shared_array<Pair>(at + kOwn.queue, kQueue);
  }

  // Fills all of it, and hands out the shadows of -2 times the queries: keep(step, m, words) is called with the lane's
  // words for the queries 16 m to 16 m + 15.
  template <typename Keep>
  __device__ __forceinline__ void prepare(int dim, int steps, const Frame<T>& frame, const Keep& keep) const {
    const T value = view.query_value(first + lane);
    values[lane] = value;
    self[lane] = view.self_of(first + lane);
    bounds[lane] = is_finite(value) ? infinity<T>() : T(0);
    for (int e = lane; e < kWarp * kRegisters * kWarp; e += kWarp) lists[e] = infinity<T>();
    const int group = lane / 4;
    const int member = lane % 4;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const auto caster = [&](int i) {
        const bool casts = is_finite(__shfl_sync(kFullWarp, value, i));  // others want nothing
        return ShadowCaster<T>{casts ? view.query_row(first + i) : nullptr, dim, frame, -2.0f};
      };
      ShadowCaster<T> low = caster(16 * m + group);
      ShadowCaster<T> high = caster(16 * m + 8 + group);
      for (int at = 0; at < steps; ++at) {
        const int w = 8 * at + member;
        keep(at, m, Pack<unsigned, 4>{low.word(w), high.word(w), low.word(w + 4), high.word(w + 4)});
      }
      const Shadow shadows[2] = {low.shadow(steps), high.shadow(steps)};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (member != 0) continue;
        const int i = 16 * m + 8 * half + group;
        norms[i] = shadows[half].norm;
        errors[i] = shadows[half].error;
      }
    }
    __syncwarp();
  }

  // Before a tile with this error is screened: fills the limits. False where a query has not seen k candidates.
  __device__ __forceinline__ bool begin_tile(float error) {
    tile_error = error;
    const T bound = bounds[lane];
    limits[lane] = limit_for(lane, bound);
    __syncwarp();
    return __all_sync(kFullWarp, is_finite(bound));
  }
  __device__ __forceinline__ float limit_for(int query, T bound) const {
    return screen_limit(screen_reach(bound, scale, errors[query]), tile_error, norms[query]);
  }

  // Takes a key of each lane in `lanes` into the list of this query. The warp's lanes have read its bound, and see the
  // new one after a barrier of theirs.
  __device__ __forceinline__ void take(int query, unsigned lanes, T key) const {
    SmallestList<T, kRegisters> list;
    T* const slots = lists + query * kRegisters * kWarp + lane;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) list.at[r] = slots[r * kWarp];
    if (__popc(lanes) >= kBatch) {
      list.merge_sorted(sort_warp((lanes >> lane & 1) != 0 ? key : infinity<T>(), lane), lane);
    } else {
      do {
        list.insert(__shfl_sync(kFullWarp, key, __ffs(static_cast<int>(lanes)) - 1), lane);
        lanes &= lanes - 1;
      } while (lanes != 0);
    }
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) slots[r * kWarp] = list.at[r];
    const T bound = list.rank(static_cast<int>(view.problem.k) - 1);
    if (lane == 0) {
      bounds[query] = bound;
      limits[query] = limit_for(query, bound);
    }
  }

  // All pairs of the warp's queries and the `rows` candidates from this place on. At the beginning, when there are no
  // bounds yet, nearly all of them enter the lists.
  __device__ __forceinline__ void fill(int first_place, int rows) const {
    const int dim = static_cast<int>(view.problem.dim);
#pragma unroll 1
    for (int row = 0; row < rows && first_place + row < view.finite; row += kWarp) {
      const int place = first_place + row + lane;
      const bool exists = place < view.finite;
      const T* const b = view.states + static_cast<int64_t>(exists ? place : first_place) * dim;
      const T value = view.values[exists ? place : first_place];
#pragma unroll 1
      for (int q = 0; q < kWarp && first + q < view.live; q += kTogether) {
        const T* a[kTogether];
        T sum[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          a[i] = view.query_row(first + q + i < view.live ? first + q + i : first);
          sum[i] = 0;
        }
        for (int d = 0; d < dim; ++d) {
          const T candidate = b[d];
#pragma unroll
          for (int i = 0; i < kTogether; ++i) {
            const T difference = a[i][d] - candidate;
            sum[i] = fma_rn(difference, difference, sum[i]);
          }
        }
#pragma unroll 1
        for (int i = 0; i < kTogether; ++i) {
          const T root = sqrt_rn(sum[0]);
#pragma unroll
          for (int other = 0; other + 1 < kTogether; ++other) sum[other] = sum[other + 1];  // an index would cost more
          const int query = q + i;
          const T bound = bounds[query];
          const T gap = magnitude(values[query] - value);
          const bool wanted = exists && root < bound && gap < bound && place != self[query];
          const unsigned lanes = __ballot_sync(kFullWarp, wanted);
          __syncwarp();  // every lane has read the bound
          if (lanes != 0) take(query, lanes, larger(root, gap));
        }
        __syncwarp();
      }
    }
  }

  // One more pair of each lane that offers one; called by the whole warp.
  __device__ __forceinline__ void offer(bool offers, int query, int place) {
    // Values often decide where states do not: a look at the gap spares the queue what both rule out.
    const bool wanted = offers && magnitude(values[query] - view.values[place]) < bounds[query];
    const unsigned lanes = __ballot_sync(kFullWarp, wanted);
    if (wanted) queue[queued + __popc(lanes & ((1u << lane) - 1))] = {query, place};
    queued += __popc(lanes);
    if (queued >= kWarp) compute(kWarp);
  }

  // Computes the last `count` pairs of the queue, at most 32, and takes their keys into the lists.
  __device__ __forceinline__ void compute(int count) {
    const int dim = static_cast<int>(view.problem.dim);
    int query = -1;
    T key = infinity<T>();
    bool wanted = false;
    queued -= count;
    __syncwarp();  // every lane has queued its pair
    if (lane < count) {
      const Pair pair = queue[queued + lane];
      query = pair.query;
      const T bound = bounds[query];
      const T gap = magnitude(values[query] - view.values[pair.place]);
      if (gap < bound && pair.place != self[query]) {
        const T* const a = view.query_row(first + query);
        const T* const b = view.states + static_cast<int64_t>(pair.place) * dim;
        T sum = 0;
        for (int d = 0; d < dim; ++d) {
          const T difference = a[d] - b[d];
          sum = fma_rn(difference, difference, sum);
        }
        const T root = sqrt_rn(sum);
        wanted = root < bound;
        key = larger(root, gap);
      }
    }
    unsigned left = __ballot_sync(kFullWarp, wanted);
    __syncwarp();  // every lane has read its pair and its bound
    while (left != 0) {
      const int chosen = __shfl_sync(kFullWarp, query, __ffs(static_cast<int>(left)) - 1);
      const unsigned same = __ballot_sync(kFullWarp, wanted && query == chosen);
      left &= ~same;
      take(chosen, same, key);
    }
    __syncwarp();
  }
};

}  // namespace qcse::cuda

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

// What a warp keeps of its own, at offsets known to the compiler.
template <typename Shape, typename T, int kRegisters>
struct WarpLayout {
  size_t lists = 0, bounds = 0, reach = 0, errors = 0, norms = 0, values = 0, self = 0, queue = 0, queued = 0,
         bytes = 0;

  __host__ __device__ constexpr WarpLayout() {
    SharedLayout layout;
    lists = layout.add<T>(kWarp * kRegisters * kWarp);
    bounds = layout.add<T>(kWarp);
    reach = layout.add<float>(kWarp);
    errors = layout.add<float>(kWarp);
    norms = layout.add<float>(kWarp);
    values = layout.add<T>(kWarp);
    self = layout.add<int>(kWarp);
    queue = layout.add<Pair>(Shape::kQueue);
    queued = layout.add<int>(1);
    bytes = layout.bytes();
  }
};

// What a warp knows of its 32 queries, in shared memory, and the pairs that the screen left it.
template <typename Shape, typename T, int kRegisters>
struct WarpQueries {
  // From this many keys for one query on, sorting and merging them together costs less than inserting each.
  static constexpr int kBatch = 10;

  const SortedView<T>& view;
  int first;  // of the warp's queries within the block
  int lane;
  T scale;
  T* lists;       // [32][kRegisters][32], each in ascending order
  T* bounds;      // [32]: no key at or above this is wanted
  float* reach;   // [32]: t + e_x of screen.h, errors and norms likewise
  float* errors;  // [32]
  float* norms;   // [32]
  T* values;      // [32]
  int* self;      // [32]
  Pair* queue;    // [Shape::kQueue]
  int* queued;    // how many

  __device__ __forceinline__ WarpQueries(const SortedView<T>& view_, int warp, int lane_, T scale_)
      : view(view_), first(warp * kWarp), lane(lane_), scale(scale_) {
    constexpr WarpLayout<Shape, T, kRegisters> kOwn;
    const size_t at = kOwn.bytes * warp;
    lists = shared_array<T>(at + kOwn.lists, kWarp * kRegisters * kWarp);
    bounds = shared_array<T>(at + kOwn.bounds, kWarp);
    reach = shared_array<float>(at + kOwn.reach, kWarp);
    errors = shared_array<float>(at + kOwn.errors, kWarp);
    norms = shared_array<float>(at + kOwn.norms, kWarp);
    values = shared_array<T>(at + kOwn.values, kWarp);
    self = shared_array<int>(at + kOwn.self, kWarp);
    queue = shared_array<Pair>(at + kOwn.queue, Shape::kQueue);
    queued = shared_array<int>(at + kOwn.queued, 1);
  }

  // Fills all of it, and writes the shadows of -2 times the queries, [32][pitch].
  __device__ __forceinline__ void prepare(unsigned* shadows, int dim, int steps, const Frame<T>& frame) const {
    const int pitch = shadow_pitch(steps);
    const T value = view.query_value(first + lane);
    if (lane == 0) *queued = 0;
    values[lane] = value;
    self[lane] = view.self_of(first + lane);
    bounds[lane] = is_finite(value) ? infinity<T>() : T(0);
    for (int e = lane; e < kWarp * kRegisters * kWarp; e += kWarp) lists[e] = infinity<T>();
#pragma unroll 1
    for (int i = 0; i < kWarp; ++i) {
      unsigned* const to = shadows + i * pitch;
      Shadow shadow{0, infinity<float>()};  // of a query that wants nothing
      if (is_finite(__shfl_sync(kFullWarp, value, i))) {
        shadow = cast_shadow(view.query_row(first + i), dim, steps, frame, -2.0f, to, lane);
      } else {
        for (int w = lane; w < pitch; w += kWarp) to[w] = 0;
      }
      if (lane == i) {
        norms[i] = shadow.norm;
        errors[i] = shadow.error;
        reach[i] = screen_reach(bounds[i], scale, shadow.error);
      }
    }
    __syncwarp();
  }

  // Computes the last `count` pairs of `end` in the queue, at most 32, and takes their keys into the lists. The warp's
  // lanes have seen the queue, and see the new bounds afterwards.
  __device__ __forceinline__ void compute(int end, int count) const {
    const int dim = static_cast<int>(view.problem.dim);
    const int k = static_cast<int>(view.problem.k);
    int query = -1;
    T key = infinity<T>();
    bool wanted = false;
    if (lane < count) {
      const Pair pair = queue[end - count + lane];
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
    __syncwarp();  // every lane has read its bound
    while (left != 0) {
      const int leader = __ffs(static_cast<int>(left)) - 1;
      const int chosen = __shfl_sync(kFullWarp, query, leader);
      unsigned same = __ballot_sync(kFullWarp, wanted && query == chosen);
      left &= ~same;
      SmallestList<T, kRegisters> list;
      T* const slots = lists + chosen * kRegisters * kWarp + lane;
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) list.at[r] = slots[r * kWarp];
      if (__popc(same) >= kBatch) {
        list.merge_sorted(sort_warp((same >> lane & 1) != 0 ? key : infinity<T>(), lane), lane);
      } else {
        do {
          list.insert(__shfl_sync(kFullWarp, key, __ffs(static_cast<int>(same)) - 1), lane);
          same &= same - 1;
        } while (same != 0);
      }
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) slots[r * kWarp] = list.at[r];
      const T bound = list.rank(k - 1);
      if (lane == 0) {
        bounds[chosen] = bound;
        reach[chosen] = screen_reach(bound, scale, errors[chosen]);
      }
    }
    __syncwarp();
  }

  // Computes queued pairs, 32 at a time, until fewer than `keep` are left.
  __device__ __forceinline__ void drain(int keep) const {
    __syncwarp();
    int end = *queued;
    const bool more = end >= keep;
    while (end >= keep) {
      const int count = end < kWarp ? end : kWarp;
      compute(end, count);
      end -= count;
    }
    if (more && lane == 0) *queued = end;
    __syncwarp();
  }
};

}  // namespace qcse::cuda

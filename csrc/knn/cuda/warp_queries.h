// The queries of one warp behind the screen (screened.cu): their lists, and the pairs that wait to be computed.
#pragma once
#include "screen.h"
#include "smallest.h"
#include "sorted.h"

namespace qcse::cuda {

struct alignas(8) Pair {  // travels in one instruction
  int query;              // of the warp's 32
  int place;              // of the candidate in sorted order
};

// Pairs that a warp keeps until it has 32 to compute: fewer than 32 from before, and one more of each lane.
inline constexpr int kQueue = 2 * kWarp;

// The warp's lists lie side by side, each lane's in packs of 16 bytes: [packs][32 lanes][kSlots]. So a lane goes
// through the list of its own query by the widest instructions, all lanes do so at once, and no two meet in a bank.
template <typename T>
inline constexpr int kSlots = 16 / sizeof(T);
template <typename T>
__host__ __device__ constexpr int list_packs(int k) {
  return (k + kSlots<T> - 1) / kSlots<T>;
}

// What a warp keeps of its own; all but the lists at offsets known to the compiler.
template <typename T>
struct WarpLayout {
  size_t bounds = 0, limits = 0, errors = 0, norms = 0, values = 0, self = 0, rows = 0, scale = 0, tile_error = 0,
         senders = 0, queue = 0, lists = 0, bytes = 0;

  __host__ __device__ constexpr explicit WarpLayout(int k) {
    SharedLayout layout;
    bounds = layout.add<T>(kWarp);
    limits = layout.add<float>(kWarp);
    errors = layout.add<float>(kWarp);
    norms = layout.add<float>(kWarp);
    values = layout.add<T>(kWarp);
    self = layout.add<int>(kWarp);
    rows = layout.add<int>(kWarp);
    scale = layout.add<T>(1);
    tile_error = layout.add<float>(1);
    senders = layout.add<unsigned>(kWarp);
    queue = layout.add<Pair>(kQueue);
    lists = layout.add<T>(static_cast<size_t>(list_packs<T>(k)) * kWarp * kSlots<T>);
    bytes = layout.bytes();
  }
};

// What a warp knows of its 32 queries, in shared memory, and the pairs that the screen left it.
template <typename T, int kRegisters>
struct WarpQueries {
  // From this many keys for one query on, a warp sorts and merges them together at less cost than inserting each.
  static constexpr int kBatch = 10;
  // Queries whose sums a lane keeps side by side while it reads a candidate of the first tile.
  static constexpr int kTogether = 8;
  // Keys that a lane inserts on one way through its list. Of 32 pairs that 32 queries share by chance, hardly any query
  // has more than four.
  static constexpr int kKeys = 4;

  const SortedView<T>& view;
  int first;  // of the warp's queries within the block
  int lane;
  int packs;            // of a list
  T* lists;             // [packs][32][kSlots], each in ascending order
  T* bounds;            // [32]: no key at or above this is wanted
  float* limits;        // [32]: no sum at or above this is of a wanted pair, for the tile at hand
  float* errors;        // [32]: e_x of screen.h
  float* norms;         // [32]: n_x
  T* values;            // [32]
  int* self;            // [32]
  unsigned* senders;    // [32]: the lanes that have a key for it; none between two calls
  Pair* queue;          // [kQueue]
  int* rows;            // [32]: of the problem; of queries that exist
  T* scale;             // of the frame; like the next one a number, for which there is no register
  float* tile_error;    // the largest e_y of the tile at hand
  bool by_gap = false;  // whether pairs of the tile at hand are queued by their gap in value
  int queued = 0;       // how many; fewer than 32 between two calls

  __device__ __forceinline__ WarpQueries(const SortedView<T>& view_, size_t at, int warp, int lane_)
      : view(view_), first(warp * kWarp), lane(lane_) {
    const WarpLayout<T> own(static_cast<int>(view.problem.k));
    packs = list_packs<T>(static_cast<int>(view.problem.k));
    bounds = shared_array<T>(at + own.bounds, kWarp);
    limits = shared_array<float>(at + own.limits, kWarp);
    errors = shared_array<float>(at + own.errors, kWarp);
    norms = shared_array<float>(at + own.norms, kWarp);
    values = shared_array<T>(at + own.values, kWarp);
    self = shared_array<int>(at + own.self, kWarp);
    rows = shared_array<int>(at + own.rows, kWarp);
    scale = shared_array<T>(at + own.scale, 1);
    tile_error = shared_array<float>(at + own.tile_error, 1);
    senders = shared_array<unsigned>(at + own.senders, kWarp);
    queue = shared_array<Pair>(at + own.queue, kQueue);
    lists = shared_array<T>(at + own.lists, static_cast<size_t>(packs) * kWarp * kSlots<T>);
  }

  // Fills all of it, and hands out the shadows of -2 times the queries: keep(step, m, words) is called with the lane's
  // words for the queries 16 m to 16 m + 15.
  template <typename Keep>
  __device__ __forceinline__ void prepare(int dim, int steps, const Frame<T>& frame, const Keep& keep) const {
    const T value = view.query_value(first + lane);
    values[lane] = value;
    self[lane] = view.self_of(first + lane);
    rows[lane] = first + lane < view.live ? view.order[first + lane] : 0;
    senders[lane] = 0;
    if (lane == 0) *scale = frame.scale;
    if (lane == 0) *tile_error = 0;
    bounds[lane] = is_finite(value) ? infinity<T>() : T(0);
    for (int e = lane; e < packs * kWarp * kSlots<T>; e += kWarp) lists[e] = infinity<T>();
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

  // Before a tile with this error is screened: fills the limits. False where a query has not seen k candidates. least,
  // most: of the tile's values. A query too far from all of them wants nothing here, and where for every query either
  // all of them are near enough or none, the pairs' own gaps are left to be looked at when they are computed.
  __device__ __forceinline__ bool begin_tile(float error, T least, T most) {
    const T bound = bounds[lane];
    const T value = values[lane];
    const bool near = least - value < bound && value - most < bound;
    const bool all_near = most - value < bound && value - least < bound;
    by_gap = __any_sync(kFullWarp, near && !all_near);
    limits[lane] = near ? limit_for(lane, bound, error) : -infinity<float>();
    if (lane == 0) *tile_error = error;
    __syncwarp();
    return __all_sync(kFullWarp, is_finite(bound));
  }
  __device__ __forceinline__ float limit_for(int query, T bound, float error) const {
    return screen_limit(screen_reach(bound, *scale, errors[query]), error, norms[query]);
  }

  // The place of a query's element of this rank.
  __device__ __forceinline__ T* slot(int query, int rank) const {
    return lists + (rank / kSlots<T> * kWarp + query) * kSlots<T> + rank % kSlots<T>;
  }

  // Takes a key of each lane in `lanes` into the list of this query, by the whole warp. The warp's lanes have read its
  // bound, and see the new one after a barrier of theirs.
  __device__ __forceinline__ void take(int query, unsigned lanes, T key, int lane) const {
    SmallestList<T, kRegisters> list;
    list.clear();
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      if (r * kWarp + lane < packs * kSlots<T>) list.at[r] = *slot(query, r * kWarp + lane);
    }
    if (__popc(lanes) >= kBatch) {
      list.merge_sorted(sort_warp((lanes >> lane & 1) != 0 ? key : infinity<T>(), lane), lane);
    } else {
      do {
        list.insert(__shfl_sync(kFullWarp, key, __ffs(static_cast<int>(lanes)) - 1), lane);
        lanes &= lanes - 1;
      } while (lanes != 0);
    }
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      if (r * kWarp + lane < packs * kSlots<T>) *slot(query, r * kWarp + lane) = list.at[r];
    }
    const T bound = list.rank(static_cast<int>(view.problem.k) - 1);
    if (lane == 0) renew(query, bound);
  }
  __device__ __forceinline__ void renew(int query, T bound) const {
    bounds[query] = bound;
    limits[query] = limit_for(query, bound, *tile_error);
  }

  // Takes keys into the lists of all queries at once, each lane those of its own query. Each
  // key moves through the list, changing places with what is larger, one slot ahead of the key that follows it.
  __device__ __forceinline__ void take_own(T key) const {
    unsigned from = senders[lane];
    senders[lane] = 0;
    const bool changes = from != 0;
#pragma unroll 1
    while (__any_sync(kFullWarp, from != 0)) {
      T keys[kKeys];
#pragma unroll
      for (int i = 0; i < kKeys; ++i) {
        const T theirs = __shfl_sync(kFullWarp, key, __ffs(static_cast<int>(from)) - 1);
        keys[i] = from != 0 ? theirs : infinity<T>();
        from &= from - 1;
      }
      T* own = slot(lane, 0);
#pragma unroll 1
      for (int p = 0; p < packs; ++p) {
        auto pack = load_pack<kSlots<T>>(own);
#pragma unroll
        for (int s = 0; s < kSlots<T>; ++s) {
#pragma unroll
          for (int i = 0; i < kKeys; ++i) order(pack.at[s], keys[i]);
        }
        store_pack(own, pack);
        own += kWarp * kSlots<T>;
      }
    }
    if (changes) renew(lane, *slot(lane, static_cast<int>(view.problem.k) - 1));  // the others may want nothing
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
          if (lanes != 0) take(query, lanes, larger(root, gap), lane);
        }
        __syncwarp();
      }
    }
  }

  // One more pair of each lane that offers one; called by the whole warp.
  __device__ __forceinline__ void offer(bool offers, int query, int place) {
    // Values often decide where states do not: a look at the gap spares the queue what both rule out.
    bool wanted = offers;
    if (by_gap) [[unlikely]]
      wanted = offers && magnitude(values[query] - view.values[place]) < bounds[query];
    const unsigned lanes = __ballot_sync(kFullWarp, wanted);
    if (wanted) queue[queued + __popc(lanes & ((1u << lane) - 1))] = {query, place};
    queued += __popc(lanes);
    if (queued >= kWarp) compute(kWarp);
  }

  // Computes the last `count` pairs of the queue, at most 32, and takes their keys into the lists.
  __device__ __forceinline__ void compute(int count) {
    const int dim = static_cast<int>(view.problem.dim);
    int query = 0;
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
        const T* const a = view.row(rows[query]);
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
    if (wanted) atomicOr(senders + query, 1u << lane);
    __syncwarp();  // every lane has read its pair and its bound, and told whose key it has
    take_own(key);
    __syncwarp();
  }
};

}  // namespace qcse::cuda

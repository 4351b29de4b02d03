// The inner part of the exact kernels: a block compares its tile of queries with one staged tile of candidates after
// the other. A warp owns a few queries and a slice of every candidate tile; a lane owns a few candidates of the slice.
#pragma once
#include <type_traits>

#include "base/cuda/device.h"
#include "smallest.h"
#include "variants.h"

namespace qcse::cuda {

// The division of labour in a block. A candidate tile is 256 candidates wide in every shape, so warps that look at
// fewer candidates a lane share their queries with more other warps. kBlocks: blocks that share a multiprocessor's
// registers.
template <typename T_, int kWarps_, int kBlocks_, int kQueriesPerWarp_, int kCandidatesPerLane_>
struct TileShape {
  using T = T_;
  static constexpr int kQueriesPerWarp = kQueriesPerWarp_;
  static constexpr int kCandidatesPerLane = kCandidatesPerLane_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kTile = 256;
  static constexpr int kMostSplits = kTile / kWarp;
  static constexpr int kSplits = kTile / (kWarp * kCandidatesPerLane);  // warps that share a query
  static constexpr int kGroups = kWarps / kSplits;                      // warps that share a candidate
  static constexpr int kQueries = kGroups * kQueriesPerWarp;            // queries of the block
  static_assert(kGroups > 0 && kGroups * kSplits == kWarps && kQueries <= 32);
  // Dimensions staged at a time, as many as keeps two stages within about 50 KiB.
  static constexpr int kMaxDepth = sizeof(T) == 4 ? 24 : 12;

  // Dimensions of a chunk: equal shares, so that 17 dimensions are one chunk and 29 are two of 15.
  static constexpr int depth_for(int dim) {
    const int chunks = (dim + kMaxDepth - 1) / kMaxDepth;
    return (dim + chunks - 1) / chunks;
  }
  // A stage holds [kTile][pitch]. Lanes read one dimension of consecutive candidates: an odd pitch keeps them in
  // different banks.
  __host__ __device__ static constexpr int pitch_for(int depth) { return depth | 1; }
  __host__ __device__ static constexpr int stage_for(int depth) { return kTile * pitch_for(depth); }
};

// Of number kNumber in variants.h. In double precision there are only those of the rules, of half as many queries,
// because the registers hold fewer numbers.
template <typename T, int kNumber>
using Tile =
    TileShape<T, kExactVariants[kNumber].warps, kExactVariants[kNumber].blocks,
              (kExactVariants[kNumber].outer + sizeof(T) / 4 - 1) / (sizeof(T) / 4), kExactVariants[kNumber].inner>;

template <typename T, int kRegisters>
inline constexpr int kTiles = sizeof(T) == 4 && kRegisters == 1 ? kExact : kRuledExact;

// The shared memory of a block; without a number of the smallest of the rules' tiles.
template <template <typename, int> typename Kernel, typename T, int kRegisters>
size_t tile_bytes(int number, const KnnProblem<T>& problem) {
  size_t bytes = SIZE_MAX;
  with_variant<kTiles<T, kRegisters>>(number < 0 ? kRuledExact - 1 : number, [&]<int kNumber>() {
    bytes = Kernel<Tile<T, kNumber>, kRegisters>::shared_bytes(problem);
  });
  return bytes;
}

// The rules' choice: the first of their tiles, of 16, 32, 8 and 2 queries (in double 8, 16, 4 and 2), whose blocks
// occupy three quarters of the machine, as many to a multiprocessor as the tile is made for. Large tiles read the
// candidates less often, small ones give work to more of the GPU, and of two blocks on a multiprocessor one computes
// while the other waits.
template <template <typename, int> typename Kernel, typename T, int kRegisters>
int tile_by_rule(const KnnProblem<T>& problem, const Device& device) {
  int number = 0;
  while (number < kRuledExact - 1) {
    bool suits = false;
    with_variant<kRuledExact>(number, [&]<int kNumber>() {
      using Shape = Tile<T, kNumber>;
      using K = Kernel<Shape, kRegisters>;
      suits = Shape::kBlocks * (K::shared_bytes(problem) + kOfSystem) <= device.shared_bytes_per_block + kOfSystem &&
              4 * K::blocks(problem, device) >= int64_t{3} * Shape::kBlocks * device.multiprocessors;
    });
    if (suits) break;
    ++number;
  }
  return number;
}

// Launches Kernel<Tile<T, number>, kRegisters>, or of the tile that the rules choose.
template <template <typename, int> typename Kernel, typename T, int kRegisters, typename... Arguments>
Status launch_tile(int number, const KnnProblem<T>& problem, const Device& device, Arguments&&... arguments) {
  if (number < 0) number = tile_by_rule<Kernel, T, kRegisters>(problem, device);
  Status status{"launch", kNoSuchVariant};
  with_variant<kTiles<T, kRegisters>>(
      number, [&]<int kNumber>() { status = Kernel<Tile<T, kNumber>, kRegisters>::launch(arguments...); });
  return status;
}

// Starts the copy of one chunk of a candidate tile, [rows][dim] in global memory, to a stage; every thread of the block
// takes part. rows: of the tile that exist, the others become zero. first_dim: of the chunk, whose width is `here`.
template <typename Shape, typename T>
__device__ __forceinline__ void stage_chunk(T* stage, const T* tile, int dim, int rows, int first_dim, int here,
                                            int pitch) {
  constexpr int kVector = 16 / sizeof(T);
  const int thread = static_cast<int>(threadIdx.x);
  if (here == dim && pitch == dim && rows >= Shape::kTile && reinterpret_cast<uintptr_t>(tile) % 16 == 0) {
    for (int e = thread * kVector; e < Shape::kTile * dim; e += Shape::kThreads * kVector) {
      copy_async<16>(stage + e, tile + e);
    }
  } else {
    const int column = thread % kWarp;
    if (column < here) {  // a chunk is never wider than a warp
      for (int row = thread / kWarp; row < Shape::kTile; row += Shape::kWarps) {
        T* const to = stage + row * pitch + column;
        if (row < rows) {
          copy_async<sizeof(T)>(to, tile + static_cast<int64_t>(row) * dim + first_dim + column);
        } else {
          *to = 0;
        }
      }
    }
  }
  copies_commit();
}

// Keys at or above `bound` are ruled out where the sum of squares reaches this. For a bound whose square is a normal
// number or infinite, sum >= bound^2 implies sqrt(sum) >= bound, because the root of a rounded square is exact. Below
// that, any sum of at least the smallest normal number has a root above the bound.
template <typename T>
__device__ __forceinline__ T squared_bound(T bound) {
  return larger(bound * bound, Limits<T>::kMinNormal);
}

// One warp's search: sums of squares in registers, and the k smallest keys of each of its queries.
template <typename Shape, int kRegisters>
struct WarpSearch {
  using T = typename Shape::T;
  static constexpr int kQ = Shape::kQueriesPerWarp;
  static constexpr int kC = Shape::kCandidatesPerLane;
  // From this many survivors among 32 on, sorting and merging them together costs less than inserting each.
  static constexpr int kBatch = 10;

  T sum[kQ][kC];
  SmallestList<T, kRegisters> list[kQ];
  T bound[kQ];          // no key at or above this is wanted; the same in every lane
  T bound_squared[kQ];  // squared_bound(bound)
  int lane;

  __device__ __forceinline__ void start(int lane_) {
    lane = lane_;
    clear_sums();
#pragma unroll
    for (int i = 0; i < kQ; ++i) {
      list[i].clear();
      bound[i] = bound_squared[i] = infinity<T>();
    }
  }

  // No key is wanted for this query.
  __device__ __forceinline__ void close(int i) {
    bound[i] = 0;
    bound_squared[i] = squared_bound(bound[i]);
  }

  __device__ __forceinline__ void clear_sums() {
#pragma unroll
    for (int i = 0; i < kQ; ++i) {
#pragma unroll
      for (int j = 0; j < kC; ++j) sum[i][j] = 0;
    }
  }

  // candidates: this warp's first row of a stage, [kTile][pitch]; queries: this warp's columns, [depth][kQueries].
  // A lane's candidates are 32 rows apart, so that each vote of the warp covers 32 candidates in a row.
  __device__ __forceinline__ void accumulate(const T* candidates, const T* queries, int depth, int pitch) {
    const T* mine[kC];
#pragma unroll
    for (int j = 0; j < kC; ++j) mine[j] = candidates + (j * kWarp + lane) * pitch;
// As far as the registers allow.
#pragma unroll(16 / sizeof(T) / (kRegisters > 1 ? 2 : 1))
    for (int d = 0; d < depth; ++d) {
      const auto q = load_pack<kQ>(queries + d * Shape::kQueries);
#pragma unroll
      for (int j = 0; j < kC; ++j) {
        const T candidate = mine[j][d];
#pragma unroll
        for (int i = 0; i < kQ; ++i) {
          const T difference = q.at[i] - candidate;
          sum[i][j] = fma_rn(difference, difference, sum[i][j]);
        }
      }
    }
  }

  // May any pair of the warp still have a key below its bound? Sums only grow, so a chunk that leaves none ends the
  // tile for this warp. A NaN, from a row that is not finite, never wins a comparison.
  __device__ __forceinline__ bool alive() const {
    bool any = false;
#pragma unroll
    for (int i = 0; i < kQ; ++i) {
#pragma unroll
      for (int j = 0; j < kC; ++j) any |= sum[i][j] < bound_squared[i];
    }
    return __any_sync(kFullWarp, any);
  }

  // words: kC of them; bit l of word j becomes whether candidate 32 j + l is not finite. A sum that is finite vouches
  // for its row; only where none is, by overflow or because the queries are not finite, the row itself is looked at.
  // Needs complete sums. rows: of the warp's first candidate; exist: how many there are from there on.
  __device__ __forceinline__ void find_not_finite(unsigned* words, const T* rows, int exist, int dim) const {
    unsigned doubts = 0;
#pragma unroll
    for (int j = 0; j < kC; ++j) {
      T least = sum[0][j];
#pragma unroll
      for (int i = 1; i < kQ; ++i) least = smaller(least, sum[i][j]);
      doubts |= is_finite(least) ? 0u : 1u << j;
    }
    if (!__any_sync(kFullWarp, doubts != 0)) {
      if (lane < kC) words[lane] = 0;
      return;
    }
#pragma unroll 1
    for (int j = 0; j < kC; ++j) {
      const int row = j * kWarp + lane;
      bool bad = false;
      if ((doubts >> j & 1) != 0 && row < exist) {
#pragma unroll 1
        for (int d = 0; d < dim; ++d) bad |= !is_finite(rows[static_cast<int64_t>(row) * dim + d]);
      }
      const unsigned word = __ballot_sync(kFullWarp, bad);
      if (lane == 0) words[j] = word;
    }
  }

  __device__ __forceinline__ void lower_bound_to(int i, T value) {
    bound[i] = smaller(bound[i], value);
    bound_squared[i] = squared_bound(bound[i]);
  }

  // Takes the pairs with complete sums into the lists; the sums are spent afterwards. first: the warp's first
  // candidate. values: from that candidate on, NaN where there is none. query_values, self: of this warp's queries;
  // self is -1 for none. In each round a lane offers the nearest of its candidates that are left: after the first round
  // of a search the bound is the k-th of the lanes' smallest keys, which spares the lists most of the others.
  __device__ __forceinline__ void offer(int first, const T* values, const T* query_values, const int* self, int k) {
    first += lane;
    values += lane;
#pragma unroll
    for (int i = 0; i < kQ; ++i) {
#pragma unroll 1
      for (int round = 0; round < kC; ++round) {
        T least = sum[i][0];
#pragma unroll
        for (int j = 1; j < kC; ++j) least = smaller(least, sum[i][j]);  // fmin passes over NaN
        if (!__any_sync(kFullWarp, least < bound_squared[i])) break;
        int place = 0;
        bool found = false;
#pragma unroll
        for (int j = 0; j < kC; ++j) {
          const bool here = !found && sum[i][j] == least;
          found |= here;
          place = here ? j * kWarp : place;
          sum[i][j] = here ? infinity<T>() : sum[i][j];
        }
        T key = infinity<T>();
        if (least < bound_squared[i]) {
          const T root = sqrt_rn(least);
          const T gap = magnitude(query_values[i] - values[place]);
          // A gap of NaN is not below the bound.
          if (root < bound[i] && gap < bound[i] && first + place != self[i]) key = larger(root, gap);
        }
        unsigned survivors = __ballot_sync(kFullWarp, key < bound[i]);
        if (survivors == 0) continue;
        if (__popc(survivors) >= kBatch) {
          list[i].merge_sorted(sort_warp(key, lane), lane);
        } else {
          do {
            list[i].insert(__shfl_sync(kFullWarp, key, __ffs(static_cast<int>(survivors)) - 1), lane);
            survivors &= survivors - 1;
          } while (survivors != 0);
        }
        lower_bound_to(i, list[i].rank(k - 1));
      }
    }
  }

  // Warps that share a query tighten each other's bounds: where each of them holds at least ceil(k / kSplits) keys up
  // to some value, together they hold k. shared: [kQ][kSplits], this group's slots.
  __device__ __forceinline__ void publish(T* shared, int split, int k) const {
    const int share = (k + Shape::kSplits - 1) / Shape::kSplits;
#pragma unroll
    for (int i = 0; i < kQ; ++i) {
      const T value = list[i].rank(share - 1);
      if (lane == 0) shared[i * Shape::kSplits + split] = value;
    }
  }
  __device__ __forceinline__ void adopt(const T* shared) {
#pragma unroll
    for (int i = 0; i < kQ; ++i) {
      T together = shared[i * Shape::kSplits];
#pragma unroll
      for (int s = 1; s < Shape::kSplits; ++s) together = larger(together, shared[i * Shape::kSplits + s]);
      lower_bound_to(i, together);
    }
  }

  // Lays the lists where `taken` finds them after a barrier. slots: [kGroups][kSplits][kQ][kRegisters][32].
  __device__ __forceinline__ void lay_out(T* slots, int group, int split) const {
    T* const to = slots + (group * Shape::kSplits + split) * kQ * kRegisters * kWarp + lane;
#pragma unroll
    for (int i = 0; i < kQ; ++i) {
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) to[(i * kRegisters + r) * kWarp] = list[i].at[r];
    }
  }
  // The lists of all splits together, of the i-th query of a group.
  __device__ __forceinline__ SmallestList<T, kRegisters> taken(const T* slots, int group, int i) const {
    const T* const from = slots + (group * Shape::kSplits * kQ + i) * kRegisters * kWarp + lane;
    const auto load = [&](int s) {
      SmallestList<T, kRegisters> one;
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) one.at[r] = from[(s * kQ * kRegisters + r) * kWarp];
      return one;
    };
    if constexpr (kRegisters > 1) {  // rare: one after the other takes fewer registers
      SmallestList<T, kRegisters> together = load(0);
#pragma unroll 1
      for (int s = 1; s < Shape::kSplits; ++s) together.merge(load(s), lane);
      return together;
    } else {
      SmallestList<T, kRegisters> all[Shape::kSplits];
#pragma unroll
      for (int s = 0; s < Shape::kSplits; ++s) all[s] = load(s);
#pragma unroll
      for (int level = 2; level <= Shape::kMostSplits; level *= 2) {
        const int half = Shape::kSplits / level;
#pragma unroll
        for (int s = 0; s < half; ++s) all[s].merge(all[s + half], lane);
      }
      return all[0];
    }
  }
};

}  // namespace qcse::cuda

// AVX-512 with VNNI: the AVX-512 kernels, and two more that screen pairs with 8-bit integer products.
#include "knn/cpu/kernels.h"
#include "knn/knn.h"

#include <immintrin.h>

namespace qcse::cpu {
namespace {

#include "isa/avx512/vectors.h"

#include "knn/cpu/kernels_impl.h"

// The number that a product sum must reach for a pair nearer than `radius` to matter: see ScreenQueries.
template <typename T>
inline int32_t screen_limit(const ScreenQueries& screen, int64_t query, T radius) {
  if (radius == 0) return INT32_MAX;  // nothing is nearer
  // Below kScreenable squares underflow; a larger radius lets more through.
  const double wide = static_cast<double>(radius > Limits<T>::kScreenable ? radius : Limits<T>::kScreenable);
  const double reach = wide * screen.steps + screen.error[query];
  const double square = reach * reach * (1 + 1e-9);
  if (!(square < 0x1p30)) return INT32_MIN;
  // Truncated and one less: not above the exact number.
  return static_cast<int32_t>(0.5 * (static_cast<double>(screen.square[query]) - square)) - 1 + screen.shift[query];
}

// Steps by which a guessed radius exceeds the distance of the codes that it comes from: rounding moves that by half a
// step or so, more often up than down.
constexpr double kGuessMargin = 0.5;

// sum += four products in each lane. As assembly: GCC 12 copies the register around the builtin.
inline void add_products(__m512i& sum, __m512i candidate, __m512i code) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(candidate), "v"(code));
}

// Candidates of one query that passed the screen wait here until there are enough to keep memory and processor busy.
struct Waiting {
  static constexpr int64_t kEnough = 16;
  int64_t count = 0;
  int32_t position[kEnough + kTile];
};

// The waiting candidates, exactly as the definition has them, into the query's list.
template <class V, int kGroup>
inline void settle(const Candidates<typename V::Scalar>& candidates, const PackedQueries<typename V::Scalar>& queries,
                   int64_t query, const Nearest<typename V::Scalar>& nearest, Waiting& waiting) {
  using T = typename V::Scalar;
  constexpr int kAtOnce = 8;  // independent sums hide the latency of one
  const int64_t dim = candidates.dim;
  const T* state = queries.states + query / kGroup * kGroup * dim + query % kGroup;
  for (int64_t first = 0; first < waiting.count; first += V::kWidth) {
    const int64_t lanes = waiting.count - first < V::kWidth ? waiting.count - first : V::kWidth;
    uint32_t mask = V::kAll >> (V::kWidth - lanes);
    const T* row[V::kWidth];
    alignas(64) T squared[V::kWidth], values[V::kWidth];
    for (int64_t lane = 0; lane < V::kWidth; ++lane) {
      const int64_t position = waiting.position[first + (lane < lanes ? lane : 0)];
      if (position == queries.self[query]) mask &= ~(uint32_t{1} << lane);
      row[lane] = candidates.row_states + candidates.rows[position] * dim;
      values[lane] = candidates.values[position];
    }
    for (int64_t lane = 0; lane < lanes; lane += kAtOnce) {
      T sum[kAtOnce] = {};
      for (int64_t d = 0; d < dim; ++d) {
        const T coordinate = state[d * kGroup];
#pragma GCC unroll 8
        for (int i = 0; i < kAtOnce; ++i) {
          const T difference = row[lane + i][d] - coordinate;
          sum[i] = V::fused(difference, difference, sum[i]);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kAtOnce; ++i) squared[lane + i] = sum[i];
    }
    const typename V::Reg gap = V::abs(V::sub(V::load(values), V::set1(queries.values[query])));
    offer<V>(nearest, query, V::max(V::sqrt(V::load(squared)), gap), mask);
  }
  waiting.count = 0;
}

// The product sums of kGroup queries with 16 kVectors candidates of a tile, from its `step`-th on. One vpdpbusd adds
// four dimensions of 16 candidates.
template <int kGroup, int kVectors>
inline __attribute__((always_inline)) void multiply_codes(const ScreenTiles& codes, int64_t tile, int64_t step,
                                                          const int32_t* query_codes,
                                                          __m512i (&sum)[kGroup][kVectors]) {
  const int32_t* start = codes.start + tile * kTile + step;
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const __m512i first = _mm512_loadu_si512(start + 16 * v);
#pragma GCC unroll 8
    for (int g = 0; g < kGroup; ++g) sum[g][v] = first;
  }
  const uint8_t* c = codes.codes + (tile * codes.blocks * kTile + step) * 4;
  const int32_t* q = query_codes;
  for (int64_t b = 0; b < codes.blocks; ++b, c += kTile * 4, q += kGroup) {
    __m512i candidate[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) candidate[v] = _mm512_loadu_si512(c + 64 * v);
#pragma GCC unroll 8
    for (int g = 0; g < kGroup; ++g) {
      const __m512i code = _mm512_set1_epi32(q[g]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) add_products(sum[g][v], candidate[v], code);
    }
  }
}

// The `rank`-th largest of 16 * vectors numbers, or less by up to a 4096th of their range: halving it 12 times.
inline int32_t ranked(const __m512i* numbers, int64_t vectors, int64_t rank) {
  __m512i top = numbers[0], bottom = numbers[0];
  for (int64_t v = 1; v < vectors; ++v) {
    top = _mm512_max_epi32(top, numbers[v]);
    bottom = _mm512_min_epi32(bottom, numbers[v]);
  }
  int64_t lower = _mm512_reduce_min_epi32(bottom), upper = int64_t{_mm512_reduce_max_epi32(top)} + 1;
  for (int halving = 0; halving < 12; ++halving) {
    const int64_t middle = (lower + upper) / 2;
    const __m512i limit = _mm512_set1_epi32(static_cast<int32_t>(middle));
    int64_t reached = 0;
    for (int64_t v = 0; v < vectors; ++v) {
      reached += __builtin_popcount(_mm512_cmpge_epi32_mask(numbers[v], limit));
    }
    (reached >= rank ? lower : upper) = middle;
  }
  return static_cast<int32_t>(lower);
}

// The product sums of a group with all candidates of some tiles: [kGroup, kFirstTiles, kTile].
template <int kGroup>
void store_scores(const ScreenTiles& codes, const int32_t* tiles, int64_t count, const int32_t* query_codes,
                  int32_t* scores) {
  constexpr int kVectors = 2;
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t step = 0; step < kTile; step += 16 * kVectors, scores += 16 * kVectors) {
      __m512i sum[kGroup][kVectors];
      multiply_codes(codes, tiles[t], step, query_codes, sum);
#pragma GCC unroll 8
      for (int g = 0; g < kGroup; ++g) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          _mm512_store_si512(scores + g * kFirstTiles * kTile + 16 * v, sum[g][v]);
        }
      }
    }
  }
}

// The radius is guessed from the product sums of all candidates first, so that the screen is strict from the start. The
// candidates are dealt out to 64 sets in each of `parts` parts, at least four times as many sets as neighbours are
// sought; the k-th best of the sets' best sums is seldom far from the k-th best of all, and takes no more than a
// maximum a vector.
template <class V, int kGroup>
void scan_first(const Candidates<typename V::Scalar>& candidates, const ScreenTiles& codes, const int32_t* tiles,
                int64_t count, const PackedQueries<typename V::Scalar>& queries, const ScreenQueries& screen,
                const Nearest<typename V::Scalar>& nearest) {
  using T = typename V::Scalar;
  static_assert(kMaxNeighbours % V::kWidth == 0);
  constexpr int64_t kMostParts = kMaxNeighbours / 16 + 1, kVectors = kTile / 16;
  const int64_t k = nearest.k, parts = k / 16 + 1 < count ? k / 16 + 1 : count;
  T before[kMaxNeighbours];
  for (int64_t query = 0; query < queries.count; query += kGroup) {
    store_scores<kGroup>(codes, tiles, count, screen.codes + query * codes.blocks, screen.scores);
    for (int g = 0; g < kGroup; ++g) {
      const int64_t at = query + g;
      if (nearest.bounds[at] < 0) continue;
      const int32_t* scores = screen.scores + g * kFirstTiles * kTile;
      __m512i best[kMostParts * kVectors];
      for (int64_t part = 0; part < parts; ++part) {
        __m512i most[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) most[v] = _mm512_set1_epi32(INT32_MIN);
        for (int64_t t = part; t < count; t += parts) {
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            most[v] = _mm512_max_epi32(most[v], _mm512_load_si512(scores + t * kTile + 16 * v));
          }
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) best[part * kVectors + v] = most[v];
      }
      // The query itself is most often among the candidates, and nearest.
      const int64_t rank = k + (queries.self[at] >= 0 ? 1 : 0), sets = kTile * parts;
      const double square =
          screen.square[at] - 2 * (static_cast<double>(ranked(best, kVectors * parts, rank < sets ? rank : sets)) -
                                   static_cast<double>(screen.shift[at]));
      T guess = static_cast<T>((__builtin_sqrt(square > 0 ? square : 0) + kGuessMargin) / screen.steps);
      T* list = nearest.lists + at * nearest.stride;
      __builtin_memcpy(before, list, static_cast<size_t>(nearest.stride) * sizeof(T));
      for (;;) {
        const auto limit_now = [&] {
          const T radius = list[k - 1];
          return screen_limit(screen, at, radius < guess ? radius : guess);
        };
        int32_t limit = limit_now();
        Waiting waiting;
        for (int64_t t = 0; t < count; ++t) {
          uint64_t mask = 0;
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            mask |= uint64_t{_mm512_cmpge_epi32_mask(_mm512_load_si512(scores + t * kTile + 16 * v),
                                                     _mm512_set1_epi32(limit))}
                    << (16 * v);
          }
          for (; mask != 0; mask &= mask - 1) {
            const int64_t position = tiles[t] * kTile + __builtin_ctzll(mask);
            if (position >= candidates.count) break;  // spare lanes
            waiting.position[waiting.count++] = static_cast<int32_t>(position);
          }
          if (waiting.count >= Waiting::kEnough) {
            settle<V, kGroup>(candidates, queries, at, nearest, waiting);
            limit = limit_now();
          }
        }
        settle<V, kGroup>(candidates, queries, at, nearest, waiting);
        if (list[k - 1] <= guess) break;
        // Guessed too small. The distance found is an upper bound: within it nothing nearer is left out.
        guess = list[k - 1];
        __builtin_memcpy(list, before, static_cast<size_t>(nearest.stride) * sizeof(T));
        nearest.bounds[at] = square_bound(list[k - 1]);
      }
    }
  }
}

// What the screen lets through is settled now and then.
template <class V, int kGroup>
void scan_screened(const Candidates<typename V::Scalar>& candidates, const ScreenTiles& codes, const int32_t* tiles,
                   int64_t count, const PackedQueries<typename V::Scalar>& queries, const ScreenQueries& screen,
                   const Nearest<typename V::Scalar>& nearest) {
  using T = typename V::Scalar;
  const int64_t dim = candidates.dim;
  constexpr int kVectors = 2, kStep = 16 * kVectors;
  static_assert(kTile % kStep == 0 && kStep == 32 && kGroup <= 8);
  Waiting waiting[kGroup];
  for (int64_t query = 0; query < queries.count; query += kGroup) {
    int32_t limits[kGroup];
    const auto set_limit = [&](int g) {
      limits[g] = screen_limit(screen, query + g, nearest.lists[(query + g) * nearest.stride + nearest.k - 1]);
    };
    for (int g = 0; g < kGroup; ++g) {
      limits[g] = INT32_MAX;
      if (nearest.bounds[query + g] >= 0) set_limit(g);
    }
    for (int64_t t = 0; t < count; ++t) {
      const int64_t tile = tiles[t];
      for (int64_t step = 0; step < kTile; step += kStep) {
        __m512i sum[kGroup][kVectors];
        multiply_codes(codes, tile, step, screen.codes + query * codes.blocks, sum);
        uint32_t masks[kGroup], hit = 0;
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) {
          const __m512i limit = _mm512_set1_epi32(limits[g]);
          masks[g] = _mm512_cmpge_epi32_mask(sum[g][0], limit) |
                     static_cast<uint32_t>(_mm512_cmpge_epi32_mask(sum[g][1], limit)) << 16;
          hit |= (masks[g] != 0 ? 1u : 0u) << g;
        }
        for (; hit != 0; hit &= hit - 1) {
          const int g = __builtin_ctz(hit);
          for (uint32_t mask = masks[g]; mask != 0; mask &= mask - 1) {
            const int64_t position = tile * kTile + step + __builtin_ctz(mask);
            if (position >= candidates.count) break;  // spare lanes, while a list is not full
            waiting[g].position[waiting[g].count++] = static_cast<int32_t>(position);
            const T* row = candidates.row_states + candidates.rows[position] * dim;
            for (int64_t d = 0; d < dim; d += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + d);
            __builtin_prefetch(row + dim - 1);
          }
          if (waiting[g].count >= Waiting::kEnough) {
            settle<V, kGroup>(candidates, queries, query + g, nearest, waiting[g]);
            set_limit(g);
          }
        }
      }
    }
    for (int g = 0; g < kGroup; ++g) settle<V, kGroup>(candidates, queries, query + g, nearest, waiting[g]);
  }
}

template <class V, int kGroup>
constexpr Kernels<typename V::Scalar> make_screening_kernels() {
  Kernels<typename V::Scalar> kernels = make_kernels<V, kGroup, 1>();
  kernels.scan_screened = scan_screened<V, kGroup>;
  kernels.scan_first = scan_first<V, kGroup>;
  return kernels;
}

}  // namespace

namespace avx512vnni {
extern const KernelSet kSearch = {make_screening_kernels<Float, 8>(), make_screening_kernels<Double, 8>()};
}  // namespace avx512vnni

}  // namespace qcse::cpu

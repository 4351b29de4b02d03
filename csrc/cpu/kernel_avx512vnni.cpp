// AVX-512 with VNNI: the AVX-512 kernels, and one more that screens pairs with 8-bit integer products.
#include "kernel.h"

#include <immintrin.h>

namespace qcse::cpu {
namespace {

#include "avx512_vectors.h"

#include "kernel_impl.h"

// The number that a product sum must reach for the pair to matter: see ScreenQueries.
template <typename T>
inline int32_t screen_limit(const ScreenQueries& screen, int64_t query, T threshold) {
  if (!(threshold >= Limits<T>::kScreenable)) return INT32_MIN;
  const double reach = static_cast<double>(threshold) * screen.steps + screen.error[query];
  const double square = reach * reach * (1 + 1e-9);
  if (!(square < 0x1p30)) return INT32_MIN;
  // Truncated and one less: not above the exact number.
  return static_cast<int32_t>(0.5 * (static_cast<double>(screen.square[query]) - square)) - 1 + screen.shift[query];
}

// sum += four products in each lane. As assembly: GCC 12 copies the register around the builtin.
inline void add_products(__m512i& sum, __m512i candidate, __m512i code) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(candidate), "v"(code));
}

// Pairs that passed the screen wait here, while their rows are on the way from memory; a batch of them also keeps more
// of the processor busy than one dependent sum at a time.
struct Waiting {
  static constexpr int64_t kEnough = 24;
  int64_t count = 0;
  int32_t query[kEnough + 8 * kTile];
  int32_t position[kEnough + 8 * kTile];
};

// The waiting pairs, exactly as the definition has them, into the lists of their queries.
template <class V, int kGroup>
inline void settle(const Candidates<typename V::Scalar>& candidates, const PackedQueries<typename V::Scalar>& queries,
                   const ScreenQueries& screen, const Nearest<typename V::Scalar>& nearest, Waiting& waiting) {
  using T = typename V::Scalar;
  const int64_t dim = candidates.dim;
  for (int64_t i = 0; i < waiting.count; ++i) {
    const int64_t query = waiting.query[i], position = waiting.position[i];
    if (position == queries.self[query]) continue;
    const T* row = candidates.row_states + candidates.rows[position] * dim;
    const T* state = queries.states + query / kGroup * kGroup * dim + query % kGroup;
    T squared = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const T difference = row[d] - state[d * kGroup];
      squared = V::fused(difference, difference, squared);
    }
    if (!(squared < nearest.bounds[query])) continue;
    const T root = V::root(squared);
    const T difference = candidates.values[position] - queries.values[query];
    const T gap = difference < 0 ? -difference : difference;
    const T key = root > gap ? root : gap;
    T* list = nearest.lists + query * nearest.stride;
    if (!(key < list[nearest.k - 1])) continue;
    insert<V>(list, nearest.stride / V::kWidth, V::set1(key));
    const T threshold = list[nearest.k - 1];
    nearest.bounds[query] = square_bound(threshold);
    screen.limits[query] = screen_limit(screen, query, threshold);
  }
  waiting.count = 0;
}

// One vpdpbusd adds the products of four dimensions for 16 candidates: kVectors vectors of candidates by kGroup queries
// stay in registers, one comparison per vector decides.
template <class V, int kGroup>
void scan_screened(const Candidates<typename V::Scalar>& candidates, const ScreenTiles& codes, const int32_t* tiles,
                   int64_t count, const PackedQueries<typename V::Scalar>& queries, const ScreenQueries& screen,
                   const Nearest<typename V::Scalar>& nearest) {
  using T = typename V::Scalar;
  constexpr int kVectors = 2, kStep = 16 * kVectors;
  static_assert(kTile % kStep == 0 && kStep <= 32 && kGroup <= 8);
  const int64_t dim = candidates.dim, blocks = codes.blocks;
  for (int64_t query = 0; query < queries.count; ++query) {
    screen.limits[query] = nearest.bounds[query] < 0
                               ? INT32_MAX
                               : screen_limit(screen, query, nearest.lists[query * nearest.stride + nearest.k - 1]);
  }
  Waiting waiting;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t tile = tiles[t];
    const int32_t* query_codes = screen.codes;
    for (int64_t query = 0; query < queries.count; query += kGroup, query_codes += kGroup * blocks) {
      for (int64_t step = 0; step < kTile; step += kStep) {
        const int32_t* start = codes.start + tile * kTile + step;
        __m512i sum[kGroup][kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const __m512i first = _mm512_loadu_si512(start + 16 * v);
#pragma GCC unroll 8
          for (int g = 0; g < kGroup; ++g) sum[g][v] = first;
        }
        const uint8_t* c = codes.codes + (tile * blocks * kTile + step) * 4;
        const int32_t* q = query_codes;
        for (int64_t b = 0; b < blocks; ++b, c += kTile * 4, q += kGroup) {
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
        uint32_t any = 0;
        uint32_t masks[kGroup];
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) {
          const __m512i limit = _mm512_set1_epi32(screen.limits[query + g]);
          masks[g] = 0;
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            masks[g] |= static_cast<uint32_t>(_mm512_cmpge_epi32_mask(sum[g][v], limit)) << (16 * v);
          }
          any |= masks[g];
        }
        if (__builtin_expect(any == 0, 1)) continue;
        for (int g = 0; g < kGroup; ++g) {
          for (uint32_t mask = masks[g]; mask != 0; mask &= mask - 1) {
            const int64_t position = tile * kTile + step + __builtin_ctz(mask);
            if (position >= candidates.count) break;  // the last tile's spare lanes, while a list is not full
            waiting.query[waiting.count] = static_cast<int32_t>(query + g);
            waiting.position[waiting.count++] = static_cast<int32_t>(position);
            const T* row = candidates.row_states + candidates.rows[position] * dim;
            for (int64_t d = 0; d < dim; d += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + d);
            __builtin_prefetch(row + dim - 1);
          }
        }
        if (waiting.count >= Waiting::kEnough) settle<V, kGroup>(candidates, queries, screen, nearest, waiting);
      }
    }
  }
  settle<V, kGroup>(candidates, queries, screen, nearest, waiting);
}

template <class V, int kGroup>
constexpr Kernels<typename V::Scalar> make_screening_kernels() {
  Kernels<typename V::Scalar> kernels = make_kernels<V, kGroup, 1>();
  kernels.scan_screened = scan_screened<V, kGroup>;
  return kernels;
}

}  // namespace

const KernelSet kAvx512VnniKernels = {"avx512vnni", make_screening_kernels<Float, 8>(),
                                      make_screening_kernels<Double, 8>()};

}  // namespace qcse::cpu

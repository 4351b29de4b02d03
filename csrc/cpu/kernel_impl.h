// The hot loops, written once over a vector type V. Each kernel_<set>.cpp defines its vector types and includes this
// file inside an unnamed namespace (see kernel.h for why).
//
// V offers: Scalar, kWidth, load, store, set1, sub, fma, min, max, abs, sqrt, less (a bit mask),
// lane (one lane, broadcast) and shift_in (lanes moved up by one, the first taken from the end of another vector).

template <typename T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float kSmallestNormal = 0x1p-126f;
  static constexpr float kInfinity = __builtin_inff();
};
template <>
struct Limits<double> {
  static constexpr double kSmallestNormal = 0x1p-1022;
  static constexpr double kInfinity = __builtin_inf();
};

// The smallest easily known b with: d2 >= b implies sqrt(d2) >= threshold, both roots and squares rounded to nearest.
// For a normal square b = threshold^2 will do, because sqrt(x * x) == |x|. Below that the square has lost bits; every
// such threshold is at most 2^-63 (2^-511), the exact root of the smallest normal number.
template <typename T>
inline T square_bound(T threshold) {
  const T square = threshold * threshold;
  if (square >= Limits<T>::kSmallestNormal) return square;
  return threshold > 0 ? Limits<T>::kSmallestNormal : T(0);
}

// Sorted insertion without a branch: L'[i] = min(L[i], max(L[i - 1], x)). A value that is too large falls off the end.
template <class V>
inline void insert(typename V::Scalar* list, int64_t vectors, typename V::Reg x) {
  using T = typename V::Scalar;
  for (int64_t v = vectors - 1; v > 0; --v) {
    const typename V::Reg current = V::load(list + v * V::kWidth);
    const typename V::Reg before = V::load(list + (v - 1) * V::kWidth);
    V::store(list + v * V::kWidth, V::min(current, V::max(V::shift_in(before, current), x)));
  }
  const typename V::Reg first = V::load(list);
  V::store(list, V::min(first, V::max(V::shift_in(V::set1(-Limits<T>::kInfinity), first), x)));
}

// Offers the candidates of one vector, whose squared distances are known, to one query's list. `mask` has the lanes
// that are below the bound; the exact comparison of keys follows here.
template <class V>
inline void admit(const QueryBlock<typename V::Scalar>& block, int64_t query, typename V::Reg d2, uint32_t mask,
                  const typename V::Scalar* values, int64_t position) {
  using T = typename V::Scalar;
  T* list = block.lists + query * block.list_stride;
  const int64_t self_lane = block.self[query] - position;
  if (self_lane >= 0 && self_lane < V::kWidth) mask &= ~(uint32_t{1} << self_lane);
  const typename V::Reg gap = V::abs(V::sub(V::load(values), V::set1(block.values[query])));
  const typename V::Reg key = V::max(V::sqrt(d2), gap);
  mask &= V::less(key, V::set1(list[block.k - 1]));
  if (mask == 0) return;
  const int64_t vectors = block.list_stride / V::kWidth;
  if (vectors == 1) {
    // The usual case stays in one register.
    typename V::Reg kept = V::load(list);
    const typename V::Reg lowest = V::set1(-Limits<T>::kInfinity);
    do {
      const typename V::Reg x = V::lane(key, __builtin_ctz(mask));
      kept = V::min(kept, V::max(V::shift_in(lowest, kept), x));
      mask &= mask - 1;
    } while (mask != 0);
    V::store(list, kept);
  } else {
    do {
      const typename V::Reg x = V::lane(key, __builtin_ctz(mask));
      insert<V>(list, vectors, x);
      mask &= mask - 1;
      mask &= V::less(key, V::set1(list[block.k - 1]));
    } while (mask != 0);
  }
  block.bounds[query] = square_bound(list[block.k - 1]);
}

// A register tile of kGroup queries by 2 vectors of candidates: per dimension 2 loads and kGroup broadcasts feed
// 4 * kGroup arithmetic instructions. The state test alone stands in the loop; a survivor's value is looked at in
// admit.
template <class V, int kGroup>
void scan_all(const Candidates<typename V::Scalar>& candidates, int64_t begin, int64_t end,
              const QueryBlock<typename V::Scalar>& block) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int kStep = 2 * V::kWidth;
  static_assert(kTile % kStep == 0);
  const int64_t dim = candidates.dim;
  alignas(64) T spill[kGroup][kStep];
  for (int64_t tile = begin; tile < end; ++tile) {
    const T* tile_states = candidates.states + tile * dim * kTile;
    const T* tile_values = candidates.values + tile * kTile;
    const T* packed = block.packed;
    for (int64_t query = 0; query < block.queries; query += kGroup, packed += kGroup * dim) {
      for (int64_t step = 0; step < kTile; step += kStep) {
        Reg low[kGroup], high[kGroup];
        for (int g = 0; g < kGroup; ++g) low[g] = high[g] = V::set1(0);
        const T* c = tile_states + step;
        const T* q = packed;
        for (int64_t d = 0; d < dim; ++d, c += kTile, q += kGroup) {
          const Reg c0 = V::load(c);
          const Reg c1 = V::load(c + V::kWidth);
#pragma GCC unroll 8
          for (int g = 0; g < kGroup; ++g) {
            const Reg value = V::set1(q[g]);
            const Reg t0 = V::sub(c0, value);
            const Reg t1 = V::sub(c1, value);
            low[g] = V::fma(t0, t0, low[g]);
            high[g] = V::fma(t1, t1, high[g]);
          }
        }
        uint32_t any = 0;
        uint32_t below[kGroup][2];
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) {
          const Reg bound = V::set1(block.bounds[query + g]);
          below[g][0] = V::less(low[g], bound);
          below[g][1] = V::less(high[g], bound);
          any |= below[g][0] | below[g][1];
        }
        if (__builtin_expect(any == 0, 1)) continue;
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) {
          V::store(spill[g], low[g]);
          V::store(spill[g] + V::kWidth, high[g]);
        }
        for (int g = 0; g < kGroup; ++g) {
          for (int half = 0; half < 2; ++half) {
            if (below[g][half] == 0) continue;
            const int64_t offset = step + half * V::kWidth;
            admit<V>(block, query + g, V::load(spill[g] + half * V::kWidth), below[g][half], tile_values + offset,
                     tile * kTile + offset);
          }
        }
      }
    }
  }
}

template <class V, int kGroup>
constexpr Kernels<typename V::Scalar> make_kernels() {
  return {kGroup, V::kWidth, scan_all<V, kGroup>};
}

// The hot loops, written once over a vector type V. Each isa/<set>/knn.cpp defines its vector types and includes this
// file inside an unnamed namespace (see kernels.h for why).
//
// V offers: Scalar, kWidth, kAll (the full mask), load, store, set1, add, sub, fma, min, max, abs, sqrt, less (a bit
// mask), lane (one lane, broadcast) and shift_in (lanes moved up by one, the first taken from the end of another
// vector); for the screen also fused, a multiply-add of scalars.

template <typename T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float kSmallestNormal = 0x1p-126f;
  static constexpr float kInfinity = __builtin_inff();
  static constexpr float kScreenable = 1e-15f;  // thresholds whose squares are far from underflow
};
template <>
struct Limits<double> {
  static constexpr double kSmallestNormal = 0x1p-1022;
  static constexpr double kInfinity = __builtin_inf();
  static constexpr double kScreenable = 1e-140;
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

// Offers one vector's keys to one query's list; `mask` has the lanes that count.
template <class V>
inline void offer(const Nearest<typename V::Scalar>& nearest, int64_t query, typename V::Reg key, uint32_t mask) {
  using T = typename V::Scalar;
  T* list = nearest.lists + query * nearest.stride;
  mask &= V::less(key, V::set1(list[nearest.k - 1]));
  if (mask == 0) return;
  const int64_t vectors = nearest.stride / V::kWidth;
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
      mask &= V::less(key, V::set1(list[nearest.k - 1]));
    } while (mask != 0);
  }
  nearest.bounds[query] = square_bound(list[nearest.k - 1]);
}

// Offers the candidates of one vector, whose squared distances are known, to one query's list. `mask` has the lanes
// that are below the bound, `self_lane` is the lane of the query itself, if it is one; the exact comparison of keys
// follows here.
template <class V>
inline void admit(const Nearest<typename V::Scalar>& nearest, int64_t query, typename V::Scalar value,
                  int64_t self_lane, typename V::Reg d2, uint32_t mask, const typename V::Scalar* values) {
  if (self_lane >= 0 && self_lane < V::kWidth) mask &= ~(uint32_t{1} << self_lane);
  const typename V::Reg gap = V::abs(V::sub(V::load(values), V::set1(value)));
  offer<V>(nearest, query, V::max(V::sqrt(d2), gap), mask);
}

// A register tile of kGroup queries by kVectors vectors of candidates. With AVX-512 one vector is best: each query's
// coordinate is then used once, and broadcast by the subtraction itself. The state test alone stands in the loop; a
// survivor's value is looked at in admit.
template <class V, int kGroup, int kVectors>
void scan_all(const Candidates<typename V::Scalar>& candidates, const int32_t* tiles, int64_t count,
              const PackedQueries<typename V::Scalar>& queries, const Nearest<typename V::Scalar>& nearest) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int kStep = kVectors * V::kWidth;
  static_assert(kTile % kStep == 0);
  const int64_t dim = candidates.dim;
  alignas(64) T spill[kGroup][kStep];
  for (int64_t t = 0; t < count; ++t) {
    const int64_t tile = tiles[t];
    const T* tile_states = candidates.states + tile * dim * kTile;
    const T* tile_values = candidates.values + tile * kTile;
    const T* packed = queries.states;
    for (int64_t query = 0; query < queries.count; query += kGroup, packed += kGroup * dim) {
      for (int64_t step = 0; step < kTile; step += kStep) {
        Reg sum[kGroup][kVectors];
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sum[g][v] = V::set1(0);
        }
        const T* c = tile_states + step;
        const T* q = packed;
        for (int64_t d = 0; d < dim; ++d, c += kTile, q += kGroup) {
          Reg candidate[kVectors];
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) candidate[v] = V::load(c + v * V::kWidth);
#pragma GCC unroll 8
          for (int g = 0; g < kGroup; ++g) {
            const Reg value = V::set1(q[g]);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) {
              const Reg difference = V::sub(candidate[v], value);
              sum[g][v] = V::fma(difference, difference, sum[g][v]);
            }
          }
        }
        // Bit g * kVectors + v: that vector has a survivor.
        uint32_t hit = 0;
        uint32_t below[kGroup][kVectors];
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) {
          const Reg bound = V::set1(nearest.bounds[query + g]);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            below[g][v] = V::less(sum[g][v], bound);
            hit |= (below[g][v] != 0 ? 1u : 0u) << (g * kVectors + v);
          }
        }
        if (hit == 0) continue;
#pragma GCC unroll 8
        for (int g = 0; g < kGroup; ++g) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) V::store(spill[g] + v * V::kWidth, sum[g][v]);
        }
        for (; hit != 0; hit &= hit - 1) {
          const int g = __builtin_ctz(hit) / kVectors, v = __builtin_ctz(hit) % kVectors;
          const int64_t offset = step + v * V::kWidth;
          admit<V>(nearest, query + g, queries.values[query + g], queries.self[query + g] - (tile * kTile + offset),
                   V::load(spill[g] + v * V::kWidth), below[g][v], tile_values + offset);
        }
      }
    }
  }
}

// Per lane: max(sum of squared gaps between two boxes in the state dimensions, squared gap in the value), or some
// smaller number that is above `limit` already. A point is a box whose edges coincide.
template <class V>
inline typename V::Reg box_distance(const typename V::Scalar* edges, int64_t dim, const typename V::Scalar* lower,
                                    const typename V::Scalar* upper, typename V::Reg limit) {
  using Reg = typename V::Reg;
  constexpr int64_t kStride = 8;
  const Reg zero = V::set1(0);
  const auto gap_to = [&](const typename V::Scalar* edge, int64_t d) {
    const Reg below = V::sub(V::load(edge), V::set1(upper[d]));
    const Reg above = V::sub(V::set1(lower[d]), V::load(edge + V::kWidth));
    return V::max(V::max(below, above), zero);
  };
  const Reg value_gap = gap_to(edges + dim * 2 * V::kWidth, dim);
  const Reg value_square = V::fma(value_gap, value_gap, zero);
  Reg even = zero, odd = zero;
  for (int64_t d = 0; d < dim;) {
    const int64_t end = d + kStride < dim ? d + kStride : dim;
    for (; d + 1 < end; d += 2, edges += 4 * V::kWidth) {
      const Reg first = gap_to(edges, d);
      const Reg second = gap_to(edges + 2 * V::kWidth, d + 1);
      even = V::fma(first, first, even);
      odd = V::fma(second, second, odd);
    }
    for (; d < end; ++d, edges += 2 * V::kWidth) {
      const Reg gap = gap_to(edges, d);
      even = V::fma(gap, gap, even);
    }
    if (d < dim && V::less(limit, V::max(V::add(even, odd), value_square)) == V::kAll) break;
  }
  return V::max(V::add(even, odd), value_square);
}

template <class V>
void box_distances(const Boxes<typename V::Scalar>& boxes, int64_t dim, const typename V::Scalar* lower,
                   const typename V::Scalar* upper, typename V::Scalar limit, typename V::Scalar* squared) {
  for (int64_t first = 0; first < boxes.count; first += V::kWidth) {
    const typename V::Scalar* edges = boxes.edges + first * 2 * (dim + 1);
    V::store(squared + first, box_distance<V>(edges, dim, lower, upper, V::set1(limit)));
  }
}

// One query against one tile whose sums can't be cut short, because the list is not full: in the definition's order.
template <class V>
inline int64_t scan_whole_tile(const Candidates<typename V::Scalar>& candidates, int64_t tile, const int32_t* slot,
                               const QueryGroup<typename V::Scalar>& group, int64_t query,
                               const Nearest<typename V::Scalar>& nearest) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int kVectors = 4;
  constexpr int kStep = kVectors * V::kWidth;
  const int64_t dim = candidates.dim;
  const T* state = group.states + query * dim;
  for (int64_t step = 0; step < kTile; step += kStep) {
    const T* states = candidates.states + tile * dim * kTile + step;
    Reg sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = V::set1(0);
    for (int64_t d = 0; d < dim; ++d) {
      const T* c = states + slot[d] * kTile;
      const Reg value = V::set1(state[d]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Reg t = V::sub(V::load(c + v * V::kWidth), value);
        sum[v] = V::fma(t, t, sum[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const uint32_t mask = V::less(sum[v], V::set1(nearest.bounds[query]));
      const int64_t position = tile * kTile + step + v * V::kWidth;
      if (mask != 0) {
        admit<V>(nearest, query, group.values[query], group.self[query] - position, sum[v], mask,
                 candidates.values + position);
      }
    }
  }
  return dim * (kTile / V::kWidth);
}

// One query against one tile, in the tile's order of dimensions; leaves as soon as no lane can matter any more. What
// is left is computed again in the definition's order. Returns the number of vector steps.
template <class V>
inline int64_t scan_tile(const Candidates<typename V::Scalar>& candidates, int64_t tile, const int32_t* slot,
                         typename V::Scalar slack, const QueryGroup<typename V::Scalar>& group, int64_t query,
                         const Nearest<typename V::Scalar>& nearest) {
  using T = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int kVectors = 4;
  constexpr int kStep = kVectors * V::kWidth;
  constexpr int64_t kStride = 8;  // dimensions between two looks at the bound
  static_assert(kTile % kStep == 0);
  const int64_t dim = candidates.dim;
  const T* ordered = group.ordered + query * (dim + 1);
  int64_t work = 0;
  for (int64_t step = 0; step < kTile; step += kStep) {
    const T* states = candidates.states + tile * dim * kTile + step;
    const Reg limit = V::set1(nearest.bounds[query] * slack);
    Reg sum[kVectors];
    uint32_t out[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = V::set1(0);
    bool left = true;
    int64_t d = 0;
    while (d < dim && left) {
      const int64_t end = d + kStride < dim ? d + kStride : dim;
      const T* c = states + d * kTile;
      for (; d < end; ++d, c += kTile) {
        const Reg value = V::set1(ordered[d]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const Reg t = V::sub(V::load(c + v * V::kWidth), value);
          sum[v] = V::fma(t, t, sum[v]);
        }
      }
      uint32_t all = V::kAll;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) all &= out[v] = V::less(limit, sum[v]);
      left = all != V::kAll;
    }
    work += d * kVectors;
    if (!left) continue;
    for (int v = 0; v < kVectors; ++v) {
      if (out[v] == V::kAll) continue;
      const T* c = states + v * V::kWidth;
      const T* state = group.states + query * dim;
      Reg exact = V::set1(0);
      for (int64_t e = 0; e < dim; ++e) {
        const Reg t = V::sub(V::load(c + slot[e] * kTile), V::set1(state[e]));
        exact = V::fma(t, t, exact);
      }
      work += dim;
      const uint32_t mask = V::less(exact, V::set1(nearest.bounds[query]));
      if (mask == 0) continue;
      const int64_t position = tile * kTile + step + v * V::kWidth;
      admit<V>(nearest, query, group.values[query], group.self[query] - position, exact, mask,
               candidates.values + position);
    }
  }
  return work;
}

template <class V>
int64_t scan_boxes(const Candidates<typename V::Scalar>& candidates, const int32_t* tiles,
                   const Boxes<typename V::Scalar>& boxes, typename V::Scalar nearest_box, const int32_t* slot,
                   typename V::Scalar slack, const QueryGroup<typename V::Scalar>& group,
                   const Nearest<typename V::Scalar>& nearest) {
  using T = typename V::Scalar;
  const int64_t dim = candidates.dim;
  alignas(64) T distance[V::kWidth];
  const uint32_t present = boxes.count < V::kWidth ? (uint32_t{1} << boxes.count) - 1 : V::kAll;
  int64_t work = 0;
  for (int64_t query = 0; query < group.count; ++query) {
    if (nearest.bounds[query] == Limits<T>::kInfinity) {
      for (int64_t t = 0; t < boxes.count; ++t) {
        work += scan_whole_tile<V>(candidates, tiles[t], slot, group, query, nearest);
      }
      continue;
    }
    if (nearest_box > nearest.bounds[query] * slack) continue;
    const T* ordered = group.ordered + query * (dim + 1);
    const typename V::Reg limit = V::set1(nearest.bounds[query] * slack);
    const typename V::Reg squared = box_distance<V>(boxes.edges, dim, ordered, ordered, limit);
    work += dim;
    uint32_t visit = present & ~V::less(limit, squared);
    if (visit == 0) continue;
    V::store(distance, squared);
    do {
      const int lane = __builtin_ctz(visit);
      visit &= visit - 1;
      // The bound may have shrunk since.
      if (distance[lane] > nearest.bounds[query] * slack) continue;
      work += scan_tile<V>(candidates, tiles[lane], slot, slack, group, query, nearest);
    } while (visit != 0);
  }
  return work;
}

template <class V>
int64_t multiply_add(int64_t rounds, typename V::Scalar* lanes) {
  constexpr int kChains = 12;  // more than latency times issue width of any processor so far
  const typename V::Reg x = V::load(lanes);
  typename V::Reg sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = x;
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = V::fma(x, x, sum[i]);
  }
  for (int i = 1; i < kChains; ++i) sum[0] = V::add(sum[0], sum[i]);
  V::store(lanes, sum[0]);
  return rounds * kChains * V::kWidth;
}

template <class V, int kGroup, int kVectors>
constexpr Kernels<typename V::Scalar> make_kernels() {
  return {kGroup,  V::kWidth,      scan_all<V, kGroup, kVectors>, box_distances<V>, scan_boxes<V>, nullptr,
          nullptr, multiply_add<V>};
}

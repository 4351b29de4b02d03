// The way through boxes.
#include <algorithm>
#include <limits>

#include "base/integers.h"
#include "base/memory.h"
#include "knn/cpu/near_tiles.h"
#include "knn/cpu/search.h"

namespace qcse::cpu {

// The cell's own tile first, for tight bounds, then the tiles whose boxes are near enough to the group's box, nearest
// first, each query asking the boxes for itself.
template <typename T>
Sampled Search<T>::scan_cell(Range range) const {
  const Candidates<T>& packed = tiles_.packed;
  const int64_t count = range.end - range.begin;
  const int64_t k = entry_.p.k, dim = entry_.p.dim, width = kernels_.width;
  const int64_t stride = round_up(k, width);
  Buffer<T> states(count * dim), ordered(count * (dim + 1)), values(count), lists(count * stride), bounds(count);
  Buffer<T> lower(dim + 1), upper(dim + 1), distance(round_up(packed.tiles, width)), chunk(2 * (dim + 1) * width);
  Buffer<int32_t> self(count);
  std::fill_n(lists.get(), count * stride, std::numeric_limits<T>::infinity());
  std::fill_n(bounds.get(), count, std::numeric_limits<T>::infinity());
  std::fill_n(chunk.get(), 2 * (dim + 1) * width, std::numeric_limits<T>::infinity());
  for (int64_t q = 0; q < count; ++q) {
    const int64_t i = entry_.query_rows[range.begin + q];
    const T* state = entry_.states + i * dim;
    T* sorted = ordered.get() + q * (dim + 1);
    std::copy_n(state, dim, states.get() + q * dim);
    for (int64_t d = 0; d < dim; ++d) sorted[d] = state[tiles_.order[d]];
    sorted[dim] = values[q] = entry_.values[i];
    self[q] = entry_.self_position(i);
    for (int64_t d = 0; d <= dim; ++d) {
      lower[d] = q == 0 ? sorted[d] : std::min(lower[d], sorted[d]);
      upper[d] = q == 0 ? sorted[d] : std::max(upper[d], sorted[d]);
    }
  }
  const QueryGroup<T> group = {states.get(), ordered.get(), values.get(), self.get(), count};
  const Nearest<T> nearest = {lists.get(), bounds.get(), stride, k};
  const auto widest_bound = [&] { return *std::max_element(bounds.get(), bounds.get() + count) * tiles_.slack; };

  int32_t chosen[kTile];  // at least as many as a vector has lanes
  int64_t work = 0;
  const auto scan = [&](int64_t tiles) {
    T nearest_box = distance[chosen[0]];
    for (int64_t t = 0; t < tiles; ++t) {
      const T* from = tiles_.boxes.edges + (chosen[t] / width) * width * 2 * (dim + 1) + chosen[t] % width;
      for (int64_t e = 0; e < 2 * (dim + 1); ++e) chunk[e * width + t] = from[e * width];
      nearest_box = std::min(nearest_box, distance[chosen[t]]);
    }
    work += kernels_.scan_boxes(packed, chosen, {chunk.get(), tiles}, nearest_box, tiles_.slot.data(), tiles_.slack,
                                group, nearest);
  };

  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  int64_t first = range.begin / kTile;
  if (!entry_.p.self_join) {
    kernels_.box_distances(tiles_.boxes, dim, lower.get(), upper.get(), kInfinity, distance.get());
    first = std::min_element(distance.get(), distance.get() + packed.tiles) - distance.get();
  }
  distance[first] = 0;
  chosen[0] = static_cast<int32_t>(first);
  scan(1);
  T limit = widest_bound();
  if (entry_.p.self_join) {
    kernels_.box_distances(tiles_.boxes, dim, lower.get(), upper.get(), limit, distance.get());
  }
  NearTiles<T> near(distance.get(), packed.tiles, limit, first, first + 1);
  while (const int64_t taken = near.take(width, limit, chosen)) {
    scan(taken);
    limit = widest_bound();
  }
  Sampled sampled;
  sampled.queries = count;
  sampled.work = work;
  for (int64_t q = 0; q < count; ++q) {
    const T* list = lists.get() + q * stride;
    sampled.radii += static_cast<double>(list[k - 1]);
    sampled.halves += static_cast<double>(list[(k + 1) / 2 - 1]);
    sampled.count += entry_.finish(entry_.query_rows[range.begin + q], list[k - 1]);
  }
  return sampled;
}

template Sampled Search<float>::scan_cell(Range) const;
template Sampled Search<double>::scan_cell(Range) const;

}  // namespace qcse::cpu

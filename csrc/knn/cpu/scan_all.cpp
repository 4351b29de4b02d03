// The ways that look at every pair.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/integers.h"
#include "base/memory.h"
#include "knn/cpu/near_tiles.h"
#include "knn/cpu/search.h"

namespace qcse::cpu {

// Queries of a range as scan_all reads them.
template <typename T>
struct Search<T>::Block {
  int64_t begin, count, padded;
  Buffer<T> states, values;
  Buffer<int32_t> self;
};

template <typename T>
typename Search<T>::Block Search<T>::pack_queries(Range range) const {
  const int64_t group = kernels_.group, dim = entry_.p.dim;
  const int64_t count = range.end - range.begin, padded = round_up(count, group);
  Block block = {range.begin, count, padded, Buffer<T>(padded * dim), Buffer<T>(padded), Buffer<int32_t>(padded)};
  for (int64_t q = 0; q < padded; ++q) {
    const int64_t i = entry_.query_rows[range.begin + std::min(q, count - 1)];
    const T* state = entry_.states + i * dim;
    T* out = block.states.get() + (q / group) * group * dim + q % group;
    for (int64_t d = 0; d < dim; ++d) out[d * group] = state[d];
    block.values[q] = entry_.values[i];
    block.self[q] = entry_.self_position(i);
  }
  return block;
}

namespace {

// Empty lists for `padded` queries; the spare ones take nothing.
template <typename T>
void clear(T* lists, T* bounds, int64_t count, int64_t padded, int64_t stride) {
  std::fill_n(lists, padded * stride, std::numeric_limits<T>::infinity());
  std::fill_n(bounds, count, std::numeric_limits<T>::infinity());
  std::fill_n(bounds + count, padded - count, T(-1));
}

}  // namespace

template <typename T>
void Search<T>::scan_streamed(Range range) const {
  constexpr int64_t kStreamedBytes = int64_t{1} << 18;  // as many as a second-level cache holds beside the rest
  const int64_t k = entry_.p.k, dim = entry_.p.dim, stride = round_up(k, kernels_.width);
  const int64_t tiles = ceil_div(entry_.candidates(), kTile);
  const int64_t most = std::clamp<int64_t>(kStreamedBytes / (kTile * dim * int64_t{sizeof(T)}), 1, kPackChunk);
  const int64_t chunks = ceil_div(tiles, most), workers = std::min(threads_.count, chunks);
  std::vector<Block> blocks;
  int64_t padded = 0;  // of all blocks
  for (int64_t q = range.begin; q < range.end; q += kLargestBlock) {
    blocks.push_back(pack_queries({q, std::min(q + kLargestBlock, range.end)}));
    padded += blocks.back().padded;
  }
  Buffer<T> lists(workers * padded * stride);
  std::atomic<int64_t> next = 0;
  for_each(threads_, workers, [&](int64_t worker) {
    T* const own = lists.get() + worker * padded * stride;
    Buffer<T> bounds(padded), states(most * kTile * dim), values(most * kTile);
    Buffer<int32_t> self(kLargestBlock + kernels_.group), numbers(most);
    std::iota(numbers.get(), numbers.get() + most, 0);
    int64_t place = 0;
    for (const Block& b : blocks) {
      clear(own + place * stride, bounds.get() + place, b.count, b.padded, stride);
      place += b.padded;
    }
    for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      const int64_t first = chunk * most, count = std::min(most, tiles - first);
      for (int64_t t = 0; t < count; ++t) {
        tiles_.pack_tile(first + t, states.get() + t * kTile * dim, values.get() + t * kTile);
      }
      const Candidates<T> packed = {states.get(), values.get(), count, dim, count * kTile, nullptr, nullptr};
      place = 0;
      for (const Block& b : blocks) {
        for (int64_t q = 0; q < b.padded; ++q) self[q] = static_cast<int32_t>(b.self[q] - first * kTile);
        kernels_.scan_all(packed, numbers.get(), count, {b.states.get(), b.values.get(), self.get(), b.padded},
                          {own + place * stride, bounds.get() + place, stride, k});
        place += b.padded;
      }
    }
  });
  // The k smallest keys of all workers' lists are those of all candidates, whoever saw which.
  std::vector<T> keys;
  int64_t place = 0;
  for (const Block& b : blocks) {
    for (int64_t q = 0; q < b.count; ++q) {
      keys.clear();
      for (int64_t worker = 0; worker < workers; ++worker) {
        const T* list = lists.get() + (worker * padded + place + q) * stride;
        keys.insert(keys.end(), list, list + k);
      }
      std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end());
      entry_.finish(entry_.query_rows[b.begin + q], keys[static_cast<size_t>(k - 1)]);
    }
    place += b.padded;
  }
}

// What the screen reads of a block; empty where there is none.
template <typename T>
struct Search<T>::CodedQueries {
  Buffer<int32_t> codes, square, shift, scores;
  Buffer<double> error;
  double steps;

  ScreenQueries read() const { return {codes.get(), square.get(), shift.get(), error.get(), scores.get(), steps}; }
};

template <typename T>
typename Search<T>::CodedQueries Search<T>::encode_queries(const Block& block) const {
  const ScreenTiles& screen = shadows_.screen;
  const int64_t group = kernels_.group, coded = screen.codes == nullptr ? 0 : block.padded;
  const double margin = static_cast<double>(entry_.p.dim + 8) * static_cast<double>(std::numeric_limits<T>::epsilon());
  CodedQueries queries = {Buffer<int32_t>(coded * screen.blocks),
                          Buffer<int32_t>(coded),
                          Buffer<int32_t>(coded),
                          Buffer<int32_t>(coded > 0 ? group * kFirstTiles * kTile : 0),
                          Buffer<double>(coded),
                          (1 + margin) / shadows_.step};
  std::vector<int8_t> code(screen.blocks * 4);
  for (int64_t q = 0; q < coded; ++q) {
    const int64_t position = block.begin + std::min(q, block.count - 1);
    int32_t* out = queries.codes.get() + (q / group) * group * screen.blocks + q % group;
    Coded c;
    if (entry_.p.self_join) {
      // Queries are the candidates, in the same order.
      c = shadows_.coded[position];
      const uint8_t* own = screen.codes + ((position / kTile) * screen.blocks * kTile + position % kTile) * 4;
      for (int64_t b = 0; b < screen.blocks; ++b) {
        uint32_t four;
        std::memcpy(&four, own + b * kTile * 4, 4);
        out[b * group] = static_cast<int32_t>(four ^ Shadows<T>::kOffset);
      }
    } else {
      c = shadows_.encode(entry_.states + int64_t{entry_.query_rows[position]} * entry_.p.dim, code.data());
      for (int64_t b = 0; b < screen.blocks; ++b) std::memcpy(out + b * group, code.data() + b * 4, 4);
    }
    queries.square[q] = c.square;
    queries.shift[q] = 128 * c.sum;
    queries.error[q] = c.error + shadows_.worst_error;
  }
  return queries;
}

template <typename T>
void Search<T>::scan_block(Range range) const {
  const Block packed = pack_queries(range);
  const Candidates<T>& candidates = tiles_.packed;
  const int64_t count = packed.count, k = entry_.p.k, dim = entry_.p.dim;
  const int64_t stride = round_up(k, kernels_.width);
  Buffer<T> lists(packed.padded * stride), bounds(packed.padded);
  Buffer<int32_t> tiles(candidates.tiles);
  clear(lists.get(), bounds.get(), count, packed.padded, stride);
  const PackedQueries<T> block = {packed.states.get(), packed.values.get(), packed.self.get(), packed.padded};
  const Nearest<T> nearest = {lists.get(), bounds.get(), stride, k};
  const bool screened = shadows_.screen.codes != nullptr;
  const CodedQueries coded = encode_queries(packed);
  const ScreenQueries codes = coded.read();
  const auto scan = [&](int64_t number, bool first) {
    if (!screened) {
      kernels_.scan_all(candidates, tiles.get(), number, block, nearest);
    } else {
      const auto kernel = first ? kernels_.scan_first : kernels_.scan_screened;
      kernel(candidates, shadows_.screen, tiles.get(), number, block, codes, nearest);
    }
  };
  if (!arranged_ || (screened && candidates.tiles <= kFirstTiles)) {
    std::iota(tiles.get(), tiles.get() + candidates.tiles, 0);
    scan(candidates.tiles, true);
  } else {
    // Candidates are in spatial order: with the nearest tiles first, few later pairs pass a bound.
    Buffer<T> lower(dim + 1), upper(dim + 1), distance(round_up(candidates.tiles, kernels_.width));
    for (int64_t q = 0; q < count; ++q) {
      for (int64_t d = 0; d <= dim; ++d) {
        const int64_t i = entry_.query_rows[range.begin + q];
        const T x = d < dim ? entry_.states[i * dim + tiles_.order[d]] : entry_.values[i];
        lower[d] = q == 0 ? x : std::min(lower[d], x);
        upper[d] = q == 0 ? x : std::max(upper[d], x);
      }
    }
    const int64_t few = ceil_div(2 * k, kTile);  // tiles that fill every list
    int64_t first = range.begin / kTile, last = std::max(ceil_div(range.end, kTile), first + few);
    if (!entry_.p.self_join) {
      constexpr T kInfinity = std::numeric_limits<T>::infinity();
      kernels_.box_distances(tiles_.boxes, dim, lower.get(), upper.get(), kInfinity, distance.get());
      first = std::min_element(distance.get(), distance.get() + candidates.tiles) - distance.get();
      last = first + few;
    }
    last = std::min(last, candidates.tiles);
    std::iota(tiles.get(), tiles.get() + (last - first), static_cast<int32_t>(first));
    scan(last - first, true);
    const auto widest_bound = [&] { return *std::max_element(bounds.get(), bounds.get() + count) * tiles_.slack; };
    T limit = widest_bound();
    if (entry_.p.self_join) {
      kernels_.box_distances(tiles_.boxes, dim, lower.get(), upper.get(), limit, distance.get());
    }
    NearTiles<T> near(distance.get(), candidates.tiles, limit, first, last);
    constexpr int64_t kBetweenLooks = 32;
    bool nearest_ones = true;
    while (const int64_t taken = near.take(nearest_ones ? kFirstTiles : kBetweenLooks, limit, tiles.get())) {
      scan(taken, nearest_ones);
      nearest_ones = false;
      limit = widest_bound();
    }
  }
  for (int64_t q = 0; q < count; ++q) entry_.finish(entry_.query_rows[range.begin + q], lists[q * stride + k - 1]);
}

template void Search<float>::scan_streamed(Range) const;
template void Search<double>::scan_streamed(Range) const;
template void Search<float>::scan_block(Range) const;
template void Search<double>::scan_block(Range) const;

}  // namespace qcse::cpu

#include "knn/cpu/tiles.h"

#include <limits>
#include <numeric>

#include "knn/cpu/arrange.h"

namespace qcse::cpu {

template <typename T>
void Tiles<T>::order_dimensions() {
  const int64_t dim = entry_.p.dim;
  const Points<T> points = {entry_.ref_states, entry_.ref_values, dim};
  const std::vector<double> spread = spreads(points, entry_.rows.data(), entry_.candidates(), 1024);
  order.resize(dim);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return spread[a] > spread[b]; });
  slot.resize(dim);
  for (int64_t d = 0; d < dim; ++d) slot[order[d]] = static_cast<int32_t>(d);
  // Each of two sums of dim rounded terms is within a factor (1 +- 2^-p)^dim of the exact one; see docs/cpu_kernel.md.
  slack = 1 + static_cast<T>(2 * dim + 16) * std::numeric_limits<T>::epsilon();
}

template <typename T>
void Tiles<T>::pack(const Threads& threads, bool as_defined) {
  const int64_t tiles = ceil_div(entry_.candidates(), kTile), dim = entry_.p.dim;
  if (packed.tiles == 0) {
    states_ = Buffer<T>(tiles * kTile * dim);
    values_ = Buffer<T>(tiles * kTile);
  }
  for_tiles(threads, tiles, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      pack_tile(tile, states_.get() + tile * kTile * dim, values_.get() + tile * kTile, as_defined);
    }
  });
  packed = {states_.get(), values_.get(), tiles, dim, entry_.candidates(), entry_.ref_states, entry_.rows.data()};
}

template <typename T>
void Tiles<T>::pack_tile(int64_t tile, T* states, T* values, bool as_defined) const {
  const int64_t dim = entry_.p.dim;
  for (int64_t lane = 0; lane < kTile; ++lane) {
    const int64_t c = tile * kTile + lane;
    if (c < entry_.candidates()) {
      const T* row = entry_.ref_states + static_cast<int64_t>(entry_.rows[c]) * dim;
      if (order.empty() || as_defined) {
        for (int64_t d = 0; d < dim; ++d) states[d * kTile + lane] = row[d];
      } else {
        for (int64_t d = 0; d < dim; ++d) states[d * kTile + lane] = row[order[d]];
      }
      values[lane] = entry_.ref_values[entry_.rows[c]];
    } else {
      for (int64_t d = 0; d < dim; ++d) states[d * kTile + lane] = std::numeric_limits<T>::infinity();
      values[lane] = 0;
    }
  }
}

template <typename T>
void Tiles<T>::make_boxes(const Threads& threads) {
  const int64_t size = round_up(packed.tiles, width_) * 2 * (packed.dim + 1);
  edges_ = Buffer<T>(size);
  std::fill_n(edges_.get(), size, std::numeric_limits<T>::infinity());
  for_tiles(threads, packed.tiles, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      box_tile(tile, edges_.get() + (tile / width_) * width_ * 2 * (packed.dim + 1) + tile % width_);
    }
  });
  boxes = {edges_.get(), packed.tiles};
}

template <typename T>
void Tiles<T>::box_tile(int64_t tile, T* edges) const {
  const int64_t lanes = std::min(kTile, entry_.candidates() - tile * kTile);
  const T* states = packed.states + tile * kTile * packed.dim;
  for (int64_t d = 0; d <= packed.dim; ++d, edges += 2 * width_) {
    const T* x = d < packed.dim ? states + d * kTile : packed.values + tile * kTile;
    T lower = x[0], upper = x[0];
    for (int64_t lane = 1; lane < lanes; ++lane) {
      lower = std::min(lower, x[lane]);
      upper = std::max(upper, x[lane]);
    }
    edges[0] = lower;
    edges[width_] = upper;
  }
}

template class Tiles<float>;
template class Tiles<double>;

}  // namespace qcse::cpu

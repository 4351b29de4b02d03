#include "knn/cpu/quantise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/integers.h"
#include "knn/cpu/arrange.h"
#include "knn/cpu/tiles.h"

namespace qcse::cpu {

template <typename T>
bool Shadows<T>::choose_steps() {
  const int64_t dim = entry_.p.dim, candidates = entry_.candidates();
  const Points<T> points = {entry_.ref_states, entry_.ref_values, dim};
  const std::vector<double> spread = spreads(points, entry_.rows.data(), candidates, 1024);
  const double widest = std::sqrt(*std::max_element(spread.begin(), spread.begin() + dim));
  step = 4 * widest / 127;
  per_step_ = 1 / step;
  centre_.assign(dim, 0.0);
  const int64_t stride = ceil_div(candidates, 1024);
  double magnitude = 0;
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t c = 0; c < candidates; c += stride) centre_[d] += static_cast<double>(points.at(entry_.rows[c], d));
    centre_[d] /= static_cast<double>(ceil_div(candidates, stride));
    magnitude = std::max(magnitude, std::fabs(centre_[d]));
  }
  // Codes are computed in double: an offset of a thousand million steps costs them a millionth of a step.
  return step > 0 && std::isfinite(step) && magnitude / step < 1e9;
}

template <typename T>
void Shadows<T>::make(const Threads& threads, int64_t tiles) {
  const int64_t dim = entry_.p.dim, blocks = ceil_div(dim, 4);
  screen.blocks = blocks;
  codes_ = Buffer<uint8_t>(tiles * kTile * blocks * 4);
  start_ = Buffer<int32_t>(tiles * kTile);
  if (entry_.p.self_join) coded = Buffer<Coded>(tiles * kTile);
  std::vector<double> worst(tiles);
  for_tiles(threads, tiles, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> code(blocks * 4);
    for (int64_t tile = begin; tile < end; ++tile) {
      uint8_t* codes = codes_.get() + tile * kTile * blocks * 4;
      for (int64_t lane = 0; lane < kTile; ++lane) {
        const int64_t c = tile * kTile + lane;
        const bool spare = c >= entry_.candidates();
        const int64_t row = entry_.rows[spare ? 0 : c];
        const Coded made = encode(entry_.ref_states + row * dim, code.data());
        if (entry_.p.self_join) coded[c] = made;
        for (int64_t b = 0; b < blocks; ++b) {
          uint32_t four;
          std::memcpy(&four, code.data() + b * 4, 4);
          four ^= kOffset;
          std::memcpy(codes + (b * kTile + lane) * 4, &four, 4);
        }
        start_[c] = spare ? -(1 << 30) : -(made.square / 2);
        worst[tile] = std::max(worst[tile], made.error);
      }
    }
  });
  worst_error = *std::max_element(worst.begin(), worst.end());
  screen.codes = codes_.get();
  screen.start = start_.get();
}

template <typename T>
Coded Shadows<T>::encode(const T* state, int8_t* code) const {
  const int64_t dim = entry_.p.dim;
  int32_t square = 0, sum = 0;
  double error = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double exact = std::clamp((static_cast<double>(state[d]) - centre_[d]) * per_step_, -127.0, 127.0);
    const int32_t rounded = static_cast<int32_t>(exact + (exact < 0 ? -0.5 : 0.5));
    error += (exact - rounded) * (exact - rounded);
    square += rounded * rounded;
    sum += rounded;
    code[d] = static_cast<int8_t>(rounded);
  }
  // The extra thousandth of a step per dimension covers the rounding of `exact` itself.
  return {square, sum, std::sqrt(error) + 1e-3 * std::sqrt(static_cast<double>(dim))};
}

template class Shadows<float>;
template class Shadows<double>;

}  // namespace qcse::cpu

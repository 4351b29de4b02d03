#include "knn/cpu/cost_model.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/integers.h"

namespace qcse::cpu {

// Per candidate, the tree takes some nanoseconds a level, and a pair (dim + 8) / 40. Where there is a screen the look
// pays earlier, because even data that boxes can't prune gain from the order.
template <typename T>
bool worth_arranging(const Entry<T>& entry, const Kernels<T>& kernels) {
  const double levels = std::log2(static_cast<double>(entry.candidates()) / kTile);
  const double enough = kernels.scan_screened != nullptr ? 7000 : 12000;
  return entry.candidates() >= 32 * kTile && static_cast<double>(entry.queries() * (entry.p.dim + 8)) > enough * levels;
}

// The times, of one query in cycles of the processor they were measured on, leave out what all three ways have in
// common.
template <typename T>
Path choose(const Entry<T>& entry, const Kernels<T>& kernels, const Sampled& sample, Shadows<T>& shadows) {
  const double queries = static_cast<double>(sample.queries), dim = static_cast<double>(entry.p.dim);
  const double k = static_cast<double>(entry.p.k);
  const int64_t tiles = ceil_div(entry.candidates(), kTile);
  const double vectors = static_cast<double>(tiles * (kTile / kernels.width));
  // Boxes jump from tile to tile, which takes longer where the tiles outgrow the nearest caches.
  const double megabytes = static_cast<double>(tiles * kTile * entry.p.dim * int64_t{sizeof(T)}) / (1 << 20);
  const double far = 1 + 0.25 * std::max(0.0, std::log2(megabytes / 2));
  const double boxes = 3.7 * far * static_cast<double>(sample.work) / queries;
  // In no useful order, some k (1 + log(n / k)) candidates come into the list for a while.
  const double all = 1.15 * vectors * dim + 40 * k * (1 + std::log(static_cast<double>(entry.candidates()) / k));
  double screen = std::numeric_limits<double>::infinity();
  // The screen sees states alone: where values narrow the choice down, it lets too many pairs through.
  const double narrowed = static_cast<double>(entry.candidates()) * queries / static_cast<double>(sample.count);
  if (kernels.scan_screened != nullptr && narrowed < 1.5 && shadows.choose_steps()) {
    // Rounding to codes widens the radius by this share, and neighbours within it grow by that to the power of the
    // dimension of the set they lie in, which shows in how they grow up to the radius itself.
    const double growth = 0.6 * std::sqrt(dim) * shadows.step * queries / sample.radii;
    const double halfway = static_cast<double>((entry.p.k + 1) / 2);
    const double grown = std::log(k / halfway) / std::log(sample.radii / sample.halves);
    const double intrinsic = entry.p.k > 1 ? grown : std::min(dim, 10.0);
    const double survivors = 3 * k * std::pow(1 + growth, intrinsic);
    screen =
        1.7 * static_cast<double>(tiles * (kTile / 16) * (ceil_div(entry.p.dim, 4) + 3)) + survivors * (dim + 8) + 600;
  }
  if (boxes < all && !(screen < boxes)) return Path::kBoxes;
  return screen < all ? Path::kScreen : Path::kAll;
}

template bool worth_arranging(const Entry<float>&, const Kernels<float>&);
template bool worth_arranging(const Entry<double>&, const Kernels<double>&);
template Path choose(const Entry<float>&, const Kernels<float>&, const Sampled&, Shadows<float>&);
template Path choose(const Entry<double>&, const Kernels<double>&, const Sampled&, Shadows<double>&);

}  // namespace qcse::cpu

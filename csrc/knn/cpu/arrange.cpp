#include "knn/cpu/arrange.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/integers.h"
#include "knn/cpu/kernels.h"

namespace qcse::cpu {

template <typename T>
std::vector<double> spreads(const Points<T>& points, const int32_t* rows, int64_t count, int64_t most) {
  const int64_t step = ceil_div(count, most);
  const int64_t width = points.dim + 1;
  std::vector<double> sum(width), square(width);
  const double picked = static_cast<double>(ceil_div(count, step));
  for (int64_t i = 0; i < count; i += step) {
    for (int64_t d = 0; d < width; ++d) {
      // Taken from the first row, so that a common offset does not cancel.
      const double x = static_cast<double>(points.at(rows[i], d)) - static_cast<double>(points.at(rows[0], d));
      sum[d] += x;
      square[d] += x * x;
    }
  }
  for (int64_t d = 0; d < width; ++d) {
    const double variance = square[d] / picked - (sum[d] / picked) * (sum[d] / picked);
    square[d] = std::isfinite(variance) ? std::max(variance, 0.0) : std::numeric_limits<double>::max();
  }
  return square;
}

namespace {

// Splits rows [begin, end) at the median of their widest coordinate, on a multiple of kTile from `begin`; returns the
// split, or `end` where nothing is to be split.
template <typename T>
int64_t split(const Points<T>& points, int32_t* rows, int64_t begin, int64_t end,
              std::vector<std::pair<T, int32_t>>& scratch) {
  const int64_t count = end - begin;
  if (count <= kTile) return end;
  const std::vector<double> spread = spreads(points, rows + begin, count, 128);
  const int64_t widest = std::max_element(spread.begin(), spread.end()) - spread.begin();
  const int64_t half = round_up(count / 2, kTile);
  scratch.clear();
  for (int64_t i = begin; i < end; ++i) scratch.emplace_back(points.at(rows[i], widest), rows[i]);
  std::nth_element(scratch.begin(), scratch.begin() + half, scratch.end());
  for (int64_t i = 0; i < count; ++i) rows[begin + i] = scratch[i].second;
  return begin + half;
}

template <typename T>
void split_all(const Points<T>& points, int32_t* rows, int64_t begin, int64_t end,
               std::vector<std::pair<T, int32_t>>& scratch) {
  for (int64_t middle; (middle = split(points, rows, begin, end, scratch)) != end; begin = middle) {
    split_all(points, rows, begin, middle, scratch);
  }
}

}  // namespace

template <typename T>
void order_spatially(const Points<T>& points, std::vector<int32_t>& rows, const Threads& threads) {
  std::vector<int64_t> edges = {0, static_cast<int64_t>(rows.size())};
  std::vector<std::pair<T, int32_t>> scratch;
  while (static_cast<int64_t>(edges.size()) <= 4 * threads.count && threads.count > 1) {
    std::vector<int64_t> finer = {0};
    for (size_t i = 0; i + 1 < edges.size(); ++i) {
      const int64_t middle = split(points, rows.data(), edges[i], edges[i + 1], scratch);
      if (middle != edges[i + 1]) finer.push_back(middle);
      finer.push_back(edges[i + 1]);
    }
    if (finer.size() == edges.size()) break;
    edges = finer;
  }
  for_each(threads, static_cast<int64_t>(edges.size()) - 1, [&](int64_t i) {
    std::vector<std::pair<T, int32_t>> own;
    split_all(points, rows.data(), edges[i], edges[i + 1], own);
  });
}

template std::vector<double> spreads(const Points<float>&, const int32_t*, int64_t, int64_t);
template std::vector<double> spreads(const Points<double>&, const int32_t*, int64_t, int64_t);
template void order_spatially(const Points<float>&, std::vector<int32_t>&, const Threads&);
template void order_spatially(const Points<double>&, std::vector<int32_t>&, const Threads&);

}  // namespace qcse::cpu

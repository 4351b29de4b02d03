#include "knn/cpu/measure.h"

#include <algorithm>
#include <ctime>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/integers.h"
#include "base/memory.h"
#include "isa/isa.h"
#include "knn/cpu/kernels.h"
#include "knn/knn.h"

namespace qcse::cpu {

int64_t multiply_adds(int64_t rounds) {
  const Kernels<float>& set = kernels_of<float>(*chosen_set().search);
  Buffer<float> lanes(set.width);
  std::fill_n(lanes.get(), set.width, 0.5f);
  return 2 * set.multiply_add(rounds, lanes.get());
}

template <typename T>
HotLoopSpeed hot_loop_speed(int64_t dim) {
  if (dim < 1 || dim > kMaxDim) {
    throw std::invalid_argument("dim must be from 1 to " + std::to_string(kMaxDim) + ", got " + std::to_string(dim));
  }
  const Kernels<T>& set = kernels_of<T>(*chosen_set().search);
  constexpr int64_t kQueries = 192, kRuns = 51;
  Buffer<T> states(kTile * dim), values(kTile), queries(kQueries * dim), query_values(kQueries), bounds(kQueries);
  const int64_t stride = round_up(1, set.width);
  Buffer<T> lists(kQueries * stride), lanes(set.width);
  Buffer<int32_t> self(kQueries);
  for (int64_t i = 0; i < kTile * dim; ++i) states[i] = static_cast<T>(i % 61) / 61;
  for (int64_t i = 0; i < kQueries * dim; ++i) queries[i] = static_cast<T>(i % 53) / 53;
  std::fill_n(values.get(), kTile, T(0));
  std::fill_n(query_values.get(), kQueries, T(0));
  std::fill_n(bounds.get(), kQueries, T(0));  // no square is below it
  std::fill_n(lists.get(), kQueries * stride, T(0));
  std::fill_n(self.get(), kQueries, -1);
  const int32_t tile = 0;
  const Candidates<T> candidates = {states.get(), values.get(), 1, dim, kTile, states.get(), self.get()};
  const PackedQueries<T> packed = {queries.get(), query_values.get(), self.get(), kQueries};
  const Nearest<T> nearest = {lists.get(), bounds.get(), stride, 1};
  const auto now = [] {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  const auto speed = [&](auto&& body, int64_t& repeats) {
    const double start = now();
    int64_t done = 0;
    for (int64_t i = 0; i < repeats; ++i) done += body();
    const double took = std::max(now() - start, 1e-9);
    const double rate = static_cast<double>(done) / took;
    repeats = std::max<int64_t>(1, static_cast<int64_t>(1e-3 * static_cast<double>(repeats) / took));
    return rate;
  };
  int64_t tile_repeats = 1, peak_repeats = 1;
  std::vector<double> tiles, peaks;
  for (int64_t run = 0; run < kRuns; ++run) {
    tiles.push_back(speed(
        [&] {
          set.scan_all(candidates, &tile, 1, packed, nearest);
          return kQueries * kTile * dim;
        },
        tile_repeats));
    peaks.push_back(speed(
        [&] {
          std::fill_n(lanes.get(), set.width, T(0.5));
          return set.multiply_add(1000, lanes.get());
        },
        peak_repeats));
  }
  const auto median = [](std::vector<double>& x) {
    std::nth_element(x.begin(), x.begin() + x.size() / 2, x.end());
    return x[x.size() / 2];
  };
  return {median(tiles), median(peaks)};
}

template HotLoopSpeed hot_loop_speed<float>(int64_t);
template HotLoopSpeed hot_loop_speed<double>(int64_t);

}  // namespace qcse::cpu

#include "knn/cpu/search.h"

#include <algorithm>

#include "base/integers.h"
#include "knn/cpu/arrange.h"

namespace qcse::cpu {
namespace {

constexpr int64_t kBlockUnit = 24;  // a multiple of every kernel's group width

// Below so many numbers the preparation is left to one thread: each parallel section is a risk of waiting for a core on
// a busy machine, and there it saves some hundred microseconds at best.
constexpr int64_t kPreparedAlone = int64_t{1} << 15;

// Candidates of more bytes are not copied as a whole where each is looked at once by few queries: every thread packs a
// few tiles at a time, for so many queries that packing is little beside the search.
constexpr int64_t kPackedAtOnce = int64_t{1} << 20;
constexpr int64_t kStreamedQueries = 4 * kLargestBlock;

// The ranges in pieces of at most `size`.
std::vector<Range> cut(const std::vector<Range>& ranges, int64_t size) {
  std::vector<Range> pieces;
  for (const Range& r : ranges) {
    for (int64_t q = r.begin; q < r.end; q += size) pieces.push_back({q, std::min(q + size, r.end)});
  }
  return pieces;
}

}  // namespace

template <typename T>
Search<T>::Search(const KnnProblem<T>& problem, int64_t number, const Kernels<T>& kernels, const Threads& threads)
    : threads_(threads),
      helpers_{threads.parallel_for, problem.refs * problem.dim < kPreparedAlone ? 1 : threads.count},
      kernels_(kernels),
      entry_(problem, number),
      tiles_(entry_, kernels.width),
      shadows_(entry_) {}

template <typename T>
void Search<T>::run(Path path) {
  if (entry_.queries() == 0) return;
  const Range everyone = {0, entry_.queries()};
  arranged_ =
      path == Path::kBoxes || path == Path::kScreen || (path == Path::kAuto && worth_arranging(entry_, kernels_));
  if (!arranged_ && entry_.candidates() * entry_.p.dim * int64_t{sizeof(T)} > kPackedAtOnce) {
    for (const Range& r : cut({everyone}, kStreamedQueries)) scan_streamed(r);
    return;
  }
  if (arranged_) arrange();
  tiles_.pack(helpers_);
  std::vector<Range> rest = {everyone};
  if (arranged_) {
    tiles_.make_boxes(helpers_);
    const Path best = path == Path::kAuto ? choose(entry_, kernels_, try_boxes(rest), shadows_) : path;
    if (best == Path::kBoxes) {
      search_boxes(rest);
      return;
    }
    if (rest.empty()) return;
    // The choice has chosen the steps already.
    if (best == Path::kScreen &&
        (path == Path::kAuto || (kernels_.scan_screened != nullptr && shadows_.choose_steps()))) {
      shadows_.make(helpers_, tiles_.packed.tiles);
    } else {
      // Every pair is looked at: in the definition's order of dimensions, which needs no second sum.
      tiles_.pack(helpers_, true);
    }
  }
  search_everything(rest);
}

// Brings candidates and queries into spatial order, and dimensions into that of their spread.
template <typename T>
void Search<T>::arrange() {
  tiles_.order_dimensions();
  order_spatially(Points<T>{entry_.ref_states, entry_.ref_values, entry_.p.dim}, entry_.rows, helpers_);
  entry_.number_candidates();
  if (entry_.p.self_join) {
    entry_.query_rows = entry_.rows;
  } else {
    order_spatially(Points<T>{entry_.states, entry_.values, entry_.p.dim}, entry_.query_rows, helpers_);
  }
}

// Searches a sample of the cells through boxes, which answers their queries for good; `rest` is what is left to do.
template <typename T>
Sampled Search<T>::try_boxes(std::vector<Range>& rest) const {
  const int64_t queries = entry_.queries(), cells = ceil_div(queries, kTile);
  const int64_t samples = std::clamp<int64_t>(cells / 32, 1, 16);
  const auto cell = [&](int64_t sample) {
    const int64_t begin = (2 * sample + 1) * cells / (2 * samples) * kTile;
    return Range{begin, std::min(begin + kTile, queries)};
  };
  std::vector<Sampled> found(samples);
  for_each(helpers_, samples, [&](int64_t sample) { found[sample] = scan_cell(cell(sample)); });
  Sampled sum;
  for (const Sampled& f : found) {
    sum.queries += f.queries;
    sum.work += f.work;
    sum.radii += f.radii;
    sum.halves += f.halves;
    sum.count += f.count;
  }
  rest.clear();
  int64_t done = 0;
  for (int64_t sample = 0; sample < samples; ++sample) {
    const Range sampled = cell(sample);
    if (sampled.begin > done) rest.push_back({done, sampled.begin});
    done = sampled.end;
  }
  if (done < queries) rest.push_back({done, queries});
  return sum;
}

template <typename T>
void Search<T>::search_boxes(const std::vector<Range>& ranges) const {
  const std::vector<Range> cells = cut(ranges, kTile);
  for_each(threads_, static_cast<int64_t>(cells.size()), [&](int64_t i) { scan_cell(cells[i]); });
}

template <typename T>
void Search<T>::search_everything(const std::vector<Range>& ranges) const {
  const int64_t size =
      std::clamp(round_up(ceil_div(entry_.queries(), 4 * threads_.count), kBlockUnit), kBlockUnit, kLargestBlock);
  const std::vector<Range> blocks = cut(ranges, size);
  for_each(threads_, static_cast<int64_t>(blocks.size()), [&](int64_t i) { scan_block(blocks[i]); });
}

// The members of this file; the other files have theirs.
template Search<float>::Search(const KnnProblem<float>&, int64_t, const Kernels<float>&, const Threads&);
template Search<double>::Search(const KnnProblem<double>&, int64_t, const Kernels<double>&, const Threads&);
template void Search<float>::run(Path);
template void Search<double>::run(Path);

}  // namespace qcse::cpu

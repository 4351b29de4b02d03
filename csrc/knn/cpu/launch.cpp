// Prepares a problem for the kernels, hands blocks of queries to the threads, finishes counts and entropies.
#include "knn/cpu/launch.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "base/integers.h"
#include "base/memory.h"
#include "isa/isa.h"
#include "knn/cpu/kernels.h"
#include "knn/digamma.h"

namespace qcse::cpu {
namespace {

// ---- Choices at run time ------------------------------------------------------------------------------------------

enum class Path { kAuto, kAll, kBoxes, kScreen };
std::atomic<Path> chosen_path = Path::kAuto;

// Arithmetic (pairs times dimensions, and some for the rest of a pair) that makes a further thread worth its start:
// about 150 microseconds of one core. Waking a thread takes some ten, and far more on a busy machine.
constexpr int64_t kWorkPerThread = int64_t{1} << 22;
std::atomic<int64_t> work_per_thread = kWorkPerThread;

template <typename T>
const Kernels<T>& kernels() {
  return kernels_of<T>(*chosen_set().search);
}

// ---- Sorting ------------------------------------------------------------------------------------------------------

// Sorts finite numbers ascending: least-significant-digit radix sort on their bits, made order-preserving.
template <typename T>
void sort_values(T* values, int64_t n) {
  if (n < 2048) {
    std::sort(values, values + n);
    return;
  }
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr int kBits = sizeof(T) * 8;
  constexpr int kDigit = 11;
  constexpr Bits kSign = Bits{1} << (kBits - 1);
  Buffer<Bits> front(n), back(n);
  for (int64_t i = 0; i < n; ++i) {
    Bits b;
    std::memcpy(&b, values + i, sizeof(b));
    front[i] = b & kSign ? ~b : b | kSign;
  }
  Bits *from = front.get(), *to = back.get();
  for (int shift = 0; shift < kBits; shift += kDigit) {
    int64_t start[1 << kDigit] = {};
    const Bits mask = (Bits{1} << kDigit) - 1;
    for (int64_t i = 0; i < n; ++i) ++start[(from[i] >> shift) & mask];
    int64_t sum = 0;
    for (int64_t& s : start) sum += std::exchange(s, sum);
    for (int64_t i = 0; i < n; ++i) to[start[(from[i] >> shift) & mask]++] = from[i];
    std::swap(from, to);
  }
  for (int64_t i = 0; i < n; ++i) {
    const Bits b = from[i] & kSign ? from[i] & ~kSign : ~from[i];
    std::memcpy(values + i, &b, sizeof(b));
  }
}

// #{ j : |value - sorted[j]| < radius }. The rounded difference never shrinks as sorted[j] moves away from `value`, so
// the very predicate of the definition is monotone on either side.
template <typename T>
int64_t count_within(const T* sorted, int64_t n, T value, T radius) {
  if (!(radius > 0)) return 0;
  // Two binary searches side by side, without branches: the first value inside, and the first one beyond.
  const auto before = [=](T v) { return (v < value) & !(std::fabs(value - v) < radius); };
  const auto not_beyond = [=](T v) { return (v <= value) | (std::fabs(value - v) < radius); };
  const T *first = sorted, *last = sorted;
  int64_t length = n;
  for (; length > 1; length -= length / 2) {
    const int64_t half = length / 2;
    first += before(first[half - 1]) ? half : 0;
    last += not_beyond(last[half - 1]) ? half : 0;
  }
  if (length == 1) {
    first += before(*first) ? 1 : 0;
    last += not_beyond(*last) ? 1 : 0;
  }
  return last - first;
}

// ---- One problem --------------------------------------------------------------------------------------------------

template <typename T>
bool finite_row(const T* state, T value, int64_t dim) {
  // A sum of x - x is 0 for finite numbers and NaN otherwise; it needs no branch per element.
  T sum = value - value;
  for (int64_t d = 0; d < dim; ++d) sum += state[d] - state[d];
  return sum == 0;
}

// Some rows of a set of points: the coordinates of row r are its state, then its value.
template <typename T>
struct Points {
  const T* states;
  const T* values;
  int64_t dim;
  T at(int64_t row, int64_t d) const { return d < dim ? states[row * dim + d] : values[row]; }
};

// Spread of each coordinate (dim + 1 of them) over at most `most` rows, evenly picked. Never NaN.
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

// Orders rows so that each run of kTile is a compact cell of a k-d tree over states and value.
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

// Tiles whose boxes are within a squared distance, roughly nearest first: a counting sort by distance.
template <typename T>
class NearTiles {
 public:
  // Leaves out tiles [skip_begin, skip_end).
  NearTiles(const T* distance, int64_t tiles, T limit, int64_t skip_begin, int64_t skip_end)
      : distance_(distance), list_(tiles) {
    constexpr int64_t kBuckets = 64;
    const bool usable = limit > 0 && limit < std::numeric_limits<T>::max();
    const auto bucket = [&](int64_t tile) {
      return usable ? static_cast<int64_t>((kBuckets - 1) * (distance[tile] / limit)) : int64_t{0};
    };
    const auto wanted = [&](int64_t tile) {
      return (tile < skip_begin || tile >= skip_end) && !(distance[tile] > limit);
    };
    int64_t start[kBuckets + 1] = {};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      if (wanted(tile)) ++start[bucket(tile) + 1];
    }
    for (int64_t b = 0; b < kBuckets; ++b) start[b + 1] += start[b];
    count_ = start[kBuckets];
    for (int64_t tile = 0; tile < tiles; ++tile) {
      if (wanted(tile)) list_[start[bucket(tile)]++] = static_cast<int32_t>(tile);
    }
  }

  // The next tiles, at most `most`, that are still within `limit`; 0 at the end.
  int64_t take(int64_t most, T limit, int32_t* chosen) {
    int64_t taken = 0;
    for (; next_ < count_ && taken < most; ++next_) {
      if (!(distance_[list_[next_]] > limit)) chosen[taken++] = list_[next_];
    }
    return taken;
  }

 private:
  const T* distance_;
  Buffer<int32_t> list_;
  int64_t count_ = 0, next_ = 0;
};

template <typename T>
class Search {
 public:
  Search(const KnnProblem<T>& p, int64_t entry, const Threads& threads)
      : p_(p),
        threads_(threads),
        helpers_{threads.parallel_for, p.refs * p.dim < kPreparedAlone ? 1 : threads.count},
        kernels_(kernels<T>()),
        states_(p.states + entry * p.queries * p.dim),
        values_(p.values + entry * p.queries),
        ref_states_(p.ref_states + entry * p.refs * p.dim),
        ref_values_(p.ref_values + entry * p.refs),
        self_index_(p.self_index == nullptr ? nullptr : p.self_index + entry * p.queries),
        radius_(p.radius == nullptr ? nullptr : p.radius + entry * p.queries),
        count_(p.count == nullptr ? nullptr : p.count + entry * p.queries),
        entropy_(p.entropy == nullptr ? nullptr : p.entropy + entry * p.queries) {}

  void run() {
    collect_candidates();
    collect_queries();
    if (query_rows_.empty()) return;
    const Path path = chosen_path;  // once: another thread may change it
    arranged_ = path == Path::kBoxes || path == Path::kScreen || (path == Path::kAuto && worth_arranging());
    if (!arranged_ && candidates() * p_.dim * int64_t{sizeof(T)} > kPackedAtOnce) {
      for (int64_t q = 0; q < queries(); q += kStreamedQueries)
        scan_streamed(q, std::min(q + kStreamedQueries, queries()));
      return;
    }
    if (arranged_) arrange();
    pack_candidates();
    std::vector<Range> rest = {{0, queries()}};
    if (arranged_) {
      make_boxes();
      const Path best = path == Path::kAuto ? choose(try_boxes(rest)) : path;
      if (best == Path::kBoxes) {
        scan_near(rest);
        return;
      }
      if (rest.empty()) return;
      // The choice has chosen the steps already.
      if (best == Path::kScreen && (path == Path::kAuto || choose_steps())) {
        make_codes();
      } else {
        // Every pair is looked at: in the definition's order of dimensions, which needs no second sum.
        in_order_ = true;
        pack_candidates();
      }
    }
    scan_everything(rest);
  }

 private:
  static constexpr int64_t kBlockUnit = 24;  // a multiple of every kernel's group width
  static constexpr int64_t kLargestBlock = 192;
  static constexpr int64_t kPackChunk = 64;  // tiles
  // Below so many numbers the preparation is left to one thread: each parallel section is a risk of waiting for a core
  // on a busy machine, and there it saves some hundred microseconds at best.
  static constexpr int64_t kPreparedAlone = int64_t{1} << 15;
  // Candidates of more bytes are not copied as a whole where each is looked at once by few queries: every thread packs
  // a few tiles at a time, as many as its second-level cache holds, for so many queries that packing is little beside
  // the search.
  static constexpr int64_t kPackedAtOnce = int64_t{1} << 20;
  static constexpr int64_t kStreamedBytes = int64_t{1} << 18;
  static constexpr int64_t kStreamedQueries = 4 * kLargestBlock;
  struct Range {
    int64_t begin, end;
  };
  // Of some queries that were searched through boxes.
  struct Sampled {
    int64_t queries = 0, work = 0;
    double radii = 0, halves = 0;  // sums of the distances to the k-th neighbour and to the one halfway there
    int64_t count = 0;             // sum of the counts
  };

  struct Coded {
    int32_t square, sum;  // of the codes
    double error;         // length of the rounding, in steps
  };
  static constexpr uint32_t kOffset = 0x80808080;  // turns four signed codes into codes plus 128, and back

  int64_t queries() const { return static_cast<int64_t>(query_rows_.size()); }
  int64_t candidates() const { return static_cast<int64_t>(rows_.size()); }

  void collect_candidates() {
    rows_.reserve(p_.refs);
    for (int64_t i = 0; i < p_.refs; ++i) {
      if (finite_row(ref_states_ + i * p_.dim, ref_values_[i], p_.dim)) rows_.push_back(static_cast<int32_t>(i));
    }
    sorted_values_ = Buffer<T>(candidates());
    for (int64_t c = 0; c < candidates(); ++c) sorted_values_[c] = ref_values_[rows_[c]];
    sort_values(sorted_values_.get(), candidates());
    position_ = Buffer<int32_t>(p_.refs);
    std::fill_n(position_.get(), p_.refs, -1);
    number_candidates();
  }

  void number_candidates() {
    for (int64_t c = 0; c < candidates(); ++c) position_[rows_[c]] = static_cast<int32_t>(c);
  }

  // Is the arithmetic of all pairs so much more than that of the tree and of a sampled cell that a look at the data is
  // worth it? Per candidate, the tree takes some nanoseconds a level, and a pair (dim + 8) / 40. Where there is a
  // screen the look pays earlier, because even data that boxes can't prune gain from the order.
  bool worth_arranging() const {
    const double levels = std::log2(static_cast<double>(candidates()) / kTile);
    const double enough = kernels_.scan_screened != nullptr ? 7000 : 12000;
    return candidates() >= 32 * kTile && static_cast<double>(queries() * (p_.dim + 8)) > enough * levels;
  }

  // Brings candidates and queries into spatial order, and dimensions into descending order of their spread: a sum that
  // starts with the wide ones exceeds a bound early.
  void arrange() {
    const Points<T> points = {ref_states_, ref_values_, p_.dim};
    const std::vector<double> spread = spreads(points, rows_.data(), candidates(), 1024);
    order_.resize(p_.dim);
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) { return spread[a] > spread[b]; });
    slot_.resize(p_.dim);
    for (int64_t d = 0; d < p_.dim; ++d) slot_[order_[d]] = static_cast<int32_t>(d);
    // Each of two sums of dim rounded terms is within a factor (1 +- 2^-p)^dim of the exact one; see
    // docs/cpu_kernel.md.
    slack_ = 1 + static_cast<T>(2 * p_.dim + 16) * std::numeric_limits<T>::epsilon();
    order_spatially(points, rows_, helpers_);
    number_candidates();
    if (p_.self_join) {
      query_rows_ = rows_;
    } else {
      order_spatially(Points<T>{states_, values_, p_.dim}, query_rows_, helpers_);
    }
  }

  int64_t self_row(int64_t i) const {
    if (p_.self_join) return i;
    return self_index_ == nullptr ? -1 : self_index_[i];
  }

  // Keeps the queries that have an answer; the others get theirs here.
  void collect_queries() {
    query_rows_.reserve(p_.queries);
    for (int64_t i = 0; i < p_.queries; ++i) {
      const int64_t self = self_row(i);
      const int64_t others = candidates() - (self >= 0 && position_[self] >= 0 ? 1 : 0);
      const bool finite = p_.self_join ? position_[i] >= 0 : finite_row(states_ + i * p_.dim, values_[i], p_.dim);
      if (finite && others >= p_.k) {
        query_rows_.push_back(static_cast<int32_t>(i));
      } else {
        answer(i, std::numeric_limits<T>::quiet_NaN(), -1);
      }
    }
  }

  void answer(int64_t i, T radius, int64_t count) const {
    if (radius_ != nullptr) radius_[i] = radius;
    if (count_ != nullptr) count_[i] = count;
    if (entropy_ != nullptr) entropy_[i] = static_cast<T>(entropy_of(radius, count, p_.dim, p_.offset));
  }

  void pack_candidates() {
    const int64_t tiles = ceil_div(candidates(), kTile);
    if (packed_.tiles == 0) {
      packed_states_ = Buffer<T>(tiles * kTile * p_.dim);
      packed_values_ = Buffer<T>(tiles * kTile);
    }
    for_each(helpers_, ceil_div(tiles, kPackChunk), [&](int64_t chunk) {
      for (int64_t tile = chunk * kPackChunk; tile < std::min((chunk + 1) * kPackChunk, tiles); ++tile) {
        pack_tile(tile, packed_states_.get() + tile * kTile * p_.dim, packed_values_.get() + tile * kTile);
      }
    });
    packed_ = {packed_states_.get(), packed_values_.get(), tiles, p_.dim, candidates(), ref_states_, rows_.data()};
  }

  void make_boxes() {
    const int64_t width = kernels_.width;
    const int64_t size = round_up(packed_.tiles, width) * 2 * (p_.dim + 1);
    edges_ = Buffer<T>(size);
    std::fill_n(edges_.get(), size, std::numeric_limits<T>::infinity());
    for_each(helpers_, ceil_div(packed_.tiles, kPackChunk), [&](int64_t chunk) {
      for (int64_t tile = chunk * kPackChunk; tile < std::min((chunk + 1) * kPackChunk, packed_.tiles); ++tile) {
        box_tile(tile, edges_.get() + (tile / width) * width * 2 * (p_.dim + 1) + tile % width);
      }
    });
  }

  void box_tile(int64_t tile, T* edges) const {
    const int64_t lanes = std::min(kTile, candidates() - tile * kTile);
    const T* states = packed_.states + tile * kTile * p_.dim;
    for (int64_t d = 0; d <= p_.dim; ++d, edges += 2 * kernels_.width) {
      const T* x = d < p_.dim ? states + d * kTile : packed_.values + tile * kTile;
      T lower = x[0], upper = x[0];
      for (int64_t lane = 1; lane < lanes; ++lane) {
        lower = std::min(lower, x[lane]);
        upper = std::max(upper, x[lane]);
      }
      edges[0] = lower;
      edges[kernels_.width] = upper;
    }
  }

  void pack_tile(int64_t tile, T* states, T* values) const {
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const int64_t c = tile * kTile + lane;
      if (c < candidates()) {
        const T* row = ref_states_ + static_cast<int64_t>(rows_[c]) * p_.dim;
        if (order_.empty() || in_order_) {
          for (int64_t d = 0; d < p_.dim; ++d) states[d * kTile + lane] = row[d];
        } else {
          for (int64_t d = 0; d < p_.dim; ++d) states[d * kTile + lane] = row[order_[d]];
        }
        values[lane] = ref_values_[rows_[c]];
      } else {
        for (int64_t d = 0; d < p_.dim; ++d) states[d * kTile + lane] = std::numeric_limits<T>::infinity();
        values[lane] = 0;
      }
    }
  }

  // Searches a sample of the cells through boxes, which answers their queries for good; `rest` is what is left to do.
  Sampled try_boxes(std::vector<Range>& rest) const {
    const int64_t cells = ceil_div(queries(), kTile);
    const int64_t samples = std::clamp<int64_t>(cells / 32, 1, 16);
    const auto cell_of = [&](int64_t sample) { return (2 * sample + 1) * cells / (2 * samples); };
    std::vector<Sampled> found(samples);
    for_each(helpers_, samples, [&](int64_t sample) {
      const int64_t begin = cell_of(sample) * kTile;
      found[sample] = scan_cell(begin, std::min(begin + kTile, queries()));
    });
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
      const int64_t begin = cell_of(sample) * kTile;
      if (begin > done) rest.push_back({done, begin});
      done = std::min(begin + kTile, queries());
    }
    if (done < queries()) rest.push_back({done, queries()});
    return sum;
  }

  // The way that should take the least time, from what a sample took through boxes. The times, of one query in cycles
  // of the processor they were measured on, leave out what all three have in common.
  Path choose(const Sampled& sample) {
    const double queries = static_cast<double>(sample.queries), dim = static_cast<double>(p_.dim);
    const double k = static_cast<double>(p_.k);
    const double vectors = static_cast<double>(packed_.tiles * (kTile / kernels_.width));
    // Boxes jump from tile to tile, which takes longer where the tiles outgrow the nearest caches.
    const double megabytes = static_cast<double>(packed_.tiles * kTile * p_.dim * int64_t{sizeof(T)}) / (1 << 20);
    const double far = 1 + 0.25 * std::max(0.0, std::log2(megabytes / 2));
    const double boxes = 3.7 * far * static_cast<double>(sample.work) / queries;
    // In no useful order, some k (1 + log(n / k)) candidates come into the list for a while.
    const double all = 1.15 * vectors * dim + 40 * k * (1 + std::log(static_cast<double>(candidates()) / k));
    double screen = std::numeric_limits<double>::infinity();
    // The screen sees states alone: where values narrow the choice down, it lets too many pairs through.
    const double narrowed = static_cast<double>(candidates()) * queries / static_cast<double>(sample.count);
    if (kernels_.scan_screened != nullptr && narrowed < 1.5 && choose_steps()) {
      // Rounding to codes widens the radius by this share, and neighbours within it grow by that to the power of the
      // dimension of the set they lie in, which shows in how they grow up to the radius itself.
      const double growth = 0.6 * std::sqrt(dim) * step_ * queries / sample.radii;
      const double halfway = static_cast<double>((p_.k + 1) / 2);
      const double grown = std::log(k / halfway) / std::log(sample.radii / sample.halves);
      const double intrinsic = p_.k > 1 ? grown : std::min(dim, 10.0);
      const double survivors = 3 * k * std::pow(1 + growth, intrinsic);
      screen = 1.7 * static_cast<double>(packed_.tiles * (kTile / 16) * (ceil_div(p_.dim, 4) + 3)) +
               survivors * (dim + 8) + 600;
    }
    if (boxes < all && !(screen < boxes)) return Path::kBoxes;
    return screen < all ? Path::kScreen : Path::kAll;
  }

  void scan_near(const std::vector<Range>& ranges) const {
    std::vector<Range> cells;
    for (const Range& r : ranges) {
      for (int64_t q = r.begin; q < r.end; q += kTile) cells.push_back({q, std::min(q + kTile, r.end)});
    }
    for_each(threads_, static_cast<int64_t>(cells.size()), [&](int64_t i) { scan_cell(cells[i].begin, cells[i].end); });
  }

  void scan_everything(const std::vector<Range>& ranges) const {
    const int64_t size =
        std::clamp(round_up(ceil_div(queries(), 4 * threads_.count), kBlockUnit), kBlockUnit, kLargestBlock);
    std::vector<Range> blocks;
    for (const Range& r : ranges) {
      for (int64_t q = r.begin; q < r.end; q += size) blocks.push_back({q, std::min(q + size, r.end)});
    }
    for_each(threads_, static_cast<int64_t>(blocks.size()),
             [&](int64_t i) { scan_block(blocks[i].begin, blocks[i].end); });
  }

  // Centre and step of the 8-bit shadows; whether there can be any.
  bool choose_steps() {
    if (kernels_.scan_screened == nullptr) return false;
    const Points<T> points = {ref_states_, ref_values_, p_.dim};
    const std::vector<double> spread = spreads(points, rows_.data(), candidates(), 1024);
    const double widest = std::sqrt(*std::max_element(spread.begin(), spread.begin() + p_.dim));
    step_ = 4 * widest / 127;
    per_step_ = 1 / step_;
    centre_.assign(p_.dim, 0.0);
    const int64_t stride = ceil_div(candidates(), 1024);
    double magnitude = 0;
    for (int64_t d = 0; d < p_.dim; ++d) {
      for (int64_t c = 0; c < candidates(); c += stride) centre_[d] += static_cast<double>(points.at(rows_[c], d));
      centre_[d] /= static_cast<double>(ceil_div(candidates(), stride));
      magnitude = std::max(magnitude, std::fabs(centre_[d]));
    }
    // Codes are computed in double: an offset of a thousand million steps costs them a millionth of a step.
    return step_ > 0 && std::isfinite(step_) && magnitude / step_ < 1e9;
  }

  void make_codes() {
    screen_.blocks = ceil_div(p_.dim, 4);
    codes_ = Buffer<uint8_t>(packed_.tiles * kTile * screen_.blocks * 4);
    start_ = Buffer<int32_t>(packed_.tiles * kTile);
    if (p_.self_join) coded_ = Buffer<Coded>(packed_.tiles * kTile);
    std::vector<double> worst(packed_.tiles);
    for_each(helpers_, ceil_div(packed_.tiles, kPackChunk), [&](int64_t chunk) {
      std::vector<int8_t> code(screen_.blocks * 4);
      for (int64_t tile = chunk * kPackChunk; tile < std::min((chunk + 1) * kPackChunk, packed_.tiles); ++tile) {
        uint8_t* codes = codes_.get() + tile * kTile * screen_.blocks * 4;
        for (int64_t lane = 0; lane < kTile; ++lane) {
          const int64_t c = tile * kTile + lane;
          const bool spare = c >= candidates();
          const Coded coded = encode(ref_states_ + static_cast<int64_t>(rows_[spare ? 0 : c]) * p_.dim, code.data());
          if (p_.self_join) coded_[c] = coded;
          for (int64_t b = 0; b < screen_.blocks; ++b) {
            uint32_t four;
            std::memcpy(&four, code.data() + b * 4, 4);
            four ^= kOffset;
            std::memcpy(codes + (b * kTile + lane) * 4, &four, 4);
          }
          start_[c] = spare ? -(1 << 30) : -(coded.square / 2);
          worst[tile] = std::max(worst[tile], coded.error);
        }
      }
    });
    worst_error_ = *std::max_element(worst.begin(), worst.end());
    screen_.codes = codes_.get();
    screen_.start = start_.get();
  }

  // `code` has 4 * blocks elements, those beyond dim being 0.
  Coded encode(const T* state, int8_t* code) const {
    int32_t square = 0, sum = 0;
    double error = 0;
    for (int64_t d = 0; d < p_.dim; ++d) {
      const double exact = std::clamp((static_cast<double>(state[d]) - centre_[d]) * per_step_, -127.0, 127.0);
      const int32_t rounded = static_cast<int32_t>(exact + (exact < 0 ? -0.5 : 0.5));
      error += (exact - rounded) * (exact - rounded);
      square += rounded * rounded;
      sum += rounded;
      code[d] = static_cast<int8_t>(rounded);
    }
    // The extra thousandth of a step per dimension covers the rounding of `exact` itself.
    return {square, sum, std::sqrt(error) + 1e-3 * std::sqrt(static_cast<double>(p_.dim))};
  }

  // Queries [begin, end) as scan_all reads them.
  struct Block {
    int64_t begin, count, padded;
    Buffer<T> states, values;
    Buffer<int32_t> self;
  };

  Block pack_queries(int64_t begin, int64_t end) const {
    const int64_t group = kernels_.group;
    const int64_t count = end - begin, padded = round_up(count, group);
    Block block = {begin, count, padded, Buffer<T>(padded * p_.dim), Buffer<T>(padded), Buffer<int32_t>(padded)};
    for (int64_t q = 0; q < padded; ++q) {
      const int64_t i = query_rows_[begin + std::min(q, count - 1)];
      const int64_t row = self_row(i);
      const T* state = states_ + i * p_.dim;
      T* out = block.states.get() + (q / group) * group * p_.dim + q % group;
      for (int64_t d = 0; d < p_.dim; ++d) out[d * group] = state[d];
      block.values[q] = values_[i];
      block.self[q] = row < 0 ? -1 : position_[row];
    }
    return block;
  }

  // Empty lists for `padded` queries; the spare ones take nothing.
  void clear(T* lists, T* bounds, int64_t count, int64_t padded, int64_t stride) const {
    std::fill_n(lists, padded * stride, std::numeric_limits<T>::infinity());
    std::fill_n(bounds, count, std::numeric_limits<T>::infinity());
    std::fill_n(bounds + count, padded - count, T(-1));
  }

  // Every pair, for few queries: each worker packs some tiles, offers them to all queries and takes the next; the k
  // smallest keys of all workers' lists are those of all candidates, whoever saw which.
  void scan_streamed(int64_t begin, int64_t end) const {
    const int64_t stride = round_up(p_.k, kernels_.width), dim = p_.dim;
    const int64_t tiles = ceil_div(candidates(), kTile);
    const int64_t most = std::clamp<int64_t>(kStreamedBytes / (kTile * dim * int64_t{sizeof(T)}), 1, kPackChunk);
    const int64_t chunks = ceil_div(tiles, most), workers = std::min(threads_.count, chunks);
    std::vector<Block> blocks;
    int64_t padded = 0;  // of all blocks
    for (int64_t q = begin; q < end; q += kLargestBlock) {
      blocks.push_back(pack_queries(q, std::min(q + kLargestBlock, end)));
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
          pack_tile(first + t, states.get() + t * kTile * dim, values.get() + t * kTile);
        }
        const Candidates<T> packed = {states.get(), values.get(), count, dim, count * kTile, nullptr, nullptr};
        place = 0;
        for (const Block& b : blocks) {
          for (int64_t q = 0; q < b.padded; ++q) self[q] = static_cast<int32_t>(b.self[q] - first * kTile);
          kernels_.scan_all(packed, numbers.get(), count, {b.states.get(), b.values.get(), self.get(), b.padded},
                            {own + place * stride, bounds.get() + place, stride, p_.k});
          place += b.padded;
        }
      }
    });
    std::vector<T> keys;
    int64_t place = 0;
    for (const Block& b : blocks) {
      for (int64_t q = 0; q < b.count; ++q) {
        keys.clear();
        for (int64_t worker = 0; worker < workers; ++worker) {
          const T* list = lists.get() + (worker * padded + place + q) * stride;
          keys.insert(keys.end(), list, list + p_.k);
        }
        std::nth_element(keys.begin(), keys.begin() + (p_.k - 1), keys.end());
        finish(query_rows_[b.begin + q], keys[static_cast<size_t>(p_.k - 1)]);
      }
      place += b.padded;
    }
  }

  void scan_block(int64_t begin, int64_t end) const {
    const int64_t group = kernels_.group;
    const Block packed = pack_queries(begin, end);
    const int64_t count = packed.count, padded = packed.padded;
    const int64_t stride = round_up(p_.k, kernels_.width);
    Buffer<T> lists(padded * stride), bounds(padded);
    Buffer<int32_t> tiles(packed_.tiles);
    clear(lists.get(), bounds.get(), count, padded, stride);
    const PackedQueries<T> block = {packed.states.get(), packed.values.get(), packed.self.get(), padded};
    const Nearest<T> nearest = {lists.get(), bounds.get(), stride, p_.k};
    const int64_t coded = screen_.codes == nullptr ? 0 : padded;
    Buffer<int32_t> codes(coded * screen_.blocks), square(coded), shift(coded);
    Buffer<int32_t> scores(coded > 0 ? group * kFirstTiles * kTile : 0);
    Buffer<double> error(coded);
    std::vector<int8_t> code(screen_.blocks * 4);
    for (int64_t q = 0; q < coded; ++q) {
      const int64_t position = begin + std::min(q, count - 1);
      int32_t* out = codes.get() + (q / group) * group * screen_.blocks + q % group;
      Coded c;
      if (p_.self_join) {
        // Queries are the candidates, in the same order.
        c = coded_[position];
        const uint8_t* own = screen_.codes + ((position / kTile) * screen_.blocks * kTile + position % kTile) * 4;
        for (int64_t b = 0; b < screen_.blocks; ++b) {
          uint32_t four;
          std::memcpy(&four, own + b * kTile * 4, 4);
          out[b * group] = static_cast<int32_t>(four ^ kOffset);
        }
      } else {
        c = encode(states_ + int64_t{query_rows_[position]} * p_.dim, code.data());
        for (int64_t b = 0; b < screen_.blocks; ++b) std::memcpy(out + b * group, code.data() + b * 4, 4);
      }
      square[q] = c.square;
      shift[q] = 128 * c.sum;
      error[q] = c.error + worst_error_;
    }
    const double margin = static_cast<double>(p_.dim + 8) * static_cast<double>(std::numeric_limits<T>::epsilon());
    const ScreenQueries screened = {codes.get(), square.get(), shift.get(),
                                    error.get(), scores.get(), (1 + margin) / step_};
    const auto scan = [&](int64_t number, bool first) {
      if (coded == 0) {
        kernels_.scan_all(packed_, tiles.get(), number, block, nearest);
      } else {
        const auto kernel = first ? kernels_.scan_first : kernels_.scan_screened;
        kernel(packed_, screen_, tiles.get(), number, block, screened, nearest);
      }
    };
    if (!arranged_ || (coded > 0 && packed_.tiles <= kFirstTiles)) {
      std::iota(tiles.get(), tiles.get() + packed_.tiles, 0);
      scan(packed_.tiles, true);
    } else {
      // Candidates are in spatial order: with the nearest tiles first, few later pairs pass a bound.
      Buffer<T> lower(p_.dim + 1), upper(p_.dim + 1), distance(round_up(packed_.tiles, kernels_.width));
      for (int64_t q = 0; q < count; ++q) {
        for (int64_t d = 0; d <= p_.dim; ++d) {
          const int64_t i = query_rows_[begin + q];
          const T x = d < p_.dim ? states_[i * p_.dim + order_[d]] : values_[i];
          lower[d] = q == 0 ? x : std::min(lower[d], x);
          upper[d] = q == 0 ? x : std::max(upper[d], x);
        }
      }
      const Boxes<T> boxes = {edges_.get(), packed_.tiles};
      const int64_t few = ceil_div(2 * p_.k, kTile);  // tiles that fill every list
      int64_t first = begin / kTile, last = std::max(ceil_div(end, kTile), first + few);
      if (!p_.self_join) {
        constexpr T kInfinity = std::numeric_limits<T>::infinity();
        kernels_.box_distances(boxes, p_.dim, lower.get(), upper.get(), kInfinity, distance.get());
        first = std::min_element(distance.get(), distance.get() + packed_.tiles) - distance.get();
        last = first + few;
      }
      last = std::min(last, packed_.tiles);
      std::iota(tiles.get(), tiles.get() + (last - first), static_cast<int32_t>(first));
      scan(last - first, true);
      T limit = *std::max_element(bounds.get(), bounds.get() + count) * slack_;
      if (p_.self_join) kernels_.box_distances(boxes, p_.dim, lower.get(), upper.get(), limit, distance.get());
      NearTiles<T> near(distance.get(), packed_.tiles, limit, first, last);
      constexpr int64_t kBetweenLooks = 32;
      bool nearest_ones = true;
      while (const int64_t taken = near.take(nearest_ones ? kFirstTiles : kBetweenLooks, limit, tiles.get())) {
        scan(taken, nearest_ones);
        nearest_ones = false;
        limit = *std::max_element(bounds.get(), bounds.get() + count) * slack_;
      }
    }
    for (int64_t q = 0; q < count; ++q) finish(query_rows_[begin + q], lists[q * stride + p_.k - 1]);
  }

  // The queries of one cell of the tree: its own tile first, for tight bounds, then the tiles whose boxes are near
  // enough to the group's box, nearest first, each query asking the boxes for itself.
  Sampled scan_cell(int64_t begin, int64_t end) const {
    const int64_t count = end - begin;
    const int64_t dim = p_.dim, width = kernels_.width;
    const int64_t stride = round_up(p_.k, width);
    Buffer<T> states(count * dim), ordered(count * (dim + 1)), values(count), lists(count * stride), bounds(count);
    Buffer<T> lower(dim + 1), upper(dim + 1), distance(round_up(packed_.tiles, width)), chunk(2 * (dim + 1) * width);
    Buffer<int32_t> self(count);
    std::fill_n(lists.get(), count * stride, std::numeric_limits<T>::infinity());
    std::fill_n(bounds.get(), count, std::numeric_limits<T>::infinity());
    std::fill_n(chunk.get(), 2 * (dim + 1) * width, std::numeric_limits<T>::infinity());
    for (int64_t q = 0; q < count; ++q) {
      const int64_t i = query_rows_[begin + q];
      const int64_t row = self_row(i);
      const T* state = states_ + i * dim;
      T* sorted = ordered.get() + q * (dim + 1);
      std::copy_n(state, dim, states.get() + q * dim);
      for (int64_t d = 0; d < dim; ++d) sorted[d] = state[order_[d]];
      sorted[dim] = values[q] = values_[i];
      self[q] = row < 0 ? -1 : position_[row];
      for (int64_t d = 0; d <= dim; ++d) {
        lower[d] = q == 0 ? sorted[d] : std::min(lower[d], sorted[d]);
        upper[d] = q == 0 ? sorted[d] : std::max(upper[d], sorted[d]);
      }
    }
    const QueryGroup<T> group = {states.get(), ordered.get(), values.get(), self.get(), count};
    const Nearest<T> nearest = {lists.get(), bounds.get(), stride, p_.k};
    const Boxes<T> boxes = {edges_.get(), packed_.tiles};
    const auto widest_bound = [&] { return *std::max_element(bounds.get(), bounds.get() + count) * slack_; };

    int32_t chosen[kTile];  // at least as many as a vector has lanes
    int64_t work = 0;
    const auto scan = [&](int64_t tiles) {
      T nearest_box = distance[chosen[0]];
      for (int64_t t = 0; t < tiles; ++t) {
        const T* from = edges_.get() + (chosen[t] / width) * width * 2 * (dim + 1) + chosen[t] % width;
        for (int64_t e = 0; e < 2 * (dim + 1); ++e) chunk[e * width + t] = from[e * width];
        nearest_box = std::min(nearest_box, distance[chosen[t]]);
      }
      work +=
          kernels_.scan_boxes(packed_, chosen, {chunk.get(), tiles}, nearest_box, slot_.data(), slack_, group, nearest);
    };

    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    int64_t first = begin / kTile;
    if (!p_.self_join) {
      kernels_.box_distances(boxes, dim, lower.get(), upper.get(), kInfinity, distance.get());
      first = std::min_element(distance.get(), distance.get() + packed_.tiles) - distance.get();
    }
    distance[first] = 0;
    chosen[0] = static_cast<int32_t>(first);
    scan(1);
    T limit = widest_bound();
    if (p_.self_join) kernels_.box_distances(boxes, dim, lower.get(), upper.get(), limit, distance.get());
    NearTiles<T> near(distance.get(), packed_.tiles, limit, first, first + 1);
    while (const int64_t taken = near.take(width, limit, chosen)) {
      scan(taken);
      limit = widest_bound();
    }
    Sampled sampled;
    sampled.queries = count;
    sampled.work = work;
    for (int64_t q = 0; q < count; ++q) {
      const T* list = lists.get() + q * stride;
      sampled.radii += static_cast<double>(list[p_.k - 1]);
      sampled.halves += static_cast<double>(list[(p_.k + 1) / 2 - 1]);
      sampled.count += finish(query_rows_[begin + q], list[p_.k - 1]);
    }
    return sampled;
  }

  int64_t finish(int64_t i, T radius) const {
    int64_t count = count_within(sorted_values_.get(), candidates(), values_[i], radius);
    const int64_t self = self_row(i);
    if (self >= 0 && position_[self] >= 0 && std::fabs(values_[i] - ref_values_[self]) < radius) --count;
    answer(i, radius, count);
    return count;
  }

  const KnnProblem<T>& p_;
  const Threads threads_;
  const Threads helpers_;  // for what comes before the search
  const Kernels<T>& kernels_;
  const T* states_;
  const T* values_;
  const T* ref_states_;
  const T* ref_values_;
  const int64_t* self_index_;
  T* radius_;
  int64_t* count_;
  T* entropy_;

  std::vector<int32_t> rows_;        // candidate position -> reference row
  Buffer<int32_t> position_;         // reference row -> candidate position, -1 where it is no candidate
  std::vector<int32_t> query_rows_;  // queries that have an answer
  Buffer<T> sorted_values_;          // of the candidates, ascending
  Buffer<T> packed_states_, packed_values_;
  std::vector<int32_t> order_, slot_;  // tile's d-th dimension is order_[d]; dimension d is the tile's slot_[d]-th
  T slack_ = 1;
  ScreenTiles screen_;
  Buffer<uint8_t> codes_;
  Buffer<int32_t> start_;
  Buffer<Coded> coded_;  // of the candidates, where they are the queries
  std::vector<double> centre_;
  double step_ = 1, per_step_ = 1, worst_error_ = 0;
  bool arranged_ = false;  // candidates are in spatial order
  bool in_order_ = false;  // dimensions of the tiles stand in the definition's order again
  Buffer<T> edges_;        // boxes of all tiles
  Candidates<T> packed_;
};

}  // namespace

template <typename T>
void knn(const KnnProblem<T>& problem, const Threads& threads) {
  const int64_t work = problem.queries * problem.refs * (problem.dim + 8);
  const auto worth = [&](int64_t total) { return std::clamp<int64_t>(total / work_per_thread, 1, threads.count); };
  // Many small problems are shared out whole, large ones are shared inside.
  if (problem.batch >= 2 * threads.count || worth(work) == 1) {
    for_each({threads.parallel_for, worth(work * problem.batch)}, problem.batch,
             [&](int64_t entry) { Search<T>(problem, entry, {threads.parallel_for, 1}).run(); });
  } else {
    for (int64_t entry = 0; entry < problem.batch; ++entry) {
      Search<T>(problem, entry, {threads.parallel_for, worth(work)}).run();
    }
  }
}

template void knn<float>(const KnnProblem<float>&, const Threads&);
template void knn<double>(const KnnProblem<double>&, const Threads&);

int64_t multiply_adds(int64_t rounds) {
  const Kernels<float>& set = kernels<float>();
  Buffer<float> lanes(set.width);
  std::fill_n(lanes.get(), set.width, 0.5f);
  return 2 * set.multiply_add(rounds, lanes.get());
}

template <typename T>
HotLoopSpeed hot_loop_speed(int64_t dim) {
  if (dim < 1 || dim > kMaxDim) {
    throw std::invalid_argument("dim must be from 1 to " + std::to_string(kMaxDim) + ", got " + std::to_string(dim));
  }
  const Kernels<T>& set = kernels<T>();
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

void set_work_per_thread(int64_t work) { work_per_thread = work > 0 ? work : kWorkPerThread; }

void set_search_path(const std::string& name) {
  if (name == "auto") {
    chosen_path = Path::kAuto;
  } else if (name == "all") {
    chosen_path = Path::kAll;
  } else if (name == "boxes") {
    chosen_path = Path::kBoxes;
  } else if (name == "screen") {
    chosen_path = Path::kScreen;
  } else {
    throw std::invalid_argument("search path must be 'auto', 'all', 'boxes' or 'screen', got '" + name + "'");
  }
}

}  // namespace qcse::cpu

// Prepares a problem for the kernels, hands blocks of queries to the threads, finishes counts and entropies.
#include "cpu/knn_cpu.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "cpu/kernel.h"
#include "digamma.h"

namespace qcse::cpu {
namespace {

// ---- Choices at run time ------------------------------------------------------------------------------------------

std::vector<const KernelSet*> available_kernels() {
  std::vector<const KernelSet*> sets = {&kPortableKernels};
#ifdef QCSE_X86_KERNELS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back(&kAvx2Kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      sets.push_back(&kAvx512Kernels);
    }
  }
#endif
  return sets;
}

const KernelSet* find_kernels(const std::string& name) {
  const std::vector<const KernelSet*> sets = available_kernels();
  if (name.empty()) return sets.back();
  std::string known;
  for (const KernelSet* set : sets) {
    if (name == set->name) return set;
    known += (known.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available here; expected one of: " + known +
                              " (it is named by QCSE_CPU_ISA or set_instruction_set)");
}

std::atomic<const KernelSet*>& chosen_kernels() {
  static std::atomic<const KernelSet*> chosen = [] {
    const char* name = std::getenv("QCSE_CPU_ISA");
    return find_kernels(name == nullptr ? "" : name);
  }();
  return chosen;
}

enum class Path { kAuto, kAll, kBoxes };
std::atomic<Path> chosen_path = Path::kAuto;

// Arithmetic (pairs times dimensions, and some for the rest of a pair) that makes a further thread worth its start:
// about 150 microseconds of one core. Waking a thread takes some ten, and far more on a busy machine.
constexpr int64_t kWorkPerThread = int64_t{1} << 22;
std::atomic<int64_t> work_per_thread = kWorkPerThread;

template <typename T>
const Kernels<T>& kernels() {
  const KernelSet* set = chosen_kernels().load(std::memory_order_relaxed);
  if constexpr (std::is_same_v<T, float>) {
    return set->single;
  } else {
    return set->twofold;
  }
}

// ---- Memory and threads -------------------------------------------------------------------------------------------

// Uninitialised memory on cache-line boundaries.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count = 0)
      : data_(count == 0 ? nullptr
                         : static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), kAlignment))) {}
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
};

// Calls body(item) for every item in [0, items), each on some thread; a free thread takes the next item.
template <class Body>
void for_each(const Threads& threads, int64_t items, const Body& body) {
  const int64_t workers = std::min(threads.count, items);
  if (workers <= 1) {
    for (int64_t i = 0; i < items; ++i) body(i);
    return;
  }
  struct Context {
    const Body& body;
    std::atomic<int64_t> next;
    int64_t items;
  } context{body, 0, items};
  const auto work = [](int64_t, int64_t, void* opaque) {
    Context& c = *static_cast<Context*>(opaque);
    for (int64_t i; (i = c.next.fetch_add(1, std::memory_order_relaxed)) < c.items;) c.body(i);
  };
  threads.parallel_for(0, workers, 1, work, &context);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

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
  const int64_t middle = std::lower_bound(sorted, sorted + n, value) - sorted;
  const T* first = std::partition_point(sorted, sorted + middle, [=](T v) { return !(std::fabs(value - v) < radius); });
  const T* last = std::partition_point(sorted + middle, sorted + n, [=](T v) { return std::fabs(value - v) < radius; });
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

template <typename T>
class Search {
 public:
  Search(const KnnProblem<T>& p, int64_t entry, const Threads& threads)
      : p_(p),
        threads_(threads),
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
    pack_candidates();
    const int64_t block =
        std::clamp(round_up(ceil_div(queries(), 4 * threads_.count), kBlockUnit), kBlockUnit, kLargestBlock);
    for_each(threads_, ceil_div(queries(), block),
             [&](int64_t i) { scan_block(i * block, std::min((i + 1) * block, queries())); });
  }

 private:
  static constexpr int64_t kBlockUnit = 24;  // a multiple of every kernel's group width
  static constexpr int64_t kLargestBlock = 192;

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
    for (int64_t c = 0; c < candidates(); ++c) position_[rows_[c]] = static_cast<int32_t>(c);
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
    packed_states_ = Buffer<T>(tiles * kTile * p_.dim);
    packed_values_ = Buffer<T>(tiles * kTile);
    constexpr int64_t kChunk = 64;
    for_each(threads_, ceil_div(tiles, kChunk), [&](int64_t chunk) {
      for (int64_t tile = chunk * kChunk; tile < std::min((chunk + 1) * kChunk, tiles); ++tile) pack_tile(tile);
    });
    packed_ = {packed_states_.get(), packed_values_.get(), tiles, p_.dim};
  }

  void pack_tile(int64_t tile) const {
    T* states = packed_states_.get() + tile * kTile * p_.dim;
    T* values = packed_values_.get() + tile * kTile;
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const int64_t c = tile * kTile + lane;
      if (c < candidates()) {
        const T* row = ref_states_ + static_cast<int64_t>(rows_[c]) * p_.dim;
        for (int64_t d = 0; d < p_.dim; ++d) states[d * kTile + lane] = row[d];
        values[lane] = ref_values_[rows_[c]];
      } else {
        for (int64_t d = 0; d < p_.dim; ++d) states[d * kTile + lane] = std::numeric_limits<T>::infinity();
        values[lane] = 0;
      }
    }
  }

  void scan_block(int64_t begin, int64_t end) const {
    const int64_t group = kernels_.group;
    const int64_t count = end - begin;
    const int64_t padded = round_up(count, group);
    const int64_t stride = round_up(p_.k, kernels_.width);
    Buffer<T> packed(padded * p_.dim), values(padded), lists(padded * stride), bounds(padded);
    Buffer<int32_t> self(padded);
    for (int64_t q = 0; q < padded; ++q) {
      const int64_t i = query_rows_[begin + std::min(q, count - 1)];
      const int64_t row = self_row(i);
      const T* state = states_ + i * p_.dim;
      T* out = packed.get() + (q / group) * group * p_.dim + q % group;
      for (int64_t d = 0; d < p_.dim; ++d) out[d * group] = state[d];
      values[q] = values_[i];
      self[q] = row < 0 ? -1 : position_[row];
      bounds[q] = q < count ? std::numeric_limits<T>::infinity() : T(-1);
    }
    std::fill_n(lists.get(), padded * stride, std::numeric_limits<T>::infinity());
    const QueryBlock<T> block = {packed.get(), values.get(), self.get(), lists.get(),
                                 bounds.get(), padded,       stride,     p_.k};
    kernels_.scan_all(packed_, 0, packed_.tiles, block);
    for (int64_t q = 0; q < count; ++q) finish(query_rows_[begin + q], lists[q * stride + p_.k - 1]);
  }

  void finish(int64_t i, T radius) const {
    int64_t count = -1;
    if (count_ != nullptr || entropy_ != nullptr) {
      count = count_within(sorted_values_.get(), candidates(), values_[i], radius);
      const int64_t self = self_row(i);
      if (self >= 0 && position_[self] >= 0 && std::fabs(values_[i] - ref_values_[self]) < radius) --count;
    }
    answer(i, radius, count);
  }

  const KnnProblem<T>& p_;
  const Threads threads_;
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

std::vector<const char*> instruction_sets() {
  std::vector<const char*> names;
  for (const KernelSet* set : available_kernels()) names.push_back(set->name);
  return names;
}

const char* instruction_set() { return chosen_kernels().load()->name; }

void set_instruction_set(const std::string& name) { chosen_kernels().store(find_kernels(name)); }

void set_work_per_thread(int64_t work) { work_per_thread = work > 0 ? work : kWorkPerThread; }

void set_search_path(const std::string& name) {
  if (name == "auto") {
    chosen_path = Path::kAuto;
  } else if (name == "all") {
    chosen_path = Path::kAll;
  } else if (name == "boxes") {
    chosen_path = Path::kBoxes;
  } else {
    throw std::invalid_argument("search path must be 'auto', 'all' or 'boxes', got '" + name + "'");
  }
}

}  // namespace qcse::cpu

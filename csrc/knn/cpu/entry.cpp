#include "knn/cpu/entry.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "knn/digamma.h"

namespace qcse::cpu {
namespace {

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

template <typename T>
bool finite_row(const T* state, T value, int64_t dim) {
  // A sum of x - x is 0 for finite numbers and NaN otherwise; it needs no branch per element.
  T sum = value - value;
  for (int64_t d = 0; d < dim; ++d) sum += state[d] - state[d];
  return sum == 0;
}

}  // namespace

template <typename T>
Entry<T>::Entry(const KnnProblem<T>& problem, int64_t number)
    : p(problem),
      states(p.states + number * p.queries * p.dim),
      values(p.values + number * p.queries),
      ref_states(p.ref_states + number * p.refs * p.dim),
      ref_values(p.ref_values + number * p.refs),
      self_index_(p.self_index == nullptr ? nullptr : p.self_index + number * p.queries),
      radius_(p.radius == nullptr ? nullptr : p.radius + number * p.queries),
      count_(p.count == nullptr ? nullptr : p.count + number * p.queries),
      entropy_(p.entropy == nullptr ? nullptr : p.entropy + number * p.queries) {
  collect_candidates();
  collect_queries();
}

template <typename T>
void Entry<T>::collect_candidates() {
  rows.reserve(p.refs);
  for (int64_t i = 0; i < p.refs; ++i) {
    if (finite_row(ref_states + i * p.dim, ref_values[i], p.dim)) rows.push_back(static_cast<int32_t>(i));
  }
  sorted_values = Buffer<T>(candidates());
  for (int64_t c = 0; c < candidates(); ++c) sorted_values[c] = ref_values[rows[c]];
  sort_values(sorted_values.get(), candidates());
  position_ = Buffer<int32_t>(p.refs);
  std::fill_n(position_.get(), p.refs, -1);
  number_candidates();
}

template <typename T>
void Entry<T>::number_candidates() {
  for (int64_t c = 0; c < candidates(); ++c) position_[rows[c]] = static_cast<int32_t>(c);
}

template <typename T>
void Entry<T>::collect_queries() {
  query_rows.reserve(p.queries);
  for (int64_t i = 0; i < p.queries; ++i) {
    const int64_t self = self_row(i);
    const int64_t others = candidates() - (self >= 0 && position_[self] >= 0 ? 1 : 0);
    const bool finite = p.self_join ? position_[i] >= 0 : finite_row(states + i * p.dim, values[i], p.dim);
    if (finite && others >= p.k) {
      query_rows.push_back(static_cast<int32_t>(i));
    } else {
      answer(i, std::numeric_limits<T>::quiet_NaN(), -1);
    }
  }
}

template <typename T>
void Entry<T>::answer(int64_t i, T radius, int64_t count) const {
  if (radius_ != nullptr) radius_[i] = radius;
  if (count_ != nullptr) count_[i] = count;
  if (entropy_ != nullptr) entropy_[i] = static_cast<T>(entropy_of(radius, count, p.dim, p.offset));
}

template <typename T>
int64_t Entry<T>::finish(int64_t i, T radius) const {
  int64_t count = count_within(sorted_values.get(), candidates(), values[i], radius);
  const int64_t self = self_row(i);
  if (self >= 0 && position_[self] >= 0 && std::fabs(values[i] - ref_values[self]) < radius) --count;
  answer(i, radius, count);
  return count;
}

template struct Entry<float>;
template struct Entry<double>;

}  // namespace qcse::cpu

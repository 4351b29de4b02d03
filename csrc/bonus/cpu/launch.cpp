#include "bonus/cpu/launch.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "knn/cpu/launch.h"
#include "knn/digamma.h"

namespace qcse::cpu {
namespace {

template <typename T>
class Seed {
 public:
  Seed(const BatchEntropy<T>& batch, int64_t seed)
      : b_(batch),
        seed_(seed),
        states_(batch.states + seed * batch.rows * batch.dim),
        values_(batch.values + seed * batch.rows),
        mean_(batch.mean + seed * (batch.dim + 1)),
        variance_(batch.variance + seed * (batch.dim + 1)),
        transition_(static_cast<size_t>(batch.rows), -1) {
    for (int64_t i = 0; i < b_.rows; ++i) {
      if (!b_.eligible[seed * b_.rows + i]) continue;
      ++eligible_;
      const T largest = magnitude(i);
      if (!std::isfinite(largest)) continue;
      finite_.push_back(i);
      if (largest <= kLargestMoment<T>) learnt_.push_back(i);
    }
  }

  void run(const Threads& threads) {
    if (b_.learn && !learnt_.empty()) learn();
    find_transitions();
    search(threads);
    report();
  }

 private:
  T at(int64_t row, int64_t channel) const { return channel < b_.dim ? states_[row * b_.dim + channel] : values_[row]; }

  // The largest magnitude in a row; NaN where the row holds one.
  T magnitude(int64_t row) const {
    T largest = 0;
    for (int64_t c = 0; c <= b_.dim; ++c) {
      const T size = std::fabs(at(row, c));
      if (!(size <= largest)) largest = size;
      if (std::isnan(size)) break;
    }
    return largest;
  }

  void learn() {
    T& batches = b_.batches[seed_];
    batches += 1;
    const double rate = 1.0 / std::min(std::max(static_cast<double>(batches), 1.0), b_.horizon);
    const double rows = static_cast<double>(learnt_.size());
    for (int64_t c = 0; c <= b_.dim; ++c) {
      double sum = 0, squares = 0;
      for (const int64_t i : learnt_) sum += static_cast<double>(at(i, c));
      const double mean = sum / rows;
      for (const int64_t i : learnt_) {
        const double away = static_cast<double>(at(i, c)) - mean;
        squares += away * away;
      }
      const double old_mean = static_cast<double>(mean_[c]), old_variance = static_cast<double>(variance_[c]);
      const double moved = mean - old_mean;
      variance_[c] = static_cast<T>(old_variance + rate * (squares / rows + (1 - rate) * moved * moved - old_variance));
      mean_[c] = static_cast<T>(old_mean + rate * moved);
    }
  }

  // Numbers the distinct transitions, and scales the first finite row of each.
  void find_transitions() {
    std::vector<T> spread(static_cast<size_t>(b_.dim + 1));
    for (size_t c = 0; c < spread.size(); ++c) {
      const T root = std::sqrt(variance_[c]);
      spread[c] = root > T(1e-6) ? root : T(1);
    }
    std::vector<std::pair<int64_t, int64_t>> by_index;
    for (const int64_t i : finite_) by_index.emplace_back(b_.index[seed_ * b_.rows + i], i);
    std::sort(by_index.begin(), by_index.end());
    for (size_t n = 0; n < by_index.size(); ++n) {
      const int64_t row = by_index[n].second;
      if (n == 0 || by_index[n].first != by_index[n - 1].first) {
        for (int64_t c = 0; c < b_.dim; ++c) {
          const T standardised = (at(row, c) - mean_[c]) / spread[static_cast<size_t>(c)];
          points_.push_back(standardised / static_cast<T>(b_.divisor));
        }
        scaled_values_.push_back((values_[row] - mean_[b_.dim]) / spread.back());
      }
      transition_[static_cast<size_t>(row)] = static_cast<int64_t>(scaled_values_.size()) - 1;
    }
  }

  void search(const Threads& threads) {
    const int64_t distinct = static_cast<int64_t>(scaled_values_.size());
    radius_.assign(scaled_values_.size(), T(NAN));
    count_.assign(scaled_values_.size(), -1);
    if (distinct <= b_.k) return;
    KnnProblem<T> p;
    p.batch = 1, p.queries = p.refs = distinct, p.dim = b_.dim, p.k = b_.k;
    p.states = p.ref_states = points_.data();
    p.values = p.ref_values = scaled_values_.data();
    p.self_join = true;
    p.radius = radius_.data(), p.count = count_.data();
    knn(p, threads);
  }

  void report() {
    const int64_t distinct = static_cast<int64_t>(scaled_values_.size());
    int64_t rows = 0, zero_radii = 0, neighbours = 0;
    for (int64_t i = 0; i < b_.rows; ++i) {
      const int64_t t = transition_[static_cast<size_t>(i)];
      const bool covered = t >= 0 && count_[static_cast<size_t>(t)] >= 0;
      b_.covered[seed_ * b_.rows + i] = covered;
      T& entropy = b_.entropy[seed_ * b_.rows + i];
      entropy = 0;
      if (!covered) continue;
      const T radius = radius_[static_cast<size_t>(t)];
      // The point itself lies at distance 0: strictly closer, unless the radius is 0.
      const int64_t count = count_[static_cast<size_t>(t)] + (b_.count_self && radius > 0 ? 1 : 0);
      entropy = static_cast<T>(entropy_of(static_cast<double>(radius), count, b_.dim, b_.offset));
      ++rows;
      zero_radii += radius == 0;
      neighbours += count;
    }
    const auto share = [](int64_t part, int64_t of) {
      return static_cast<T>(static_cast<double>(part) / static_cast<double>(std::max<int64_t>(of, 1)));
    };
    b_.statistics[seed_] = share(zero_radii, rows);
    b_.statistics[b_.seeds + seed_] = share(rows, eligible_);
    b_.statistics[2 * b_.seeds + seed_] = share(neighbours, rows * distinct);
  }

  const BatchEntropy<T>& b_;
  const int64_t seed_;
  const T *states_, *values_;
  T *mean_, *variance_;
  int64_t eligible_ = 0;                   // rows
  std::vector<int64_t> finite_;            // numbers of the eligible rows that are finite
  std::vector<int64_t> learnt_;            // those of them that move the moments
  std::vector<int64_t> transition_;        // of each row, -1 for none
  std::vector<T> points_, scaled_values_;  // of each transition
  std::vector<T> radius_;
  std::vector<int64_t> count_;
};

}  // namespace

template <typename T>
void batch_entropy(const BatchEntropy<T>& batch, const Threads& threads) {
  // A batch is small: the search of one seed is worth several threads only where there are no other seeds.
  if (batch.seeds == 1) return Seed<T>(batch, 0).run(threads);
  for_ranges(threads, batch.seeds, [&](int64_t begin, int64_t end) {
    for (int64_t seed = begin; seed < end; ++seed) Seed<T>(batch, seed).run(kThisThread);
  });
}

template void batch_entropy(const BatchEntropy<float>&, const Threads&);
template void batch_entropy(const BatchEntropy<double>&, const Threads&);

}  // namespace qcse::cpu

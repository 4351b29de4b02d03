// The contract of adding a bonus to the rewards of a batch: plain pointers and sizes, no torch.
//
// For each of S seeds with N transitions, c_i = covered_i and novelty_i finite, f = tanh or the identity:
//   bonus_i    = c_i ? f(novelty_i) : 0
//   reward_i  += weight * bonus_i
// and the statistics, e_i = eligible_i / max(sum of eligible, 1), rows = max(sum of c, 1):
//   sum e_i bonus_i,  sqrt(sum e_i (bonus_i - that)^2),  sum c_i novelty_i / rows,  share of |bonus| > 0.95 among c,
//   weight
#pragma once
#include <cstdint>

namespace qcse {

inline constexpr int kBonusStatistics = 5;

template <typename T>
struct AddBonus {
  int64_t seeds = 0, rows = 0;     // S, N
  int64_t reward_stride = 0;       // from one seed's rewards to the next one's
  bool squash = false;             // f is tanh
  const T* novelty = nullptr;      // [S, N]
  const bool* covered = nullptr;   // [S, N]
  const bool* eligible = nullptr;  // [S, N]
  const T* weight = nullptr;       // one number
  T* rewards = nullptr;            // [S, N]
  T* statistics = nullptr;         // [5, S]
};

}  // namespace qcse

// The contract of the bonus of a training batch: plain pointers and sizes, no torch.
//
// The rows of a batch are drawn with replacement; rows of equal index are one transition, which is one candidate and
// never its own neighbour. States and values are standardised by running moments first. Per seed, with the moments mu
// and sigma^2 of each of the D + 1 channels and rows that are not eligible, or not finite, left out everywhere; a row
// with a number beyond kLargestMoment moves no moment, which keeps them finite for ever:
//   rate     = 1 / min(batches so far, horizon)              (this one included; only where `learn`)
//   sigma^2 += rate * (batch variance + (1 - rate) * (batch mean - mu)^2 - sigma^2)
//   mu      += rate * (batch mean - mu)
//   s'       = (s - mu) / sigma / divisor,  q' = (q - mu) / sigma;  sigma counts as 1 where it is at most 1e-6
//   radius, count, entropy as in knn.h, among the distinct transitions; with count_self the count takes in the point
// A row is covered if it is eligible, finite, and at least k other finite transitions are there; the others get 0.
#pragma once
#include <cstdint>

namespace qcse {

// Its square, and sums of those over all rows of a batch, overflow neither.
template <typename T>
inline constexpr T kLargestMoment = sizeof(T) == 4 ? T(1e18) : T(1e140);

template <typename T>
struct BatchEntropy {
  int64_t seeds = 0, rows = 0, dim = 0;  // S, N, D
  int64_t k = 0;
  bool count_self = false, learn = false;
  double horizon = 1, divisor = 1, offset = 1e-5;
  const T* states = nullptr;       // [S, N, D]
  const T* values = nullptr;       // [S, N]
  const int64_t* index = nullptr;  // [S, N]
  const bool* eligible = nullptr;  // [S, N]
  T* mean = nullptr;               // [S, D + 1], the last channel being the values'
  T* variance = nullptr;
  T* batches = nullptr;     // [S]
  T* entropy = nullptr;     // [S, N]
  bool* covered = nullptr;  // [S, N]
  T* statistics = nullptr;  // [3, S]: share of covered radii that are 0, covered share of the eligible rows, mean count
                            // of the covered rows as a share of the distinct transitions
};

}  // namespace qcse

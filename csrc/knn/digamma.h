// The two functions of one number that the estimator needs, for host and device alike. Both are evaluated in double
// and rounded once by the caller, so that devices whose libraries differ in the last bit agree after rounding to float.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__) || defined(QCSE_EMULATED_CUDA)
#define QCSE_HOST_DEVICE __host__ __device__
#else
#define QCSE_HOST_DEVICE
#endif

namespace qcse {

// digamma(n) for an integer n >= 1, within a few ulp of double: psi(x) = psi(x + 1) - 1 / x up to x >= 12, then the
// asymptotic series, whose first left-out term is below 1e-16 there (Abramowitz and Stegun 6.3.5 and 6.3.18).
QCSE_HOST_DEVICE inline double digamma_of_count(int64_t n) {
  double shift = 0;
  while (n < 12) {
    shift += 1.0 / static_cast<double>(n);
    ++n;
  }
  const double x = static_cast<double>(n);
  const double y = 1.0 / (x * x);
  const double series =
      y * (1.0 / 12 - y * (1.0 / 120 - y * (1.0 / 252 - y * (1.0 / 240 - y * (1.0 / 132 - y * (691.0 / 32760))))));
  return log(x) - 0.5 / x - series - shift;
}

// digamma(count + 1) / dim + log(2 * radius + offset), or NaN where there is no radius (count is -1 there).
QCSE_HOST_DEVICE inline double entropy_of(double radius, int64_t count, int64_t dim, double offset) {
  if (count < 0) return NAN;
  return digamma_of_count(count + 1) / static_cast<double>(dim) + log(2.0 * radius + offset);
}

}  // namespace qcse

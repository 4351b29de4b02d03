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

// digamma(x) for x >= 12, within a few ulp of double: the asymptotic series, whose first left-out term is below 1e-16
// there (Abramowitz and Stegun 6.3.18).
QCSE_HOST_DEVICE inline double digamma_series(double x) {
  const double y = 1.0 / (x * x);
  const double series =
      y * (1.0 / 12 - y * (1.0 / 120 - y * (1.0 / 252 - y * (1.0 / 240 - y * (1.0 / 132 - y * (691.0 / 32760))))));
  return log(x) - 0.5 / x - series;
}

// digamma(n) for an integer n >= 1: psi(n) = psi(n + 1) - 1 / n up to n >= 12, then the series (6.3.5).
QCSE_HOST_DEVICE inline double digamma_of_count(int64_t n) {
  double shift = 0;
  while (n < 12) {
    shift += 1.0 / static_cast<double>(n);
    ++n;
  }
  return digamma_series(static_cast<double>(n)) - shift;
}

// share + log(2 * radius + offset), where share = digamma(count + 1) / dim.
QCSE_HOST_DEVICE inline double entropy_with(double share, double radius, double offset) {
  return share + log(2.0 * radius + offset);
}

// digamma(count + 1) / dim + log(2 * radius + offset), or NaN where there is no radius (count is -1 there).
QCSE_HOST_DEVICE inline double entropy_of(double radius, int64_t count, int64_t dim, double offset) {
  if (count < 0) return NAN;
  return entropy_with(digamma_of_count(count + 1) / static_cast<double>(dim), radius, offset);
}

}  // namespace qcse

// The contract of sampling from a tanh-squashed Gaussian policy on a CPU: plain pointers and sizes, no torch.
//
// For each state's mean m and log standard deviation s, [A] each, and n rows of standard normal numbers z:
//   u = m + exp(s) z,  action = tanh(u)
//   log_prob = sum over A of  -z^2/2 - s - log(2 pi)/2 - log(1 - tanh(u)^2)      (arXiv 1812.05905, appendix C)
// and the gradient with respect to m and s. exp, tanh and the logarithm are computed here, to within a few units in the
// last place, with the same bits for any number of threads.
#pragma once
#include <cstdint>

namespace qcse {

template <typename T>
struct TanhGaussian {
  int64_t states = 0, samples = 0, dim = 0;
  const T* mean = nullptr;     // [states, dim]
  const T* log_std = nullptr;  // [states, dim]
  const T* noise = nullptr;    // [states, samples, dim]
};

template <typename T>
struct TanhGaussianGradient {
  TanhGaussian<T> forward;           // its mean is not read
  const T* actions = nullptr;        // [states, samples, dim]
  const T* action_grad = nullptr;    // as the actions
  const T* log_prob_grad = nullptr;  // [states, samples]
  // Results.
  T* mean_grad = nullptr;     // [states, dim]
  T* log_std_grad = nullptr;  // [states, dim]
};

}  // namespace qcse

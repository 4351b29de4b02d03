// Samples of a tanh-squashed Gaussian, their log-densities, and the gradient.
#include "nets/cuda/block_sum.h"
#include "nets/cuda/policy_launch.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 256;

// 2^shift lanes share a sample: each takes every 2^shift-th dimension, and the density is summed among them.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    tanh_gaussian_kernel(TanhGaussian<T> g, int shift, T* actions, T* log_prob) {
  const int thread = static_cast<int>(threadIdx.x), lanes = 1 << shift, lane = thread & (lanes - 1);
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * (kThreads >> shift) + (thread >> shift);
  const bool inside = sample < g.states * g.samples;
  T sum = 0;
  if (inside) {
    const int64_t state = quotient(sample, g.samples);
    const T *const noise = g.noise + sample * g.dim, *const mean = g.mean + state * g.dim;
    const T* const log_std = g.log_std + state * g.dim;
    T* const action = actions + sample * g.dim;
    for (int64_t d = lane; d < g.dim; d += lanes) {
      const T z = noise[d], s = log_std[d], u = mean[d] + exponential(s) * z, size = magnitude(u);
      const T power = exponential_less_one(-2 * size), of_size = -power / (2 + power);
      action[d] = u < 0 ? -of_size : of_size;
      // log(1 - tanh(u)^2) = 2 (log 2 - |u| - log(1 + exp(-2 |u|)))
      const T log_slope = 2 * (T(0.69314718055994530942) - size - logarithm(2 + power));
      sum += T(-0.5) * z * z - s - T(0.91893853320467274178) - log_slope;
    }
  }
  for (int other = lanes / 2; other > 0; other /= 2) sum += __shfl_xor_sync(kFullWarp, sum, other);
  if (inside && lane == 0) log_prob[sample] = sum;
}

// A thread for each number of the mean, which sums over the samples. The slope of tanh is 1 - action^2, that of
// -log(1 - tanh^2) is 2 action.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    tanh_gaussian_backward_kernel(TanhGaussianGradient<T> gradient, Rows<T> action_grad) {
  const TanhGaussian<T>& g = gradient.forward;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= g.states * g.dim) return;
  const int64_t state = quotient(at, g.dim), d = at - state * g.dim;
  const T std = exponential(g.log_std[at]);
  T mean_grad = 0, log_std_grad = 0;
  for (int64_t j = state * g.samples; j < (state + 1) * g.samples; ++j) {
    const T action = gradient.actions[j * g.dim + d], log_prob_grad = gradient.log_prob_grad[j];
    const T own = action_grad.at[j * action_grad.row + d * action_grad.column];
    const T u_grad = own * (1 - action * action) + 2 * log_prob_grad * action;
    mean_grad += u_grad;
    log_std_grad += u_grad * std * g.noise[j * g.dim + d] - log_prob_grad;
  }
  gradient.mean_grad[at] = mean_grad, gradient.log_std_grad[at] = log_std_grad;
}

}  // namespace

template <typename T>
Status tanh_gaussian(const TanhGaussian<T>& g, T* actions, T* log_prob, void* stream) {
  int shift = 0;
  while (shift < 5 && (int64_t(1) << shift) < g.dim) ++shift;
  const unsigned blocks = blocks_for(g.states * g.samples, kThreads >> shift);
  if (blocks == 0) return {"tanh_gaussian", kTooManyBlocks};
  const CaptureRelaxed relaxed;
  return status_of("tanh_gaussian", launch_kernel(tanh_gaussian_kernel<T>, blocks, kThreads, 0,
                                                  static_cast<cudaStream_t>(stream), g, shift, actions, log_prob));
}

template <typename T>
Status tanh_gaussian_backward(const TanhGaussianGradient<T>& gradient, const Rows<T>& action_grad, void* stream) {
  const unsigned blocks = blocks_for(gradient.forward.states * gradient.forward.dim, kThreads);
  if (blocks == 0) return {"tanh_gaussian_backward", kTooManyBlocks};
  const CaptureRelaxed relaxed;
  return status_of("tanh_gaussian_backward", launch_kernel(tanh_gaussian_backward_kernel<T>, blocks, kThreads, 0,
                                                           static_cast<cudaStream_t>(stream), gradient, action_grad));
}

template Status tanh_gaussian(const TanhGaussian<float>&, float*, float*, void*);
template Status tanh_gaussian(const TanhGaussian<double>&, double*, double*, void*);
template Status tanh_gaussian_backward(const TanhGaussianGradient<float>&, const Rows<float>&, void*);
template Status tanh_gaussian_backward(const TanhGaussianGradient<double>&, const Rows<double>&, void*);

}  // namespace qcse::cuda

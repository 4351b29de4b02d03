// Launchers of the kernels for a policy, its loss and target, and the optimiser: one launch each, on the given stream,
// which they neither wait for nor allocate from. No CUDA and no torch header is needed to call them. T is float or
// double.
#pragma once
#include <cstdint>
#include <vector>

#include "base/cuda/launch.h"
#include "nets/policy.h"
#include "nets/tanh_gaussian.h"

namespace qcse::cuda {

// actions [states, samples, dim], log_prob [states, samples]
template <typename T>
Status tanh_gaussian(const TanhGaussian<T>& g, T* actions, T* log_prob, void* stream);

// `action_grad` in place of the gradient's own, a row for each sample.
template <typename T>
Status tanh_gaussian_backward(const TanhGaussianGradient<T>& gradient, const Rows<T>& action_grad, void* stream);

// mean, log_std [seeds, states, dim]
template <typename T>
Status gaussian_head(const GaussianHead<T>& head, T* mean, T* log_std, void* stream);
template <typename T>
Status gaussian_head_backward(const GaussianHeadGradient<T>& gradient, void* stream);

template <typename T>
Status bellman_target(const BellmanTarget<T>& t, void* stream);

// loss, mean_log_prob [seeds]
template <typename T>
Status actor_loss(const ActorLoss<T>& a, T* loss, T* mean_log_prob, void* stream);
template <typename T>
Status actor_loss_backward(const ActorLossGradient<T>& gradient, void* stream);

// How many tensors one launch of adam() takes: their descriptions are the kernel's parameters.
inline constexpr int kAdamTensors = 48;

// One step of every tensor, at most kAdamTensors of them. `tickets` [tensors] must be 0, and is 0 again afterwards.
template <typename T>
Status adam(const std::vector<AdamTensor<T>>& tensors, const AdamSettings& settings, int32_t* tickets, void* stream);

}  // namespace qcse::cuda

// The CPU backend of the fused critic step (critic.h), of fully connected networks (mlp.h) and of tanh-Gaussian
// policies (tanh_gaussian.h). No torch header: the caller lends its thread pool. `bf16` may be asked for where
// has_bf16() of isa/isa.h says so.
#pragma once
#include "nets/critic.h"
#include "base/threads.h"
#include "nets/mlp.h"
#include "nets/tanh_gaussian.h"

namespace qcse::cpu {

// values: [S, E, batch, actions]
template <typename T>
void critic_values(const Critics<T>& critics, T* values, const Threads& threads);

template <typename T>
void conservative_loss(const ConservativeLoss<T>& loss, const Threads& threads);

// hidden: [M, chunks, kMlpChunk, kept], or null to keep nothing; y: [M, rows, outputs]
template <typename T>
void mlp_forward(const Mlp<T>& mlp, T* hidden, T* y, const Threads& threads);

// On the instruction set that mlp_forward ran on. Throws std::invalid_argument where `hidden` is not its.
template <typename T>
void mlp_backward(const MlpGradient<T>& gradient, const Threads& threads);

// actions: [states, samples, dim], log_prob: [states, samples]
template <typename T>
void tanh_gaussian(const TanhGaussian<T>& gaussian, T* actions, T* log_prob, const Threads& threads);

template <typename T>
void tanh_gaussian_backward(const TanhGaussianGradient<T>& gradient, const Threads& threads);

}  // namespace qcse::cpu

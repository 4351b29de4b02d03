// What the per-instruction-set files offer to launch.cpp. As for knn/cpu/kernels.h, everything in a file
// isa/<set>/nets.cpp has internal linkage, and no inline function of the standard library is used there.
#pragma once
#include <cstdint>

#include "base/integers.h"
#include "nets/critic.h"
#include "nets/mlp.h"
#include "nets/tanh_gaussian.h"

namespace qcse::cpu {

// One critic, a range of states: what one thread works on at a time.
struct CriticRange {
  int64_t seed, member;
  int64_t begin, end;  // states
};

// Sums over a range's states, to be divided by the number of states (and actions) by the caller.
template <typename T>
struct LossSums {
  T error = 0, gap = 0, q_data = 0, q_uniform = 0, q_policy = 0, bound = 0;
};

template <typename T>
struct CriticKernels {
  // Scalars of workspace that one call needs.
  int64_t (*workspace)(const Critics<T>&, bool gradient);
  // values: [S, E, batch, actions]
  void (*values)(const Critics<T>&, const CriticRange&, T* workspace, T* values);
  // Overwrites the gradients [inputs, outputs] and [outputs] of this critic's layers.
  LossSums<T> (*conservative)(const ConservativeLoss<T>&, const CriticRange&, T* workspace, T* const* weight_grads,
                              T* const* bias_grads);
};

// One network, a range of rows that begins with one of its chunks.
struct MlpRange {
  int64_t net;
  int64_t begin, end;
};

template <typename T>
struct MlpKernels {
  // Scalars of workspace that one call needs.
  int64_t (*workspace)(const Mlp<T>&, bool backward);
  // hidden: null to keep nothing; y: [M, rows, outputs]
  void (*forward)(const Mlp<T>&, const MlpRange&, T* workspace, T* hidden, T* y);
  // Overwrites x_grad's rows of the range. The gradients of this network's parameters over the range go to weight_grads
  // and bias_grads, unless these are null.
  void (*backward)(const MlpGradient<T>&, const MlpRange&, T* workspace, T* const* weight_grads, T* const* bias_grads);
};

template <typename T>
struct TanhGaussianKernels {
  // Scalars of workspace that one call needs.
  int64_t (*workspace)(const TanhGaussian<T>&);
  // Of the states [begin, end); actions: [states, samples, dim], log_prob: [states, samples].
  void (*sample)(const TanhGaussian<T>&, int64_t begin, int64_t end, T* workspace, T* actions, T* log_prob);
  void (*backward)(const TanhGaussianGradient<T>&, int64_t begin, int64_t end, T* workspace);
};

template <typename T>
struct NetworkKernels {
  CriticKernels<T> critic;
  MlpKernels<T> mlp;
  TanhGaussianKernels<T> tanh_gaussian;
};

struct NetworkKernelSet {
  NetworkKernels<float> single;
  NetworkKernels<double> twofold;
};

}  // namespace qcse::cpu

// What the per-instruction-set files offer to critic_cpu.cpp. As for kernel.h, everything in a critic_<set>.cpp file
// has internal linkage, and no inline function of the standard library is used there.
#pragma once
#include <cstdint>

#include "critic.h"

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

struct CriticKernelSet {
  const char* name;
  CriticKernels<float> single;
  CriticKernels<double> twofold;
};

extern const CriticKernelSet kPortableCritic;
#ifdef QCSE_X86_KERNELS
extern const CriticKernelSet kAvx2Critic;
extern const CriticKernelSet kAvx512Critic;
extern const CriticKernels<float> kBfloat16Critic;  // needs AVX512-BF16 and AVX512-VBMI2
#endif

}  // namespace qcse::cpu

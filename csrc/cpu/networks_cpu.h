// The CPU backend of the fused critic step (critic.h). No torch header: the caller lends its thread pool.
#pragma once
#include "critic.h"
#include "knn_cpu.h"

namespace qcse::cpu {

inline constexpr int64_t kMaxCriticLayers = 16;

// Whether this CPU has the instructions that `Critics::bf16` asks for.
bool has_bf16();

// values: [S, E, batch, actions]
template <typename T>
void critic_values(const Critics<T>& critics, T* values, const Threads& threads);

template <typename T>
void conservative_loss(const ConservativeLoss<T>& loss, const Threads& threads);

}  // namespace qcse::cpu

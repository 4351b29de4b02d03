// The contract of the fused critic step on a CPU: plain pointers and sizes, no torch.
//
// E Q-functions for each of S seeds are fully connected ReLU networks on (state, action) with one output. Two things
// are computed here, both without ever holding the activations of a whole batch: they are made, used and dropped
// chunk by chunk of states, inside the second-level cache.
//
// Values: Q_e(s, a_j) for n actions of each state.
//
// Conservative loss (CQL, arXiv 2006.04779; Cal-QL, arXiv 2303.05479) and its gradient, per seed and critic, means
// over the B states, actions ordered as data, n uniform, 2n of the policy:
//   error = mean (Q_0 - target)^2
//   v_j   = offset_j + (j > n ? max(Q_j, bound) : Q_j),  j = 1 .. 3n; with include_data also v_0 = Q_0
//   gap   = mean max(T log sum_j exp(v_j / T) - Q_0, floor)
//   loss  = error + weight * gap                          (the gradient is that of this, weight being a constant)
// A sum's order depends on the number of threads: equal threads give equal bits.
#pragma once
#include <cstdint>

#include "nets/mlp.h"

namespace qcse {

template <typename T>
struct Critics {
  int64_t seeds = 0, members = 0;  // S, E
  int64_t batch = 0, actions = 0;  // states per seed, actions per state
  int64_t state_dim = 0, action_dim = 0;
  int64_t layers = 0;                 // affine layers, 2 to kMaxLayers
  const int64_t* widths = nullptr;    // [layers]: outputs of each layer, the last being 1
  const T* const* weights = nullptr;  // [layers] -> [S * E, inputs, outputs]
  const T* const* biases = nullptr;   // [layers] -> [S * E, outputs]
  const T* states = nullptr;          // [S, batch, state_dim]
  const T* action_rows = nullptr;     // [S, batch, actions, action_dim]
  bool bf16 = false;                  // round the factors of the hidden layers' products to bfloat16 (float only)
};

template <typename T>
struct ConservativeLoss {
  Critics<T> critics;          // actions = 1 + 3n
  int64_t sampled = 0;         // n
  const T* target = nullptr;   // [S, batch]
  const T* offsets = nullptr;  // [S, batch, 3n]
  const T* bound = nullptr;    // [S, batch]; -inf bounds nothing
  const T* weight = nullptr;   // [S]
  T temperature = 1;
  T floor = 0;  // -inf: none
  bool include_data = false;
  // Results per seed and critic, [S * E] each, means over states (and actions).
  T* error = nullptr;
  T* gap = nullptr;
  T* q_data = nullptr;
  T* q_uniform = nullptr;
  T* q_policy = nullptr;
  T* bound_share = nullptr;          // share of policy actions whose Q lies below the bound
  T* const* weight_grads = nullptr;  // as the weights
  T* const* bias_grads = nullptr;
};

}  // namespace qcse

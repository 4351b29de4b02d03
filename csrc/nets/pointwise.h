// What lies between the matrix products of fully connected ReLU networks: plain pointers and sizes, no torch. On a GPU
// the products are cuBLAS's, and each of these is one pass over their results. M networks have R rows each; all
// tensors are dense, and a width is that of one layer.
//
// All sums are taken in an order that the shape decides: equal inputs give equal bits. max(v, 0) and the mask of its
// gradient are torch's: a NaN passes both.
#pragma once
#include <cstdint>

namespace qcse {

// x = max(x + bias, 0) in place.
template <typename T>
struct BiasRelu {
  int64_t nets = 0, rows = 0, width = 0;
  T* x = nullptr;           // [M, R, width]
  const T* bias = nullptr;  // [M, width]
};

// The first layer of critics, whose state's part the actions of a state share:
//   h = max(action weight + (state + bias), 0)
// A sum begins with the state's part and the bias, and takes the products in the order of the inputs, each added by a
// fused multiply-add.
template <typename T>
struct ActionRelu {
  int64_t nets = 0, rows = 0, width = 0;
  int64_t actions = 1;        // of a state: rows = states * actions
  int64_t inputs = 0;         // numbers of an action
  int64_t members = 1;        // networks that share the actions, one behind the other
  int64_t weight_step = 0;    // from one network's weight to the next
  const T* action = nullptr;  // [M / members, R, inputs]
  const T* weight = nullptr;  // [M, inputs, width]
  const T* state = nullptr;   // [M, R / actions, width]
  const T* bias = nullptr;    // [M, width]
  T* h = nullptr;             // [M, R, width]
};

// y = sum h * weight + last_bias, of h = max(x + bias, 0), or max(x, 0) without a bias.
template <typename T>
struct ReluDot {
  int64_t nets = 0, rows = 0, width = 0;
  const T* x = nullptr;          // [M, R, width]
  const T* bias = nullptr;       // [M, width] or null
  const T* weight = nullptr;     // [M, width]
  const T* last_bias = nullptr;  // [M]
  T* y = nullptr;                // [M, R]
};

// grad = 0 where h <= 0, in place, and its sum over the rows.
template <typename T>
struct ReluGradient {
  int64_t nets = 0, rows = 0, width = 0;
  const T* h = nullptr;    // [M, R, width]
  T* grad = nullptr;       // [M, R, width]
  T* bias_grad = nullptr;  // [M, width]
};

// The gradient of the critics' first layer: g = h <= 0 ? 0 : grad, which is written nowhere, and its sums: over the
// actions of a state, over all rows, and multiplied by each number of the actions.
template <typename T>
struct ActionReluGradient {
  int64_t nets = 0, rows = 0, width = 0;
  int64_t actions = 1;        // of a state: rows = states * actions
  int64_t inputs = 0;         // numbers of an action
  int64_t members = 1;        // networks that share the actions, one behind the other
  int64_t weight_step = 0;    // from one network's weight to the next
  const T* h = nullptr;       // [M, R, width]
  const T* grad = nullptr;    // [M, R, width]
  const T* action = nullptr;  // [M / members, R, inputs]
  T* weight_grad = nullptr;   // [M, inputs, width]
  T* state_grad = nullptr;    // [M, R / actions, width]
  T* bias_grad = nullptr;     // [M, width]
};

// The gradient behind ReluDot, which for y is an outer product. h is computed again from x:
//   g = y_grad * factor,  h = max(x + bias, 0),  grad = h <= 0 ? 0 : g * weight
// and the sums over the rows: of grad, of g * h (the gradient of the last layer's weight), of g (of its bias).
template <typename T>
struct OuterReluGradient {
  int64_t nets = 0, rows = 0, width = 0;
  int64_t members = 1;          // networks that share a factor, one behind the other
  int64_t factor_step = 1;      // from one factor to the next; 0: there is one
  const T* x = nullptr;         // [M, R, width]
  const T* bias = nullptr;      // [M, width] or null: 0
  const T* y_grad = nullptr;    // [M, R]
  const T* factor = nullptr;    // [M / members] or null: 1
  const T* weight = nullptr;    // [M, width]
  T* grad = nullptr;            // [M, R, width]
  T* bias_grad = nullptr;       // [M, width]; this and the next two may be null together
  T* weight_grad = nullptr;     // [M, width]
  T* last_bias_grad = nullptr;  // [M]
};

// The loss of critic.h and its gradient with respect to Q.
template <typename T>
struct ConservativeHead {
  int64_t seeds = 0, members = 0, batch = 0;
  int64_t sampled = 0;         // n
  const T* q = nullptr;        // [S, E, batch, 1 + 3n]
  const T* target = nullptr;   // [S, batch]
  const T* offsets = nullptr;  // [S, batch, 3n]
  const T* bound = nullptr;    // [S, batch]
  const T* weight = nullptr;   // [S]
  T temperature = 1;
  T floor = 0;  // -inf: none
  bool include_data = false;
  T* loss = nullptr;        // [S]: sum over the critics of error + weight * gap
  T* statistics = nullptr;  // [6, S, E]: error, gap, q_data, q_uniform, q_policy, bound_share
  T* q_grad = nullptr;      // as q: of error + weight * gap
  T* partial = nullptr;     // [S, E, kConservativeSums, conservative_parts(batch)]: a workspace
};

// What each few states of a critic add to its six statistics.
inline constexpr int kConservativeSums = 6;
inline constexpr int kConservativeStates = 4;
constexpr int64_t conservative_parts(int64_t batch) { return (batch + kConservativeStates - 1) / kConservativeStates; }

}  // namespace qcse

// The contract of what the kernels for GPUs do around the networks: the head of a policy, the target and the policy's
// loss of an actor-critic, and the optimiser. Plain pointers and sizes, no torch; the definitions in plain torch are
// qcse_ext/nets/actor_critic.py and qcse_ext/nets/optimizer.py. Matrices are dense, row after row, except for Rows.
#pragma once
#include <cstdint>

namespace qcse {

// Rows of numbers that need not be dense: number d of row r is at[r * row + d * column].
template <typename T>
struct Rows {
  const T* at = nullptr;
  int64_t row = 0, column = 0;
};

// mean = raw[..., :dim], log_std = clamp(multiplier * raw[..., dim:] + offset, low, high)
template <typename T>
struct GaussianHead {
  int64_t seeds = 0, states = 0, dim = 0;
  const T* raw = nullptr;         // [seeds, states, 2 dim]
  const T* multiplier = nullptr;  // [seeds]
  const T* offset = nullptr;      // [seeds]
  T low = 0, high = 0;
};

template <typename T>
struct GaussianHeadGradient {
  GaussianHead<T> forward;
  const T* mean_grad = nullptr;     // [seeds, states, dim]
  const T* log_std_grad = nullptr;  // [seeds, states, dim]
  // Results.
  T* raw_grad = nullptr;         // [seeds, states, 2 dim]
  T* multiplier_grad = nullptr;  // [seeds]
  T* offset_grad = nullptr;      // [seeds]
};

// target = rewards + discount * bootstrap * value, where value is the best, over the actions, of the least of the
// members' values, minus temperature * log_prob of that action where there is a log_prob. Of equal values the first is
// the best; a NaN is less than everything among members and better than everything among actions.
template <typename T>
struct BellmanTarget {
  int64_t seeds = 0, members = 0, states = 0, actions = 0;
  const T* values = nullptr;       // [seeds, members, states, actions]
  const T* log_prob = nullptr;     // [seeds, states, actions], or null
  const T* rewards = nullptr;      // [seeds, states]
  const T* bootstrap = nullptr;    // [seeds, states]
  const T* temperature = nullptr;  // [seeds]
  T discount = 0;
  T* target = nullptr;  // result [seeds, states]
};

// loss = mean over states of temperature * log_prob - (least or mean of the members' q)
template <typename T>
struct ActorLoss {
  int64_t seeds = 0, members = 0, states = 0;
  bool least = false;
  const T* q = nullptr;            // [seeds, members, states]
  const T* log_prob = nullptr;     // [seeds, states]
  const T* temperature = nullptr;  // [seeds]
};

// The gradient of a least q is shared evenly by the members that have it; that of a NaN is NaN.
template <typename T>
struct ActorLossGradient {
  ActorLoss<T> forward;  // its log_prob is not read
  const T* loss_grad = nullptr;
  int64_t loss_grad_stride = 0;  // from seed to seed
  // Results.
  T* q_grad = nullptr;         // [seeds, members, states]
  T* log_prob_grad = nullptr;  // [seeds, states]
};

// One parameter of Adam's, and what follows it.
template <typename T>
struct AdamTensor {
  int64_t count = 0;  // of its numbers
  T* parameter = nullptr;
  const T* gradient = nullptr;
  T* first_moment = nullptr;
  T* second_moment = nullptr;
  T* target = nullptr;     // goes target_rate of the way to the new parameter; null: nothing follows it
  float* steps = nullptr;  // one number, the updates so far
  double rate = 0;         // the learning rate
};

struct AdamSettings {
  double beta1 = 0, beta2 = 0, epsilon = 0, target_rate = 0;
};

}  // namespace qcse

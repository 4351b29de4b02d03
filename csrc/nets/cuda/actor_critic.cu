// The target of an actor-critic's critics, and its policy's loss with the gradient.
#include "nets/cuda/block_sum.h"
#include "nets/cuda/policy_launch.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kSumThreads = 256;

// Of `count` numbers, `stride` apart; a NaN is less than every number.
template <typename T>
__device__ __forceinline__ T least_of(const T* numbers, int64_t count, int64_t stride) {
  T least = numbers[0];
  for (int64_t e = 1; e < count; ++e) {
    const T other = numbers[e * stride];
    if (other < least || is_nan(other)) least = other;
  }
  return least;
}

// `parts` blocks for each seed.
template <typename T>
__global__ void __launch_bounds__(kThreads) bellman_target_kernel(BellmanTarget<T> t, unsigned parts) {
  const int64_t seed = blockIdx.x / parts, state = static_cast<int64_t>(blockIdx.x % parts) * kThreads + threadIdx.x;
  if (state >= t.states) return;
  const int64_t at = seed * t.states + state, each = t.states * t.actions;
  const T* const values = t.values + seed * t.members * each + state * t.actions;
  T best = 0;
  int64_t which = 0;
  for (int64_t j = 0; j < t.actions; ++j) {
    const T value = least_of(values + j, t.members, each);
    if (j == 0 || value > best || is_nan(value)) best = value, which = j;  // a NaN stays the best
  }
  if (t.log_prob != nullptr) best = best - t.temperature[seed] * t.log_prob[at * t.actions + which];
  t.target[at] = t.rewards[at] + t.discount * t.bootstrap[at] * best;
}

template <typename T>
__device__ __forceinline__ const T* q_of(const ActorLoss<T>& a, int64_t seed, int64_t state) {
  return a.q + seed * a.members * a.states + state;
}

// A block for each seed, so that the sums need no other.
template <typename T>
__global__ void __launch_bounds__(kSumThreads) actor_loss_kernel(ActorLoss<T> a, T* loss, T* mean_log_prob) {
  SharedLayout layout;
  constexpr int kNumbers = kSumThreads / kWarp * 2;
  T* const shared = shared_array<T>(layout.add<T>(kNumbers), kNumbers);
  const int64_t seed = blockIdx.x;
  const T temperature = a.temperature[seed];
  T sums[2] = {0, 0};
  for (int64_t state = threadIdx.x; state < a.states; state += kSumThreads) {
    const T* const q = q_of(a, seed, state);
    T value = 0;
    if (a.least) {
      value = least_of(q, a.members, a.states);
    } else {
      for (int64_t e = 0; e < a.members; ++e) value += q[e * a.states];
      value /= static_cast<T>(a.members);
    }
    const T log_prob = a.log_prob[seed * a.states + state];
    sums[0] += temperature * log_prob - value;
    sums[1] += log_prob;
  }
  block_sums<kSumThreads>(sums, shared);
  if (threadIdx.x != 0) return;
  loss[seed] = sums[0] / static_cast<T>(a.states);
  mean_log_prob[seed] = sums[1] / static_cast<T>(a.states);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) actor_loss_backward_kernel(ActorLossGradient<T> gradient) {
  const ActorLoss<T>& a = gradient.forward;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= a.seeds * a.states) return;
  const int64_t seed = quotient(at, a.states), state = at - seed * a.states;
  const T each = gradient.loss_grad[seed * gradient.loss_grad_stride] / static_cast<T>(a.states);
  gradient.log_prob_grad[at] = each * a.temperature[seed];
  const T* const q = q_of(a, seed, state);
  T* const q_grad = gradient.q_grad + (q - a.q);
  T least = 0, share = static_cast<T>(a.members);
  if (a.least) {
    least = least_of(q, a.members, a.states);
    share = 0;  // 0 / 0 where the least is NaN
    for (int64_t e = 0; e < a.members; ++e) share += q[e * a.states] == least ? T(1) : T(0);
  }
  for (int64_t e = 0; e < a.members; ++e) {
    const bool reached = !a.least || q[e * a.states] == least;
    q_grad[e * a.states] = (reached ? -each : T(0)) / share;
  }
}

}  // namespace

template <typename T>
Status bellman_target(const BellmanTarget<T>& t, void* stream) {
  const unsigned parts = blocks_for(t.states, kThreads), blocks = blocks_for(t.seeds * parts, 1);
  if (parts == 0 || blocks == 0) return {"bellman_target", kTooManyBlocks};
  const CaptureRelaxed relaxed;
  return status_of("bellman_target", launch_kernel(bellman_target_kernel<T>, blocks, kThreads, 0,
                                                   static_cast<cudaStream_t>(stream), t, parts));
}

template <typename T>
Status actor_loss(const ActorLoss<T>& a, T* loss, T* mean_log_prob, void* stream) {
  const unsigned blocks = blocks_for(a.seeds, 1);
  if (blocks == 0) return {"actor_loss", kTooManyBlocks};
  SharedLayout layout;
  layout.add<T>(kSumThreads / kWarp * 2);
  const CaptureRelaxed relaxed;
  return status_of("actor_loss", launch_kernel(actor_loss_kernel<T>, blocks, kSumThreads, layout.bytes(),
                                               static_cast<cudaStream_t>(stream), a, loss, mean_log_prob));
}

template <typename T>
Status actor_loss_backward(const ActorLossGradient<T>& gradient, void* stream) {
  const unsigned blocks = blocks_for(gradient.forward.seeds * gradient.forward.states, kThreads);
  if (blocks == 0) return {"actor_loss_backward", kTooManyBlocks};
  const CaptureRelaxed relaxed;
  return status_of("actor_loss_backward", launch_kernel(actor_loss_backward_kernel<T>, blocks, kThreads, 0,
                                                        static_cast<cudaStream_t>(stream), gradient));
}

template Status bellman_target(const BellmanTarget<float>&, void*);
template Status bellman_target(const BellmanTarget<double>&, void*);
template Status actor_loss(const ActorLoss<float>&, float*, float*, void*);
template Status actor_loss(const ActorLoss<double>&, double*, double*, void*);
template Status actor_loss_backward(const ActorLossGradient<float>&, void*);
template Status actor_loss_backward(const ActorLossGradient<double>&, void*);

}  // namespace qcse::cuda

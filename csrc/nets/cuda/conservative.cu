// The conservative loss of all critics of a seed and its gradient with respect to their values: a block for each seed,
// so that the loss too is summed in the one launch and in a fixed order.
#include "nets/cuda/block_sum.h"
#include "nets/cuda/packs.h"
#include "nets/cuda/pointwise.h"

namespace qcse::cuda {
namespace {

template <typename T>
struct Block {
  static constexpr int kThreads = sizeof(T) == 4 ? 1024 : 256;  // in double precision more would spill
  static constexpr int kWarps = kThreads / kWarp;
};
constexpr int kTeam = 8;  // threads that share a state: three or four of its 31 actions each
constexpr int kSums = 6;  // error, gap, q_data, q_uniform, q_policy, policy actions below the bound

template <typename T>
__device__ __forceinline__ T team_sum(T a) {
#pragma unroll
  for (int lanes = kTeam / 2; lanes > 0; lanes /= 2) a += __shfl_xor_sync(kFullWarp, a, lanes);
  return a;
}
template <typename T>
__device__ __forceinline__ T team_max(T a) {
#pragma unroll
  for (int lanes = kTeam / 2; lanes > 0; lanes /= 2) a = larger(a, __shfl_xor_sync(kFullWarp, a, lanes));
  return a;
}

// One state of one critic, as a team sees it.
template <typename T>
struct State {
  const T* q;        // [1 + 3n]
  const T* offsets;  // [3n]
  T bound, target;
  int n;
  bool include_data;

  // What stands in the log-sum-exp for action j; nothing, -inf, for the data's where it is left out.
  __device__ __forceinline__ T value(int j, T own) const {
    if (j == 0) return include_data ? own : -infinity<T>();
    return offsets[j - 1] + (j > n && own < bound ? bound : own);
  }
};

// Adds the state's shares to the thread's sums, and writes the gradient where the team's state is `live`. `share` is 1
// over the number of states, `weight` the gap's weight times that.
template <typename T>
__device__ __forceinline__ void take_state(const State<T>& s, const ConservativeHead<T>& p, T share, T weight, int lane,
                                           bool live, T* grad, T (&sums)[kSums]) {
  const int last = 3 * s.n;
  // A bound that is not a number leaves all of the log-sum-exp so, as torch's maximum does.
  const bool spoilt = s.bound != s.bound;
  T top = -infinity<T>();
  for (int j = lane; j <= last; j += kTeam) top = larger(top, s.value(j, s.q[j]));  // passes NaN over
  top = team_max(top);
  const T shift = magnitude(top) == infinity<T>() ? T(0) : top;  // as torch's logsumexp
  T part = 0;
  for (int j = lane; j <= last; j += kTeam) {
    if (j > 0 || s.include_data) part += exponential((s.value(j, s.q[j]) - shift) / p.temperature);
  }
  T sum = team_sum(part);
  // Beside an infinite value all others vanish, whatever they are; it gets no number.
  const T back = top == infinity<T>() ? top : shift;
  if (spoilt) sum = not_a_number<T>();
  const T data = s.q[0];
  const T difference = shift + p.temperature * logarithm(sum) - data;
  // torch's clamp passes the gradient where the value lies on the bound, and none of NaN; -inf stands for no clamp.
  const bool open = difference >= p.floor || p.floor == -infinity<T>();
  const T scale = open ? weight : T(0), inverse = T(1) / sum, error = data - s.target;
  if (!live) return;
  for (int j = lane; j <= last; j += kTeam) {
    const T q = s.q[j];
    T of_gap = T(0);
    if (j > 0 || s.include_data) of_gap = scale * (exponential((s.value(j, q) - back) / p.temperature) * inverse);
    if (j == 0) {
      grad[0] = 2 * error * share - scale + of_gap;
      sums[0] += error * error;
      sums[1] += difference < p.floor ? p.floor : difference;
      sums[2] += q;
    } else if (j <= s.n) {
      grad[j] = of_gap;
      sums[3] += q;
    } else {
      // As torch's maximum, which gives each of two equal values half of the gradient.
      const bool below = q < s.bound;
      grad[j] = below ? T(0) : q == s.bound ? of_gap / 2 : of_gap;
      sums[4] += q;
      sums[5] += below ? T(1) : T(0);
    }
  }
}

template <typename T>
struct HeadLayout {
  size_t partial, bytes;
  static constexpr size_t kPartial = static_cast<size_t>(Block<T>::kWarps) * kSums;
  __host__ __device__ HeadLayout() {
    SharedLayout layout;
    partial = layout.add<T>(kPartial);
    bytes = layout.bytes();
  }
};

template <typename T>
__global__ void __launch_bounds__(Block<T>::kThreads, 1) conservative_head_kernel(const ConservativeHead<T> p) {
  constexpr int kTeams = Block<T>::kThreads / kTeam;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, team = thread / kTeam;
  const int64_t seed = blockIdx.x;
  const int batch = static_cast<int>(p.batch), n = static_cast<int>(p.sampled), values = 1 + 3 * n;
  T* const partial = shared_array<T>(HeadLayout<T>().partial, HeadLayout<T>::kPartial);
  const T share = T(1) / static_cast<T>(batch), weight = p.weight[seed];
  T loss = 0;
  for (int64_t member = 0; member < p.members; ++member) {
    const int64_t critic = seed * p.members + member;
    T sums[kSums] = {};
    for (int first = 0; first < batch; first += kTeams) {
      // Teams without a state of their own go along with the last, as shuffles need the whole warp.
      const bool live = first + team < batch;
      const int64_t b = live ? first + team : batch - 1;
      const int64_t row = seed * batch + b, at = (critic * batch + b) * values;
      const State<T> s{p.q + at, p.offsets + row * (values - 1), p.bound[row], p.target[row], n, p.include_data};
      take_state(s, p, share, weight * share, thread % kTeam, live, p.q_grad + at, sums);
    }
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
#pragma unroll
      for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sums[k] += __shfl_xor_sync(kFullWarp, sums[k], lanes);
      if (thread % kWarp == 0) partial[warp * kSums + k] = sums[k];
    }
    __syncthreads();
    if (warp == 0) {
      T mean = 0;
      if (thread < kSums) {
        for (int w = 0; w < Block<T>::kWarps; ++w) mean += partial[w * kSums + thread];
        mean /= static_cast<T>(batch) * static_cast<T>(thread < 3 ? 1 : thread == 3 ? n : 2 * n);
        p.statistics[(thread * p.seeds + seed) * p.members + member] = mean;
      }
      const T gap = __shfl_sync(kFullWarp, mean, 1);
      loss += mean + weight * gap;  // thread 0 has the error
    }
    __syncthreads();  // before the next critic's sums take their place
  }
  if (thread == 0) p.loss[seed] = loss;
}

}  // namespace

template <typename T>
Status launch(const ConservativeHead<T>& p, void* stream) {
  const CaptureRelaxed relaxed;
  if (p.seeds > INT32_MAX) return {"nets_conservative_head_kernel", kTooManyBlocks};
  return status_of(
      "nets_conservative_head_kernel",
      launch_kernel(conservative_head_kernel<T>, dim3(static_cast<unsigned>(p.seeds)), dim3(Block<T>::kThreads),
                    HeadLayout<T>().bytes, static_cast<cudaStream_t>(stream), p));
}

template Status launch(const ConservativeHead<float>&, void*);
template Status launch(const ConservativeHead<double>&, void*);

}  // namespace qcse::cuda

// The conservative loss of all critics of a seed and its gradient with respect to their values, in two launches. In the
// first a team of threads takes a state of a critic, each value once, and each warp leaves its states' shares of the
// sums in memory. In the second a block for each seed adds these up, in an order that the shape decides.
#include "nets/cuda/block_sum.h"
#include "nets/cuda/packs.h"
#include "nets/cuda/pointwise.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 128;  // of the first launch: many small blocks, so that few states share a multiprocessor
constexpr int kTeam = 8;       // threads that share a state
constexpr int kTeams = kWarp / kTeam;
constexpr int kHeld = 4;               // values of a state that a thread has at a time
constexpr int kPiece = kTeam * kHeld;  // so many a team; up to 10 actions of each kind are all 31 of a state
constexpr int kLossThreads = 256;      // of the second: a warp for each critic
constexpr int kSums = kConservativeSums;
static_assert(kTeams == kConservativeStates);

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

// One state of one critic, as a thread of its team sees it.
template <typename T>
struct State {
  const T* q;             // [1 + 3n]
  const T* offsets;       // [3n]
  T data, bound, target;  // data: the first of q
  int n, lane;            // lane: of the team
  bool include_data;

  __device__ __forceinline__ int action(int piece, int i) const { return piece * kPiece + i * kTeam + lane; }
  __device__ __forceinline__ bool has(int j) const { return j <= 3 * n; }

  // The thread's values of a piece, and what stands in the log-sum-exp for each: -inf, which adds nothing, for the
  // data's where it is left out, and behind the last.
  __device__ __forceinline__ void load(int piece, T (&own)[kHeld], T (&value)[kHeld]) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int j = action(piece, i);
      own[i] = has(j) ? q[j] : T(0);
      value[i] = has(j) && j > 0 ? offsets[j - 1] : T(0);
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int j = action(piece, i);
      value[i] += j > n && own[i] < bound ? bound : own[i];
      if (!has(j) || (j == 0 && !include_data)) value[i] = -infinity<T>();
    }
  }
};

template <typename T>
__device__ __forceinline__ void exponentials(const T (&value)[kHeld], T from, T temperature, T (&power)[kHeld]) {
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const T away = value[i] - from;
    power[i] = exponential(temperature == T(1) ? away : away / temperature);  // dividing by 1 only takes its time
  }
}

// Adds the state's shares to the thread's sums, and writes the gradient where the team's state is `live`. `share` is 1
// over the number of states, `weight` the gap's weight times that.
template <typename T>
__device__ __forceinline__ void take_state(const State<T>& s, const ConservativeHead<T>& p, T share, T weight,
                                           bool live, T* grad, T (&sums)[kSums]) {
  const int pieces = (3 * s.n + kPiece) / kPiece;
  // A bound that is not a number leaves all of the log-sum-exp so, as torch's maximum does.
  const bool spoilt = s.bound != s.bound;
  T own[kHeld], value[kHeld], power[kHeld];
  T top = -infinity<T>();
#pragma unroll 1
  for (int piece = 0; piece < pieces; ++piece) {
    s.load(piece, own, value);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) top = larger(top, value[i]);  // passes NaN over
  }
  top = team_max(top);
  const T shift = magnitude(top) == infinity<T>() ? T(0) : top;  // as torch's logsumexp
  T part = 0;
#pragma unroll 1
  for (int piece = 0; piece < pieces; ++piece) {
    if (pieces > 1) s.load(piece, own, value);  // a single piece is there already
    exponentials(value, shift, p.temperature, power);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) part += power[i];
  }
  T sum = team_sum(part);
  // Beside an infinite value all others vanish, whatever they are; it gets no number.
  const T back = top == infinity<T>() ? top : shift;
  if (spoilt) sum = not_a_number<T>();
  const T difference = shift + p.temperature * logarithm(sum) - s.data;
  // torch's clamp passes the gradient where the value lies on the bound, and none of NaN; -inf stands for no clamp.
  const bool open = difference >= p.floor || p.floor == -infinity<T>();
  const T scale = open ? weight : T(0), inverse = T(1) / sum, error = s.data - s.target;
  if (!live) return;
#pragma unroll 1
  for (int piece = 0; piece < pieces; ++piece) {
    if (pieces > 1) s.load(piece, own, value);
    if (pieces > 1 || back != shift) exponentials(value, back, p.temperature, power);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int j = s.action(piece, i);
      if (!s.has(j)) break;
      T of_gap = T(0);
      if (j > 0 || s.include_data) of_gap = scale * (power[i] * inverse);
      if (j == 0) {
        grad[0] = 2 * error * share - scale + of_gap;
        sums[0] += error * error;
        sums[1] += difference < p.floor ? p.floor : difference;
        sums[2] += s.data;
      } else if (j <= s.n) {
        grad[j] = of_gap;
        sums[3] += own[i];
      } else {
        // As torch's maximum, which gives each of two equal values half of the gradient.
        const bool below = own[i] < s.bound;
        grad[j] = below ? T(0) : own[i] == s.bound ? of_gap / 2 : of_gap;
        sums[4] += own[i];
        sums[5] += below ? T(1) : T(0);
      }
    }
  }
}

// A warp takes kTeams states of a critic; `parts` such warps take them all. share: 1 over the number of states.
template <typename T>
__global__ void __launch_bounds__(kThreads) conservative_head_kernel(const ConservativeHead<T> p, int parts, T share) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + thread / kWarp;
  const int64_t critic = quotient(place, parts), seed = quotient(critic, p.members);
  if (seed >= p.seeds) return;
  const int part = static_cast<int>(place - critic * parts), own = part * kTeams + lane / kTeam;
  const int batch = static_cast<int>(p.batch), n = static_cast<int>(p.sampled), values = 1 + 3 * n;
  // Teams without a state of their own go along with the last, as shuffles need the whole warp.
  const bool live = own < batch;
  const int64_t b = live ? own : batch - 1;
  const int64_t row = seed * batch + b, at = (critic * batch + b) * values;
  const T weight = p.weight[seed];
  const State<T> state{
      p.q + at, p.offsets + row * (values - 1), p.q[at], p.bound[row], p.target[row], n, lane % kTeam, p.include_data};
  T sums[kSums] = {};
  take_state(state, p, share, weight * share, live, p.q_grad + at, sums);
  warp_sums(sums);
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    if (lane == k) p.partial[(critic * kSums + k) * parts + part] = sums[k];
  }
}

template <typename T>
__global__ void __launch_bounds__(kLossThreads) conservative_loss_kernel(const ConservativeHead<T> p, int parts) {
  constexpr int kWarps = kLossThreads / kWarp;
  SharedLayout layout;
  T* const shared = shared_array<T>(layout.add<T>(kWarps), kWarps);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const int64_t seed = blockIdx.x;
  const T states = static_cast<T>(p.batch), n = static_cast<T>(p.sampled), weight = p.weight[seed];
  T loss[1] = {};
  for (int64_t first = 0; first < p.members; first += kWarps) {
    // Warps without a critic of their own go along with the last: so the compiler sees that no warp is divided.
    const bool live = first + thread / kWarp < p.members;
    const int64_t member = live ? first + thread / kWarp : p.members - 1;
    const T* const partial = p.partial + (seed * p.members + member) * kSums * parts;
    T sums[kSums] = {};
#pragma unroll 2
    for (int i = lane; i < parts; i += kWarp) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) sums[k] += partial[static_cast<int64_t>(k) * parts + i];
    }
    warp_sums(sums);
    T own = sums[0];  // a lane has a mean
#pragma unroll
    for (int k = 1; k < kSums; ++k) own = lane == k ? sums[k] : own;
    own /= states * (lane < 3 ? T(1) : lane == 3 ? n : 2 * n);
    if (live && lane < kSums) p.statistics[(lane * p.seeds + seed) * p.members + member] = own;
    const T gap = __shfl_sync(kFullWarp, own, 1);
    if (live && lane == 0) loss[0] += own + weight * gap;  // it has the error
  }
  block_sums<kLossThreads>(loss, shared);
  if (thread == 0) p.loss[seed] = loss[0];
}

}  // namespace

template <typename T>
Status launch(const ConservativeHead<T>& p, void* stream) {
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  const int64_t parts = conservative_parts(p.batch);
  const unsigned blocks = blocks_for(p.seeds * p.members * parts, kThreads / kWarp);
  if (p.seeds > INT32_MAX || blocks == 0) return {"nets_conservative_head_kernel", kTooManyBlocks};
  const T share = T(1) / static_cast<T>(p.batch);
  const Status status = status_of("nets_conservative_head_kernel",
                                  launch_kernel(conservative_head_kernel<T>, dim3(blocks), dim3(kThreads), 0, on, p,
                                                static_cast<int>(parts), share));
  if (status.error != nullptr) return status;
  SharedLayout layout;
  layout.add<T>(kLossThreads / kWarp);
  return status_of("nets_conservative_loss_kernel",
                   launch_kernel(conservative_loss_kernel<T>, dim3(static_cast<unsigned>(p.seeds)), dim3(kLossThreads),
                                 layout.bytes(), on, p, static_cast<int>(parts)));
}

template Status launch(const ConservativeHead<float>&, void*);
template Status launch(const ConservativeHead<double>&, void*);

}  // namespace qcse::cuda

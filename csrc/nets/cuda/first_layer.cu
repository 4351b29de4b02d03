// The critics' first layer, whose state's half the actions of a state share: its actions' half, the sum of both and the
// ReLU in one pass that writes the activations once, and its gradient in one pass that reads them once. An action has
// few numbers, so that memory, not arithmetic, is what takes time.
#include "nets/cuda/column_sums.h"
#include "nets/cuda/packs.h"
#include "nets/cuda/pointwise.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 256;

// --- Forward ---------------------------------------------------------------------------------------------------------

constexpr int kGroup = 8;       // actions of a state that a thread has: what it loads of the weight serves all of them
constexpr int kMostLanes = 64;  // threads side by side in a row
constexpr int kMostRounds = 4;
constexpr int64_t kEnoughBlocks = 256;
template <typename T>
inline constexpr int kStaged = 128 / static_cast<int>(sizeof(T));  // numbers of an action that are staged at a time

// How a network is shared among blocks: each has a tile of groups and a slab of columns. A thread takes `rounds`
// groups, one after the other: more of them where there are blocks enough, as its beginnings cost instructions.
struct Tiles {
  int lanes_log = 3;  // of the threads side by side in a row
  int groups;         // of a state
  int rounds;
  int64_t tiles, slabs;

  Tiles(int64_t nets, int64_t states, int64_t actions, int64_t packs)
      : groups(static_cast<int>((actions + kGroup - 1) / kGroup)) {
    while (1 << lanes_log < kMostLanes && 1 << lanes_log < packs) ++lanes_log;
    const int64_t at_a_time = kThreads >> lanes_log, lanes = int64_t{1} << lanes_log, most = states * groups;
    slabs = (packs + lanes - 1) / lanes;
    const int64_t spare = nets * slabs * (most / at_a_time) / kEnoughBlocks;
    rounds = spare < 1 ? 1 : spare < kMostRounds ? static_cast<int>(spare) : kMostRounds;
    tiles = (most + at_a_time * rounds - 1) / (at_a_time * rounds);
  }
};

// A group's actions lie transposed in shared memory, so that a thread reads the same number of all of them in whole
// vectors. The pitch spreads over the banks what a warp stores.
template <typename T>
struct ActionLayout {
  int pitch;
  size_t count, action, bytes;

  __host__ __device__ explicit ActionLayout(int lanes_log)
      : pitch(((kThreads >> lanes_log) + 1) * kGroup), count(static_cast<size_t>(pitch) * kStaged<T>) {
    SharedLayout layout;
    action = layout.add<T>(count);
    bytes = layout.bytes();
  }
};

// sum[r] += action[r] weight over the `count` numbers of the actions that are staged.
template <typename T, int V>
__device__ __forceinline__ void add_products(const T* staged, int pitch, const T* weight, int width, int count,
                                             Pack<T, V> (&sum)[kGroup]) {
#pragma unroll 2
  for (int k = 0; k < count; ++k, staged += pitch, weight += width) {
    const Pack<T, V> of_weight = load_pack<V>(weight);
#pragma unroll
    for (int first = 0; first < kGroup; first += kPack<T>) {
      const Pack<T, kPack<T>> action = load_pack<kPack<T>>(staged + first);
#pragma unroll
      for (int r = 0; r < kPack<T>; ++r) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          sum[first + r].at[v] = fma_rn(action.at[r], of_weight.at[v], sum[first + r].at[v]);
        }
      }
    }
  }
}

// blockIdx.x = (network * tiles + tile) * slabs + slab. The threads that have the same actions have a group of them.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    action_relu_kernel(const ActionRelu<T> p, int lanes_log, int groups, int rounds, unsigned tiles, unsigned slabs) {
  const int width = static_cast<int>(p.width), inputs = static_cast<int>(p.inputs);
  const int actions = static_cast<int>(p.actions), states = static_cast<int>(p.rows) / actions;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & ((1 << lanes_log) - 1), place = thread >> lanes_log;
  const int net = static_cast<int>(blockIdx.x / slabs / tiles);
  const int group = (static_cast<int>(blockIdx.x / slabs % tiles) * (kThreads >> lanes_log) + place) * rounds;
  const int column = ((static_cast<int>(blockIdx.x % slabs) << lanes_log) + lane) * V;
  const T* const action = p.action + net / static_cast<int>(p.members) * p.rows * inputs;
  const ActionLayout<T> layout(lanes_log);
  T* const staged = shared_array<T>(layout.action, layout.count) + place * kGroup;
  Pack<T, V> bias{};
  if (column < width) bias = load_pack<V>(p.bias + static_cast<int64_t>(net) * width + column);

  int state = group / groups, first = (group - state * groups) * kGroup;
  for (int round = 0; round < rounds; ++round) {
    const int live = state < states ? actions - first : 0;  // of the group's actions; there may be more than kGroup
    const bool inside = column < width && live > 0;
    const int64_t row = static_cast<int64_t>(state) * actions + first;
    Pack<T, V> sum[kGroup];
    if (inside) sum[0] = load_pack<V>(p.state + (static_cast<int64_t>(net) * states + state) * width + column);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[0].at[v] = inside ? sum[0].at[v] + bias.at[v] : T(0);
#pragma unroll
    for (int r = 1; r < kGroup; ++r) sum[r] = sum[0];

    const T* weight = p.weight + net * p.weight_step + column;
    int begin = 0;
    do {  // an action has a number or more
      const int count = inputs - begin < kStaged<T> ? inputs - begin : kStaged<T>;
      const int r = lane % kGroup;
      const T* const from = action + (row + r) * inputs + begin;
      if (round > 0 || begin > 0) __syncthreads();
      for (int k = lane / kGroup; k < count; k += (1 << lanes_log) / kGroup) {
        staged[k * layout.pitch + r] = r < live ? from[k] : T(0);
      }
      __syncthreads();
      if (inside) add_products<T, V>(staged, layout.pitch, weight, width, count, sum);
      weight += static_cast<int64_t>(count) * width;
      begin += kStaged<T>;
    } while (begin < inputs);
    const int stored = inside ? live : 0;
    T* h = p.h + (net * p.rows + row) * width + column;
#pragma unroll
    for (int r = 0; r < kGroup; ++r, h += width) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[r].at[v] = relu(sum[r].at[v]);
      if (r < stored) store_pack<V>(h, sum[r]);
    }
    first += kGroup;
    if (first >= actions) first = 0, ++state;
  }
}

template <typename T, int V>
Status launch_in(const ActionRelu<T>& p, cudaStream_t stream) {
  const Tiles t(p.nets, p.rows / p.actions, p.actions, p.width / V);
  if (p.nets > INT32_MAX / t.tiles / t.slabs) return {"nets_action_relu_kernel", kTooManyBlocks};
  const auto blocks = static_cast<unsigned>(p.nets * t.tiles * t.slabs);
  return status_of("nets_action_relu_kernel",
                   launch_kernel(action_relu_kernel<T, V>, dim3(blocks), dim3(kThreads),
                                 ActionLayout<T>(t.lanes_log).bytes, stream, p, t.lanes_log, t.groups, t.rounds,
                                 static_cast<unsigned>(t.tiles), static_cast<unsigned>(t.slabs)));
}

// --- Backward --------------------------------------------------------------------------------------------------------

constexpr int kWarps = kThreads / kWarp;
constexpr int kInputs = 8;    // numbers of an action whose sums a thread has; where there are more, blocks share them
constexpr int kUnrolled = 3;  // rows whose loads are under way at a time

template <typename T, typename S>
struct SumsLayout {
  static constexpr int kPartial = kWarps * S::kColumns;
  static constexpr size_t kCount = static_cast<size_t>(kInputs + 1) * kPartial;
  size_t sums, bytes;

  __host__ __device__ SumsLayout() {
    SharedLayout layout;
    sums = layout.add<T>(kCount);
    bytes = layout.bytes();
  }
};

// What a thread adds up: the masked gradient, and its products with `count` numbers of the actions.
template <typename T, int V>
struct Sums {
  T bias[V] = {};
  T weight[kInputs][V] = {};
};

// Adds the rows of one state that are the thread's, every `step`-th from `row` on; returns their sum. h, grad: at the
// state's first row; action: likewise, from the first number that is asked for. Past the last row the last is loaded
// and taken for 0, so that no branch keeps the loads of several rows from being under way together.
template <typename T, int V>
__device__ __forceinline__ Pack<T, V> add_state(const T* h, const T* grad, int width, const T* action, int inputs,
                                                int count, int row, int step, int actions, Sums<T, V>& sums) {
  Pack<T, V> of_state{};
  for (int first = row; first < actions; first += kUnrolled * step) {
    Pack<T, V> of_h[kUnrolled], g[kUnrolled];
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int at = first + u * step;
      const int64_t from = static_cast<int64_t>(at < actions ? at : actions - 1) * width;
      of_h[u] = load_pack<V>(h + from);
      g[u] = load_pack<V>(grad + from);
    }
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const bool there = first + u * step < actions;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        g[u].at[v] = of_h[u].at[v] <= T(0) || !there ? T(0) : g[u].at[v];
        of_state.at[v] += g[u].at[v];
      }
    }
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int64_t at = first + u * step;
      const int there = at < actions ? count : 0;
      T of_action[kInputs];
#pragma unroll
      for (int k = 0; k < kInputs; ++k) of_action[k] = k < there ? action[at * inputs + k] : T(0);
#pragma unroll
      for (int k = 0; k < kInputs; ++k) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums.weight[k][v] = fma_rn(of_action[k], g[u].at[v], sums.weight[k][v]);
      }
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) sums.bias[v] += of_state.at[v];
  return of_state;
}

// blockIdx.x = (network * slabs + slab) * parts + part; a part is kInputs numbers of the actions. A warp takes whole
// states, and has some rows of one at a time.
template <typename T, int V, typename S>
__global__ void __launch_bounds__(kThreads, 2)
    action_relu_gradient_kernel(const ActionReluGradient<T> p, unsigned slabs, unsigned parts) {
  const int width = static_cast<int>(p.width), actions = static_cast<int>(p.actions);
  const int states = static_cast<int>(p.rows) / actions, inputs = static_cast<int>(p.inputs);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const int net = static_cast<int>(blockIdx.x / parts / slabs);
  const int slab = static_cast<int>(blockIdx.x / parts % slabs);
  const int begin = static_cast<int>(blockIdx.x % parts) * kInputs;
  const int count = inputs - begin < kInputs ? inputs - begin : kInputs;
  const int column = slab * S::kColumns + lane % S::kLanes * V;
  const bool inside = column < width;
  const int64_t first_row = net * p.rows, first_action = net / static_cast<int>(p.members) * p.rows;

  Sums<T, V> sums;
  for (int state = thread / kWarp; state < states; state += kWarps) {
    const int64_t row = static_cast<int64_t>(state) * actions;
    Pack<T, V> of_state{};
    if (inside) {
      const int64_t at = (first_row + row) * width + column;
      of_state = add_state<T, V>(p.h + at, p.grad + at, width, p.action + (first_action + row) * inputs + begin, inputs,
                                 count, lane / S::kLanes, kWarp / S::kLanes, actions, sums);
    }
    if (begin > 0) continue;  // the first part's blocks write what all have
    add_lanes<S>(of_state.at);
    if (inside && lane < S::kLanes)
      store_pack<V>(p.state_grad + (static_cast<int64_t>(net) * states + state) * width + column, of_state);
  }

  using Layout = SumsLayout<T, S>;
  T* const partial = shared_array<T>(Layout().sums, Layout::kCount);
  gather<S>(sums.bias, partial);
#pragma unroll
  for (int k = 0; k < kInputs; ++k) gather<S>(sums.weight[k], partial + (k + 1) * Layout::kPartial);
  __syncthreads();
  for (int i = thread; i < (count + 1) * S::kColumns; i += kThreads) {
    const int which = i / S::kColumns, of_slab = i % S::kColumns, at = slab * S::kColumns + of_slab;
    if (at >= width) continue;
    const T sum = total<kWarps>(partial + which * Layout::kPartial, S::kColumns, of_slab);
    if (which > 0) {
      p.weight_grad[net * p.weight_step + static_cast<int64_t>(begin + which - 1) * width + at] = sum;
    } else if (begin == 0) {
      p.bias_grad[static_cast<int64_t>(net) * width + at] = sum;
    }
  }
}

template <typename T, int V>
Status launch_in(const ActionReluGradient<T>& p, cudaStream_t stream) {
  const char* const name = "nets_action_relu_gradient_kernel";
  return with_slab<T, V>(p.nets, p.width, [&]<typename S>(S) -> Status {
    const int64_t slabs = slabs_of<S>(p.width), parts = (p.inputs + kInputs - 1) / kInputs;
    if (p.nets > INT32_MAX / slabs / parts) return {name, kTooManyBlocks};
    return status_of(
        name, launch_kernel(action_relu_gradient_kernel<T, V, S>, dim3(static_cast<unsigned>(p.nets * slabs * parts)),
                            dim3(kThreads), SumsLayout<T, S>().bytes, stream, p, static_cast<unsigned>(slabs),
                            static_cast<unsigned>(parts)));
  });
}

}  // namespace

template <typename T>
Status launch(const ActionRelu<T>& p, void* stream) {
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool packs = in_packs<T>(p.width, {p.weight, p.state, p.bias, p.h}) && p.weight_step % kPack<T> == 0;
  return packs ? launch_in<T, kPack<T>>(p, on) : launch_in<T, 1>(p, on);
}

template <typename T>
Status launch(const ActionReluGradient<T>& p, void* stream) {
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool packs = in_packs<T>(p.width, {p.h, p.grad, p.state_grad});
  return packs ? launch_in<T, kPack<T>>(p, on) : launch_in<T, 1>(p, on);
}

template Status launch(const ActionRelu<float>&, void*);
template Status launch(const ActionRelu<double>&, void*);
template Status launch(const ActionReluGradient<float>&, void*);
template Status launch(const ActionReluGradient<double>&, void*);

}  // namespace qcse::cuda

// The gradient behind a ReLU, with its sums over the rows. A block has a slab of columns, 32 bytes wide, of one
// network, and all of their rows: a sum needs no second launch, no atomic and no memory of its own, and its order is
// the shape's. Narrow slabs make enough blocks of one network to keep a GPU's memory busy, and 32 bytes is what a load
// fetches.
#include "nets/cuda/packs.h"
#include "nets/cuda/pointwise.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kUnrolled = 4;  // rows whose loads are under way at a time

template <typename T, int V>
struct Slab {
  static constexpr int kColumns = 32 / static_cast<int>(sizeof(T));
  static constexpr int kLanes = kColumns / V;  // threads side by side in a row
  static constexpr int kRows = kThreads / kLanes;
};

// What a block has of its network.
template <typename T, int V>
struct Place {
  int64_t net;
  int slab, column;  // the thread's first column
  int row;           // the first of every kRows that are the thread's
  bool inside;       // whether there is such a column

  __device__ Place(int width, int slabs)
      : net(blockIdx.x / static_cast<unsigned>(slabs)),
        slab(static_cast<int>(blockIdx.x % static_cast<unsigned>(slabs))),
        column(slab * Slab<T, V>::kColumns + static_cast<int>(threadIdx.x) % Slab<T, V>::kLanes * V),
        row(static_cast<int>(threadIdx.x) / Slab<T, V>::kLanes),
        inside(column < width) {}
};

// Sums over the threads of a block that have the same columns. `partial` is [kWarps][kColumns] of shared memory, to be
// read by `total` behind a barrier.
template <typename T, int V>
__device__ __forceinline__ void gather(T (&sum)[V], T* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int v = 0; v < V; ++v) {
#pragma unroll
    for (int lanes = kWarp / 2; lanes >= Slab<T, V>::kLanes; lanes /= 2) {
      sum[v] += __shfl_xor_sync(kFullWarp, sum[v], lanes);
    }
    if (lane < Slab<T, V>::kLanes) partial[warp * Slab<T, V>::kColumns + lane * V + v] = sum[v];
  }
}
template <typename T>
__device__ __forceinline__ T total(const T* partial, int stride, int at) {
  T sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += partial[w * stride + at];
  return sum;
}

template <typename T>
struct GradientLayout {
  static constexpr size_t kPartial = static_cast<size_t>(kWarps) * Slab<T, 1>::kColumns;
  size_t bias, weight, last, bytes;

  __host__ __device__ explicit GradientLayout(bool outer) {
    SharedLayout layout;
    bias = layout.add<T>(kPartial);
    weight = outer ? layout.add<T>(kPartial) : 0;
    last = outer ? layout.add<T>(kWarps) : 0;
    bytes = layout.bytes();
  }
};

// blockIdx.x = network * slabs + slab. A thread takes whole states, and their actions one behind the other.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) relu_gradient_kernel(const ReluGradient<T> p, int slabs) {
  using S = Slab<T, V>;
  const int width = static_cast<int>(p.width), actions = static_cast<int>(p.actions);
  const int states = static_cast<int>(p.rows) / actions;
  const Place<T, V> place(width, slabs);
  const T* const h = p.h + place.net * p.rows * width + place.column;
  T* const grad = p.grad + place.net * p.rows * width + place.column;
  const GradientLayout<T> layout(false);
  T* const partial = shared_array<T>(layout.bias, GradientLayout<T>::kPartial);

  T sum[V] = {};
  for (int state = place.row; state < states && place.inside; state += S::kRows) {
    Pack<T, V> state_sum{};
    for (int first = 0; first < actions; first += kUnrolled) {
      Pack<T, V> of_h[kUnrolled], of_grad[kUnrolled];
#pragma unroll
      for (int u = 0; u < kUnrolled; ++u) {
        if (first + u >= actions) break;
        const int64_t at = (static_cast<int64_t>(state) * actions + first + u) * width;
        of_h[u] = load_pack<V>(h + at);
        of_grad[u] = load_pack<V>(grad + at);
      }
#pragma unroll
      for (int u = 0; u < kUnrolled; ++u) {
        if (first + u >= actions) break;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (of_h[u].at[v] <= T(0)) of_grad[u].at[v] = T(0);
          state_sum.at[v] += of_grad[u].at[v];
        }
        store_pack<V>(grad + (static_cast<int64_t>(state) * actions + first + u) * width, of_grad[u]);
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += state_sum.at[v];
    if (p.state_grad != nullptr) {
      store_pack<V>(p.state_grad + (place.net * states + state) * width + place.column, state_sum);
    }
  }
  gather<T, V>(sum, partial);
  __syncthreads();
  const int column = place.slab * S::kColumns + static_cast<int>(threadIdx.x);
  if (static_cast<int>(threadIdx.x) < S::kColumns && column < width) {
    p.bias_grad[place.net * width + column] = total(partial, S::kColumns, static_cast<int>(threadIdx.x));
  }
}

// blockIdx.x = network * slabs + slab.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) outer_relu_gradient_kernel(const OuterReluGradient<T> p, int slabs) {
  using S = Slab<T, V>;
  const int width = static_cast<int>(p.width), rows = static_cast<int>(p.rows);
  const Place<T, V> place(width, slabs);
  const T* const h = p.h + place.net * rows * width + place.column;
  const T* const y_grad = p.y_grad + place.net * rows;
  T* const grad = p.grad + place.net * rows * width + place.column;
  const T factor = p.factor != nullptr ? p.factor[place.net / p.members * p.factor_step] : T(1);
  Pack<T, V> weight{};
  if (place.inside) weight = load_pack<V>(p.weight + place.net * width + place.column);

  T bias_sum[V] = {}, weight_sum[V] = {}, last_sum[1] = {};
  for (int first = place.row; first < rows; first += kUnrolled * S::kRows) {
    Pack<T, V> of_h[kUnrolled];
    T g[kUnrolled];
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int row = first + u * S::kRows;
      if (row >= rows) break;
      g[u] = y_grad[row] * factor;
      if (place.inside) of_h[u] = load_pack<V>(h + static_cast<int64_t>(row) * width);
    }
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int row = first + u * S::kRows;
      if (row >= rows) break;
      last_sum[0] += g[u];
      if (!place.inside) continue;
      Pack<T, V> out;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        out.at[v] = of_h[u].at[v] <= T(0) ? T(0) : g[u] * weight.at[v];
        bias_sum[v] += out.at[v];
        weight_sum[v] += g[u] * of_h[u].at[v];
      }
      store_pack<V>(grad + static_cast<int64_t>(row) * width, out);
    }
  }
  if (p.bias_grad == nullptr) return;  // the whole grid

  const GradientLayout<T> layout(true);
  T* const bias_partial = shared_array<T>(layout.bias, GradientLayout<T>::kPartial);
  T* const weight_partial = shared_array<T>(layout.weight, GradientLayout<T>::kPartial);
  T* const last_partial = shared_array<T>(layout.last, kWarps);
  gather<T, V>(bias_sum, bias_partial);
  gather<T, V>(weight_sum, weight_partial);
  // The threads side by side in a row have added the same numbers: the first stands for all.
#pragma unroll
  for (int lanes = kWarp / 2; lanes >= S::kLanes; lanes /= 2) {
    last_sum[0] += __shfl_xor_sync(kFullWarp, last_sum[0], lanes);
  }
  const int thread = static_cast<int>(threadIdx.x);
  if (thread % kWarp == 0) last_partial[thread / kWarp] = last_sum[0];
  __syncthreads();
  const int column = place.slab * S::kColumns + thread;
  if (thread < S::kColumns && column < width) {
    p.bias_grad[place.net * width + column] = total(bias_partial, S::kColumns, thread);
    p.weight_grad[place.net * width + column] = total(weight_partial, S::kColumns, thread);
  }
  if (thread == kWarp && place.slab == 0) p.last_bias_grad[place.net] = total(last_partial, 1, 0);
}

template <typename T, int V, typename Problem>
Status launch_slabs(const char* name, void (*kernel)(Problem, int), const Problem& p, bool outer, cudaStream_t stream) {
  const int64_t slabs = (p.width + Slab<T, V>::kColumns - 1) / Slab<T, V>::kColumns, blocks = p.nets * slabs;
  if (blocks > INT32_MAX) return {name, kTooManyBlocks};
  return status_of(name, launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                                       GradientLayout<T>(outer).bytes, stream, p, static_cast<int>(slabs)));
}

}  // namespace

template <typename T>
Status launch(const ReluGradient<T>& p, void* stream) {
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  const char* const name = "nets_relu_gradient_kernel";
  if (in_packs<T>(p.width, {p.h, p.grad, p.state_grad})) {
    return launch_slabs<T, kPack<T>>(name, relu_gradient_kernel<T, kPack<T>>, p, false, on);
  }
  return launch_slabs<T, 1>(name, relu_gradient_kernel<T, 1>, p, false, on);
}

template <typename T>
Status launch(const OuterReluGradient<T>& p, void* stream) {
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  const char* const name = "nets_outer_relu_gradient_kernel";
  if (in_packs<T>(p.width, {p.h, p.grad, p.weight})) {
    return launch_slabs<T, kPack<T>>(name, outer_relu_gradient_kernel<T, kPack<T>>, p, true, on);
  }
  return launch_slabs<T, 1>(name, outer_relu_gradient_kernel<T, 1>, p, true, on);
}

template Status launch(const ReluGradient<float>&, void*);
template Status launch(const ReluGradient<double>&, void*);
template Status launch(const OuterReluGradient<float>&, void*);
template Status launch(const OuterReluGradient<double>&, void*);

}  // namespace qcse::cuda

// The gradient behind a ReLU, with its sums over the rows; a block has a slab of columns (column_sums.h).
#include "nets/cuda/column_sums.h"
#include "nets/cuda/packs.h"
#include "nets/cuda/pointwise.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kUnrolled = 4;  // rows whose loads are under way at a time

// What a block has of its network.
template <typename S, int V>
struct Place {
  static constexpr int kRows = kThreads / S::kLanes;  // that the block has at a time
  int64_t net;
  int slab, column;  // the thread's first column
  int row;           // the first of every kRows that are the thread's
  bool inside;       // whether there is such a column

  __device__ Place(int width, int slabs)
      : net(blockIdx.x / static_cast<unsigned>(slabs)),
        slab(static_cast<int>(blockIdx.x % static_cast<unsigned>(slabs))),
        column(slab * S::kColumns + static_cast<int>(threadIdx.x) % S::kLanes * V),
        row(static_cast<int>(threadIdx.x) / S::kLanes),
        inside(column < width) {}
};

template <typename T, typename S>
struct GradientLayout {
  static constexpr size_t kPartial = static_cast<size_t>(kWarps) * S::kColumns;
  size_t bias, weight, last, bytes;

  __host__ __device__ explicit GradientLayout(bool outer) {
    SharedLayout layout;
    bias = layout.add<T>(kPartial);
    weight = outer ? layout.add<T>(kPartial) : 0;
    last = outer ? layout.add<T>(kWarps) : 0;
    bytes = layout.bytes();
  }
};

// blockIdx.x = network * slabs + slab.
template <typename T, int V, typename S>
__global__ void __launch_bounds__(kThreads) relu_gradient_kernel(const ReluGradient<T> p, int slabs) {
  const int width = static_cast<int>(p.width), rows = static_cast<int>(p.rows);
  const Place<S, V> place(width, slabs);
  const T* const h = p.h + place.net * rows * width + place.column;
  T* const grad = p.grad + place.net * rows * width + place.column;
  const GradientLayout<T, S> layout(false);
  T* const partial = shared_array<T>(layout.bias, layout.kPartial);

  T sum[V] = {};
  for (int first = place.row; first < rows && place.inside; first += kUnrolled * place.kRows) {
    Pack<T, V> of_h[kUnrolled], of_grad[kUnrolled];
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int row = first + u * place.kRows;
      if (row >= rows) break;
      of_h[u] = load_pack<V>(h + static_cast<int64_t>(row) * width);
      of_grad[u] = load_pack<V>(grad + static_cast<int64_t>(row) * width);
    }
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int row = first + u * place.kRows;
      if (row >= rows) break;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (of_h[u].at[v] <= T(0)) of_grad[u].at[v] = T(0);
        sum[v] += of_grad[u].at[v];
      }
      store_pack<V>(grad + static_cast<int64_t>(row) * width, of_grad[u]);
    }
  }
  gather<S>(sum, partial);
  __syncthreads();
  const int column = place.slab * S::kColumns + static_cast<int>(threadIdx.x);
  if (static_cast<int>(threadIdx.x) < S::kColumns && column < width) {
    p.bias_grad[place.net * width + column] = total<kWarps>(partial, S::kColumns, static_cast<int>(threadIdx.x));
  }
}

// blockIdx.x = network * slabs + slab. Two blocks share the registers of a multiprocessor; those of double would spill.
template <typename T, int V, typename S>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    outer_relu_gradient_kernel(const OuterReluGradient<T> p, int slabs) {
  const int width = static_cast<int>(p.width), rows = static_cast<int>(p.rows);
  const Place<S, V> place(width, slabs);
  const T* const x = p.x + place.net * rows * width + place.column;
  const T* const y_grad = p.y_grad + place.net * rows;
  T* const grad = p.grad + place.net * rows * width + place.column;
  const T factor = p.factor != nullptr ? p.factor[place.net / p.members * p.factor_step] : T(1);
  Pack<T, V> weight{}, bias{};
  if (place.inside) weight = load_pack<V>(p.weight + place.net * width + place.column);
  if (place.inside && p.bias != nullptr) bias = load_pack<V>(p.bias + place.net * width + place.column);

  T bias_sum[V] = {}, weight_sum[V] = {}, last_sum[1] = {};
  for (int first = place.row; first < rows; first += kUnrolled * place.kRows) {
    Pack<T, V> of_x[kUnrolled];
    T g[kUnrolled];
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int row = first + u * place.kRows;
      if (row >= rows) break;
      g[u] = y_grad[row] * factor;
      if (place.inside) of_x[u] = load_pack<V>(x + static_cast<int64_t>(row) * width);
    }
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int row = first + u * place.kRows;
      if (row >= rows) break;
      last_sum[0] += g[u];
      if (!place.inside) continue;
      Pack<T, V> out;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const T h = relu(of_x[u].at[v] + bias.at[v]);
        out.at[v] = h <= T(0) ? T(0) : g[u] * weight.at[v];
        bias_sum[v] += out.at[v];
        weight_sum[v] += g[u] * h;
      }
      store_pack<V>(grad + static_cast<int64_t>(row) * width, out);
    }
  }
  if (p.bias_grad == nullptr) return;  // the whole grid

  const GradientLayout<T, S> layout(true);
  T* const bias_partial = shared_array<T>(layout.bias, layout.kPartial);
  T* const weight_partial = shared_array<T>(layout.weight, layout.kPartial);
  T* const last_partial = shared_array<T>(layout.last, kWarps);
  gather<S>(bias_sum, bias_partial);
  gather<S>(weight_sum, weight_partial);
  // The threads side by side in a row have added the same numbers: the first stands for all.
  add_lanes<S>(last_sum);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread % kWarp == 0) last_partial[thread / kWarp] = last_sum[0];
  __syncthreads();
  const int column = place.slab * S::kColumns + thread;
  if (thread < S::kColumns && column < width) {
    p.bias_grad[place.net * width + column] = total<kWarps>(bias_partial, S::kColumns, thread);
    p.weight_grad[place.net * width + column] = total<kWarps>(weight_partial, S::kColumns, thread);
  }
  if (thread == 2 * kWarp && place.slab == 0) p.last_bias_grad[place.net] = total<kWarps>(last_partial, 1, 0);
}

template <typename T, typename S, typename Problem>
Status launch_slabs(const char* name, void (*kernel)(Problem, int), const Problem& p, bool outer, cudaStream_t stream) {
  const int64_t slabs = slabs_of<S>(p.width), blocks = p.nets * slabs;
  if (blocks > INT32_MAX) return {name, kTooManyBlocks};
  return status_of(name, launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                                       GradientLayout<T, S>(outer).bytes, stream, p, static_cast<int>(slabs)));
}

template <typename T, int V>
Status launch_in(const ReluGradient<T>& p, cudaStream_t stream) {
  return with_slab<T, V>(p.nets, p.width, [&]<typename S>(S) {
    return launch_slabs<T, S>("nets_relu_gradient_kernel", relu_gradient_kernel<T, V, S>, p, false, stream);
  });
}

template <typename T, int V>
Status launch_in(const OuterReluGradient<T>& p, cudaStream_t stream) {
  return with_slab<T, V>(p.nets, p.width, [&]<typename S>(S) {
    return launch_slabs<T, S>("nets_outer_relu_gradient_kernel", outer_relu_gradient_kernel<T, V, S>, p, true, stream);
  });
}

}  // namespace

template <typename T>
Status launch(const ReluGradient<T>& p, void* stream) {
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  return in_packs<T>(p.width, {p.h, p.grad}) ? launch_in<T, kPack<T>>(p, on) : launch_in<T, 1>(p, on);
}

template <typename T>
Status launch(const OuterReluGradient<T>& p, void* stream) {
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool packs = in_packs<T>(p.width, {p.x, p.bias, p.grad, p.weight});
  return packs ? launch_in<T, kPack<T>>(p, on) : launch_in<T, 1>(p, on);
}

template Status launch(const ReluGradient<float>&, void*);
template Status launch(const ReluGradient<double>&, void*);
template Status launch(const OuterReluGradient<float>&, void*);
template Status launch(const OuterReluGradient<double>&, void*);

}  // namespace qcse::cuda

// Bias and ReLU behind a product, and the layer of one output behind the last of them.
#include "nets/cuda/packs.h"
#include "nets/cuda/pointwise.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPacksPerThread = 4;

// blockIdx.x = network * tiles + tile; a tile is `tile_rows` rows.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) bias_relu_kernel(const BiasRelu<T> p, int tiles, int tile_rows) {
  const int width = static_cast<int>(p.width), rows = static_cast<int>(p.rows), packs = width / V;
  const int64_t net = blockIdx.x / static_cast<unsigned>(tiles);
  const int first = static_cast<int>(blockIdx.x % static_cast<unsigned>(tiles)) * tile_rows;
  const int left = rows - first;
  const int count = (left < tile_rows ? left : tile_rows) * packs;
  T* const x = p.x + (net * rows + first) * width;
  const T* const bias = p.bias + net * width;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const Pack<T, V> add = load_pack<V>(bias + i % packs * V);
    Pack<T, V> value = load_pack<V>(x + static_cast<int64_t>(i) * V);
#pragma unroll
    for (int v = 0; v < V; ++v) value.at[v] = relu(value.at[v] + add.at[v]);
    store_pack<V>(x + static_cast<int64_t>(i) * V, value);
  }
}

constexpr int kDotRows = 4;  // of a warp: they share what it loads of bias and weight
constexpr int kDotTile = kThreads / kWarp * kDotRows;

// blockIdx.x = network * tiles + tile; a tile is kDotTile rows.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) relu_dot_kernel(const ReluDot<T> p, int tiles) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int width = static_cast<int>(p.width), rows = static_cast<int>(p.rows);
  const int64_t net = blockIdx.x / static_cast<unsigned>(tiles);
  const int first = static_cast<int>(blockIdx.x % static_cast<unsigned>(tiles)) * kDotTile +
                    static_cast<int>(threadIdx.x) / kWarp * kDotRows;
  if (first >= rows) return;  // the whole warp
  const int live = rows - first < kDotRows ? rows - first : kDotRows;
  const T* const x = p.x + (net * rows + first) * width;
  T sum[kDotRows] = {};
  for (int column = lane * V; column < width; column += kWarp * V) {
    const Pack<T, V> weight = load_pack<V>(p.weight + net * width + column);
    Pack<T, V> bias{};
    if (p.bias != nullptr) bias = load_pack<V>(p.bias + net * width + column);
    Pack<T, V> h[kDotRows];
#pragma unroll
    for (int r = 0; r < kDotRows; ++r) {
      if (r < live) h[r] = load_pack<V>(x + static_cast<int64_t>(r) * width + column);
    }
#pragma unroll
    for (int r = 0; r < kDotRows; ++r) {
      if (r >= live) break;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        sum[r] = fma_rn(relu(h[r].at[v] + bias.at[v]), weight.at[v], sum[r]);
      }
    }
  }
  const T last_bias = p.last_bias[net];
#pragma unroll
  for (int r = 0; r < kDotRows; ++r) {
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum[r] += __shfl_xor_sync(kFullWarp, sum[r], lanes);
    if (r < live && lane == r) p.y[net * rows + first + r] = sum[r] + last_bias;
  }
}

template <typename T, int V>
Status launch_bias(const BiasRelu<T>& p, cudaStream_t stream) {
  const int64_t packs = p.width / V, wanted = kThreads * kPacksPerThread / packs;
  const int64_t tile_rows = wanted < 1 ? 1 : wanted < p.rows ? wanted : p.rows;
  const int64_t tiles = (p.rows + tile_rows - 1) / tile_rows, blocks = p.nets * tiles;
  if (blocks > INT32_MAX) return {"nets_bias_relu_kernel", kTooManyBlocks};
  return status_of("nets_bias_relu_kernel",
                   launch_kernel(bias_relu_kernel<T, V>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
                                 p, static_cast<int>(tiles), static_cast<int>(tile_rows)));
}

template <typename T, int V>
Status launch_dot(const ReluDot<T>& p, cudaStream_t stream) {
  const int64_t tiles = (p.rows + kDotTile - 1) / kDotTile, blocks = p.nets * tiles;
  if (blocks > INT32_MAX) return {"nets_relu_dot_kernel", kTooManyBlocks};
  return status_of("nets_relu_dot_kernel", launch_kernel(relu_dot_kernel<T, V>, dim3(static_cast<unsigned>(blocks)),
                                                         dim3(kThreads), 0, stream, p, static_cast<int>(tiles)));
}

}  // namespace

template <typename T>
Status launch(const BiasRelu<T>& p, void* stream) {
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool packs = in_packs<T>(p.width, {p.x, p.bias});
  return packs ? launch_bias<T, kPack<T>>(p, on) : launch_bias<T, 1>(p, on);
}

template <typename T>
Status launch(const ReluDot<T>& p, void* stream) {
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool packs = in_packs<T>(p.width, {p.x, p.bias, p.weight});
  return packs ? launch_dot<T, kPack<T>>(p, on) : launch_dot<T, 1>(p, on);
}

template Status launch(const BiasRelu<float>&, void*);
template Status launch(const BiasRelu<double>&, void*);
template Status launch(const ReluDot<float>&, void*);
template Status launch(const ReluDot<double>&, void*);

}  // namespace qcse::cuda

// The contract of fully connected ReLU networks on a CPU: plain pointers and sizes, no torch.
//
// M independent networks of the same widths are evaluated on the rows of one input each:
//   h_0 = x,  h_{l+1} = max(h_l W_l + b_l, 0),  y = h_{L-1} W_{L-1} + b_{L-1}
// and differentiated: the gradients of sum(y_grad * y) with respect to x, to the W_l and the b_l. A gradient's order of
// summation depends on the number of threads: equal threads give equal bits.
//
// What the way back needs of the way forward, the hidden h_l, is kept chunk by chunk of rows, in an order that is the
// instruction set's own business, and with it which set that was.
#pragma once
#include <cstdint>

namespace qcse {

inline constexpr int64_t kMaxLayers = 16;
inline constexpr int64_t kMlpChunk = 64;  // rows

template <typename T>
struct Mlp {
  int64_t nets = 0, rows = 0;  // M, and rows of each input
  int64_t inputs = 0, layers = 0;
  const int64_t* widths = nullptr;    // [layers]: outputs of each layer; 2 to kMaxLayers
  const T* const* weights = nullptr;  // [layers] -> [M, inputs, outputs]
  const T* const* biases = nullptr;   // [layers] -> [M, outputs]
  const T* x = nullptr;               // [M, rows, inputs]
  bool bf16 = false;                  // round the factors of the hidden layers' products to bfloat16 (float only)
  int64_t chunks = 0;                 // ceil(rows / kMlpChunk)
  int64_t kept = 0;                   // scalars kept of each row: 1, and the hidden layers' widths rounded up to 32
};

template <typename T>
struct MlpGradient {
  Mlp<T> mlp;                 // its biases are not read
  const T* hidden = nullptr;  // [M, chunks, kMlpChunk, kept]
  const T* y_grad = nullptr;  // [M, rows, outputs]
  // Results; each may be null where it is not wanted.
  T* x_grad = nullptr;               // [M, rows, inputs]
  T* const* weight_grads = nullptr;  // as the weights
  T* const* bias_grads = nullptr;    // as the biases; wanted or not as the weights' are
};

}  // namespace qcse

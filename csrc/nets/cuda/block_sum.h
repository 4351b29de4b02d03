// Functions of one number for float and double, sums over a block, and the size of a grid.
#pragma once
#include "base/cuda/sums.h"

namespace qcse::cuda {

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float exponential_less_one(float x) { return expm1f(x); }
__device__ __forceinline__ double exponential_less_one(double x) { return expm1(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
template <typename T>
__device__ __forceinline__ bool is_nan(T x) {
  return x != x;
}

// a / b for counts: a division of 64 bits costs several of 32.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// The grid for `rows` rows of which a block takes `per_block`; none has too many blocks where this is not 0.
inline unsigned blocks_for(int64_t rows, int64_t per_block) {
  const int64_t blocks = (rows + per_block - 1) / per_block;
  return blocks > 0x7fffffff ? 0 : static_cast<unsigned>(blocks);
}

}  // namespace qcse::cuda

// The screen of the tensor cores: a bound on the distance of two points from one product of their half-precision
// shadows, loose by a margin that is proven here, so that what it rules out is never a neighbour.
//
// A row x is centred, scaled by a power of two s and clipped to a cube: u = clip(s (x - c)). Its shadow X is u rounded
// to half precision, its error e_x an upper bound of ||u - X||. The scale keeps X far from half precision's largest
// number. docs/cuda_kernels.md has the proof and names what stands here: t, e_x, eta, n_x.
#pragma once
#include "base/cuda/device.h"

namespace qcse::cuda {

inline constexpr float kClip = 4096;  // of a scaled coordinate; -2 X and its square stay exact and finite

// Two halves travel in a word. A row of shadows holds whole steps of 16 dimensions, and an odd number of them, so that
// eight lanes that read four rows hit different banks.
inline constexpr int kStepDims = 16;
inline constexpr int kStepWords = kStepDims / 2;
__host__ __device__ constexpr int screen_steps(int dim) { return (dim + kStepDims - 1) / kStepDims; }
__host__ __device__ constexpr int shadow_pitch(int steps) { return (steps | 1) * kStepWords; }

template <typename T>
struct Floor;  // sqrt(smallest normal number), with room for what sums of squares lose below it
template <>
struct Floor<float> {
  static constexpr float kValue = 0x1p-60f;
};
template <>
struct Floor<double> {
  static constexpr double kValue = 0x1p-480;
};

// Centre and scale of a set.
template <typename T>
struct Frame {
  const T* centre = nullptr;  // [dim]
  T scale = 1;                // a power of two
};

struct Shadow {
  float error;  // e_x, rounded up
  float norm;   // |X|^2 (1 - 3 eta)
};

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
  for (int stride = kWarp / 2; stride > 0; stride /= 2) x += __shfl_xor_sync(kFullWarp, x, stride);
  return x;
}

// Writes factor * X of a finite row, [shadow_pitch(steps)] words; called by a whole warp. factor: 1 or -2.
template <typename T>
__device__ __forceinline__ Shadow cast_shadow(const T* row, int dim, int steps, const Frame<T>& frame, float factor,
                                              unsigned* to, int lane) {
  float error = 0;
  float norm = 0;
  for (int w = lane; w < shadow_pitch(steps); w += kWarp) {
    unsigned word = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int d = 2 * w + half;
      if (d < dim) {
        const T offset = row[d] - frame.centre[d];
        const T scaled = larger(smaller(offset * frame.scale, T(kClip)), T(-kClip));
        const float shadow = half_value(half_bits(static_cast<float>(scaled)));
        // 2^-23 |scaled|: the rounding of the offset (the scale is a power of two).
        const auto missed = static_cast<float>(magnitude(scaled - static_cast<T>(shadow)));
        const float apart = fma_rn(0x1p-23f, magnitude(static_cast<float>(scaled)), missed);
        error = fma_rn(apart, apart, error);
        norm = fma_rn(shadow, shadow, norm);
        word |= half_bits(factor * shadow) << (16 * half);
      }
    }
    to[w] = word;
  }
  const float eta = static_cast<float>(steps + 1) * 0x1p-18f;
  error = sqrt_rn(sum_of_warp(error));
  norm = sum_of_warp(norm) * (1 - 3 * eta);
  // 2^-10 and 2^-60 cover the roundings of the error's own computation, and numbers that vanish in it.
  return {fma_rn(error, 1 + 0x1p-10f, 0x1p-60f), norm};
}

// t + e_x for a query whose keys below `bound` are wanted; it grows with the bound.
template <typename T>
__device__ __forceinline__ float screen_reach(T bound, T scale, float error) {
  const T reach = larger(bound, Floor<T>::kValue) * scale * static_cast<T>(1 + 0x1p-14);
  return static_cast<float>(reach) + error;
}

// Sums at or above this belong to no wanted pair. reach: as above; tile_error: the largest e_y among the candidates;
// norm: the query's, +inf for a query that wants nothing.
__device__ __forceinline__ float screen_limit(float reach, float tile_error, float norm) {
  const float r = reach + tile_error;
  return r * r * (1 + 0x1p-20f) - norm;
}

}  // namespace qcse::cuda

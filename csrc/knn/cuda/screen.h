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

// Two halves travel in a word, and a step of the tensor core's product takes 16 dimensions of a row, eight words. They
// are kept in the order of its operands (fragments): for each step and each 16 rows a pack of four words a lane, by the
// lanes' numbers, so that a warp loads 512 bytes in a row. Lane 4 g + t has the words t and t + 4 of the rows g and g +
// 8; queries and candidates differ in their order alone.
inline constexpr int kStepDims = 16;
inline constexpr int kFragmentRows = 16;
inline constexpr int kFragmentWords = 4 * kWarp;
__host__ __device__ constexpr int screen_steps(int dim) { return (dim + kStepDims - 1) / kStepDims; }
// Words of the shadows of so many rows, a multiple of 16.
__host__ __device__ constexpr int shadow_words(int rows, int steps) {
  return steps * (rows / kFragmentRows) * kFragmentWords;
}

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

// The row of which four neighbouring lanes have a share of the shadow each.
template <typename T>
struct ShadowCaster {
  const T* row;  // null for what casts none: its words are 0
  int dim;
  Frame<T> frame;
  float factor;  // 1 or -2
  float error = 0, norm = 0;

  // Word w of factor * X.
  __device__ __forceinline__ unsigned word(int w) {
    unsigned word = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int d = 2 * w + half;
      if (row != nullptr && d < dim) {
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
    return word;
  }

  // Once the lane has asked for its words of all steps: what the four know together. Called by a whole warp.
  __device__ __forceinline__ Shadow shadow(int steps) const {
    float errors = error, norms = norm;
#pragma unroll
    for (int stride = 1; stride < 4; stride *= 2) {
      errors += __shfl_xor_sync(kFullWarp, errors, stride);
      norms += __shfl_xor_sync(kFullWarp, norms, stride);
    }
    if (row == nullptr) return {0, infinity<float>()};
    const float eta = static_cast<float>(steps + 1) * 0x1p-18f;
    // 2^-10 and 2^-60 cover the roundings of the error's own computation, and numbers that vanish in it.
    return {fma_rn(sqrt_rn(errors), 1 + 0x1p-10f, 0x1p-60f), norms * (1 - 3 * eta)};
  }
};

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

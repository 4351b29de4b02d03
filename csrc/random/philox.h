// Philox-4x32-10, a counter-based generator of random bits (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As
// Easy as 1, 2, 3; SC 2011), and what is made of its bits. Host and device share this file, and give the same bits:
// every operation is rounded once, and none is fused with another.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define QCSE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define QCSE_HOST_DEVICE [[gnu::always_inline]] inline
#endif

namespace qcse {

struct Words {
  uint32_t at[4];
};

// The block of 128 bits that has this number, under this key.
QCSE_HOST_DEVICE Words philox(uint64_t key, uint64_t block) {
  constexpr uint32_t kMultiplier[2] = {0xD2511F53u, 0xCD9E8D57u}, kWeyl[2] = {0x9E3779B9u, 0xBB67AE85u};
  constexpr int kRounds = 10;
  uint32_t a = static_cast<uint32_t>(block), b = static_cast<uint32_t>(block >> 32), c = 0, d = 0;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p = static_cast<uint64_t>(kMultiplier[0]) * a, q = static_cast<uint64_t>(kMultiplier[1]) * c;
    a = static_cast<uint32_t>(q >> 32) ^ b ^ k0;
    b = static_cast<uint32_t>(q);
    c = static_cast<uint32_t>(p >> 32) ^ d ^ k1;
    d = static_cast<uint32_t>(p);
    k0 += kWeyl[0];
    k1 += kWeyl[1];
  }
  return {{a, b, c, d}};
}

// --- Arithmetic with one rounding -----------------------------------------------------------------------------------
QCSE_HOST_DEVICE float root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

QCSE_HOST_DEVICE float quotient(float x, float y) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(x, y);
#else
  return x / y;
#endif
}

QCSE_HOST_DEVICE uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}

QCSE_HOST_DEVICE float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

// --- Laws -----------------------------------------------------------------------------------------------------------
// Multiples of 2^-24 in [0, 1).
QCSE_HOST_DEVICE float unit(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f; }

// Multiples of 2^-23 in [-1, 1).
QCSE_HOST_DEVICE float symmetric(uint32_t word) { return unit(word) * 2.0f - 1.0f; }

// sqrt(-2 ln u), u = floor(word / 2) / 2^31 + 1 / 2^32 in float, in (0, 1]; at most 6.67.
QCSE_HOST_DEVICE float radius_of(uint32_t word) {
  const float u = static_cast<float>(static_cast<int32_t>(word >> 1)) * 0x1p-31f + 0x1p-32f;
  // u = m 2^e, m in [sqrt(1/2), sqrt(2)). ln m = 2 artanh s, s = (m - 1) / (m + 1), by its power series.
  constexpr uint32_t kRootOfHalf = 0x3f3504f3u;
  const uint32_t above = bits_of(u) - kRootOfHalf;
  const float e = static_cast<float>(static_cast<int32_t>(above) >> 23);
  const float f = float_of((above & 0x7fffffu) + kRootOfHalf) - 1.0f;
  const float s = quotient(f, f + 2.0f), z = s * s;
  float series = z * (1.0f / 11) + 1.0f / 9;
  series = series * z + 1.0f / 7;
  series = series * z + 1.0f / 5;
  series = series * z + 1.0f / 3;
  // 2 artanh s = f - s (f - 2 z series), which rounds less than 2 s + ... does.
  const float log_m = f - s * (f - 2.0f * z * series);
  constexpr float kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f;  // ln 2; e kHigh is exact
  const float log_u = e * kHigh + (log_m + e * kLow);
  return root(-2.0f * log_u);
}

struct Pair {
  float x, y;
};

// Two independent standard normal numbers (Box and Muller 1958): the radius times cosine and sine of 2 pi angle / 2^32.
QCSE_HOST_DEVICE Pair normal(uint32_t word, uint32_t angle) {
  const float r = radius_of(word);
  const uint32_t quarter = (angle + 0x20000000u) >> 30;  // the nearest of 0, 1/4, 1/2, 3/4, 1 turn
  const float t = static_cast<float>(static_cast<int32_t>(angle - (quarter << 30))) * 0x1.921fb6p-30f;
  const float z = t * t;
  float sine = z * (1.0f / 362880) - 1.0f / 5040;
  sine = sine * z + 1.0f / 120;
  sine = sine * z - 1.0f / 6;
  sine = sine * z * t + t;
  float cosine = z * (-1.0f / 3628800) + 1.0f / 40320;
  cosine = cosine * z - 1.0f / 720;
  cosine = cosine * z + 1.0f / 24;
  cosine = cosine * z - 0.5f;
  cosine = cosine * z + 1.0f;
  const bool swapped = (quarter & 1) != 0;
  const float x = swapped ? sine : cosine, y = swapped ? cosine : sine;
  const float signed_x = float_of(bits_of(x) ^ (((quarter + 1) & 2) << 30));
  const float signed_y = float_of(bits_of(y) ^ ((quarter & 2) << 30));
  return {r * signed_x, r * signed_y};
}

// floor(u high) of u = (second 2^32 + first) / 2^64, for high below 2^31: never high itself.
QCSE_HOST_DEVICE int64_t below(int64_t high, uint32_t first, uint32_t second) {
  const auto h = static_cast<uint64_t>(high);
  return static_cast<int64_t>((second * h + (first * h >> 32)) >> 32);
}

}  // namespace qcse

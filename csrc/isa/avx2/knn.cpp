// AVX2 with FMA: compiled with those instructions on, called only where the machine has them.
#include "knn/cpu/kernels.h"

#include <immintrin.h>

namespace qcse::cpu {
namespace {

struct Float {
  using Scalar = float;
  using Reg = __m256;
  static constexpr int kWidth = 8;
  static constexpr uint32_t kAll = (uint32_t{1} << kWidth) - 1;
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static Reg set1(float x) { return _mm256_set1_ps(x); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg abs(Reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Reg sqrt(Reg a) { return _mm256_sqrt_ps(a); }
  static uint32_t less(Reg a, Reg b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
  }
  static Reg lane(Reg a, int i) { return _mm256_permutevar8x32_ps(a, _mm256_set1_epi32(i)); }
  static Reg shift_in(Reg before, Reg a) {
    const __m256i up = _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6);
    return _mm256_blend_ps(_mm256_permutevar8x32_ps(a, up), _mm256_permutevar8x32_ps(before, up), 1);
  }
};

struct Double {
  using Scalar = double;
  using Reg = __m256d;
  static constexpr int kWidth = 4;
  static constexpr uint32_t kAll = (uint32_t{1} << kWidth) - 1;
  static Reg load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, Reg v) { _mm256_storeu_pd(p, v); }
  static Reg set1(double x) { return _mm256_set1_pd(x); }
  static Reg add(Reg a, Reg b) { return _mm256_add_pd(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_pd(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static Reg min(Reg a, Reg b) { return _mm256_min_pd(a, b); }
  static Reg max(Reg a, Reg b) { return _mm256_max_pd(a, b); }
  static Reg abs(Reg a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static Reg sqrt(Reg a) { return _mm256_sqrt_pd(a); }
  static uint32_t less(Reg a, Reg b) {
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_LT_OQ)));
  }
  static Reg lane(Reg a, int i) {
    alignas(32) double lanes[4];
    _mm256_store_pd(lanes, a);
    return _mm256_set1_pd(lanes[i]);
  }
  static Reg shift_in(Reg before, Reg a) {
    return _mm256_blend_pd(_mm256_permute4x64_pd(a, 0x93), _mm256_permute4x64_pd(before, 0x93), 1);
  }
};

#include "knn/cpu/kernels_impl.h"

}  // namespace

namespace avx2 {
extern const KernelSet kSearch = {make_kernels<Float, 4, 2>(), make_kernels<Double, 4, 2>()};
}  // namespace avx2

}  // namespace qcse::cpu

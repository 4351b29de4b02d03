// Vectors of 16 floats and of 8 doubles for knn/cpu/kernels_impl.h; included inside an unnamed namespace.

struct Float {
  using Scalar = float;
  using Reg = __m512;
  static constexpr int kWidth = 16;
  static constexpr uint32_t kAll = (uint32_t{1} << kWidth) - 1;
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static Reg set1(float x) { return _mm512_set1_ps(x); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg abs(Reg a) { return _mm512_abs_ps(a); }
  static Reg sqrt(Reg a) { return _mm512_sqrt_ps(a); }
  static uint32_t less(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static Reg lane(Reg a, int i) { return _mm512_permutexvar_ps(_mm512_set1_epi32(i), a); }
  static Reg shift_in(Reg before, Reg a) {
    return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(a), _mm512_castps_si512(before), 15));
  }
};

struct Double {
  using Scalar = double;
  using Reg = __m512d;
  static constexpr int kWidth = 8;
  static constexpr uint32_t kAll = (uint32_t{1} << kWidth) - 1;
  static Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, Reg v) { _mm512_storeu_pd(p, v); }
  static Reg set1(double x) { return _mm512_set1_pd(x); }
  static Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_pd(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
  static Reg min(Reg a, Reg b) { return _mm512_min_pd(a, b); }
  static Reg max(Reg a, Reg b) { return _mm512_max_pd(a, b); }
  static Reg abs(Reg a) { return _mm512_abs_pd(a); }
  static Reg sqrt(Reg a) { return _mm512_sqrt_pd(a); }
  static uint32_t less(Reg a, Reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
  static Reg lane(Reg a, int i) { return _mm512_permutexvar_pd(_mm512_set1_epi64(i), a); }
  static Reg shift_in(Reg before, Reg a) {
    return _mm512_castsi512_pd(_mm512_alignr_epi64(_mm512_castpd_si512(a), _mm512_castpd_si512(before), 7));
  }
};

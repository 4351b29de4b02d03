// Plain C++ for every machine. Loops over fixed-width arrays, which compilers turn into the vectors of the baseline
// (NEON on 64-bit ARM); the fused multiply-add is the language's own, correctly rounded with or without hardware.
#include "knn/cpu/kernels.h"

namespace qcse::cpu {
namespace {

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float root(float a) { return __builtin_sqrtf(a); }
inline double root(double a) { return __builtin_sqrt(a); }
inline float magnitude(float a) { return __builtin_fabsf(a); }
inline double magnitude(double a) { return __builtin_fabs(a); }

template <typename T>
struct Array {
  using Scalar = T;
  static constexpr int kWidth = 32 / sizeof(T);
  static constexpr uint32_t kAll = (uint32_t{1} << kWidth) - 1;
  struct Reg {
    T x[kWidth];
  };
  template <class F>
  static Reg each(F f) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.x[i] = f(i);
    return r;
  }
  static Reg load(const T* p) {
    return each([=](int i) { return p[i]; });
  }
  static void store(T* p, const Reg& v) {
    for (int i = 0; i < kWidth; ++i) p[i] = v.x[i];
  }
  static Reg set1(T x) {
    return each([=](int) { return x; });
  }
  static Reg add(const Reg& a, const Reg& b) {
    return each([&](int i) { return a.x[i] + b.x[i]; });
  }
  static Reg sub(const Reg& a, const Reg& b) {
    return each([&](int i) { return a.x[i] - b.x[i]; });
  }
  static Reg fma(const Reg& a, const Reg& b, const Reg& c) {
    return each([&](int i) { return fused(a.x[i], b.x[i], c.x[i]); });
  }
  static Reg min(const Reg& a, const Reg& b) {
    return each([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
  }
  static Reg max(const Reg& a, const Reg& b) {
    return each([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
  }
  static Reg abs(const Reg& a) {
    return each([&](int i) { return magnitude(a.x[i]); });
  }
  static Reg sqrt(const Reg& a) {
    return each([&](int i) { return root(a.x[i]); });
  }
  static uint32_t less(const Reg& a, const Reg& b) {
    uint32_t mask = 0;
    for (int i = 0; i < kWidth; ++i) mask |= static_cast<uint32_t>(a.x[i] < b.x[i]) << i;
    return mask;
  }
  static Reg lane(const Reg& a, int i) { return set1(a.x[i]); }
  static Reg shift_in(const Reg& before, const Reg& a) {
    return each([&](int i) { return i == 0 ? before.x[kWidth - 1] : a.x[i - 1]; });
  }
};

#include "knn/cpu/kernels_impl.h"

}  // namespace

namespace portable {
extern const KernelSet kSearch = {make_kernels<Array<float>, 2, 2>(), make_kernels<Array<double>, 2, 2>()};
}  // namespace portable

}  // namespace qcse::cpu

// The bit oracle: the definition in csrc/knn/knn.h, one pair at a time, nothing clever and nothing shared with the
// kernels.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

template <typename T>
static void knn(int64_t n, int64_t m, int64_t dim, int64_t k, const T* states, const T* values, const T* ref_states,
                const T* ref_values, const int64_t* self, T* radius, int64_t* count) {
  const auto finite = [dim](const T* state, T value) {
    for (int64_t d = 0; d < dim; ++d) {
      if (!std::isfinite(state[d])) return false;
    }
    return static_cast<bool>(std::isfinite(value));
  };
  std::vector<char> candidate(m);
  for (int64_t j = 0; j < m; ++j) candidate[j] = finite(ref_states + j * dim, ref_values[j]);
  std::vector<T> keys;
  for (int64_t i = 0; i < n; ++i) {
    radius[i] = std::numeric_limits<T>::quiet_NaN();
    count[i] = -1;
    if (!finite(states + i * dim, values[i])) continue;
    keys.clear();
    for (int64_t j = 0; j < m; ++j) {
      if (!candidate[j] || j == self[i]) continue;
      T sum = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const T t = states[i * dim + d] - ref_states[j * dim + d];
        sum = std::fma(t, t, sum);
      }
      keys.push_back(std::max(std::sqrt(sum), std::abs(values[i] - ref_values[j])));
    }
    if (static_cast<int64_t>(keys.size()) < k) continue;
    std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end());
    radius[i] = keys[k - 1];
    count[i] = 0;
    for (int64_t j = 0; j < m; ++j) {
      if (candidate[j] && j != self[i] && std::abs(values[i] - ref_values[j]) < radius[i]) ++count[i];
    }
  }
}

extern "C" void oracle_float(int64_t n, int64_t m, int64_t dim, int64_t k, const float* s, const float* q,
                             const float* rs, const float* rq, const int64_t* self, float* r, int64_t* c) {
  knn(n, m, dim, k, s, q, rs, rq, self, r, c);
}

extern "C" void oracle_double(int64_t n, int64_t m, int64_t dim, int64_t k, const double* s, const double* q,
                              const double* rs, const double* rq, const int64_t* self, double* r, int64_t* c) {
  knn(n, m, dim, k, s, q, rs, rq, self, r, c);
}

// Sampling from a tanh-squashed Gaussian, included once per instruction set after layers_impl.h.

template <typename T>
struct FloatFormat;
template <>
struct FloatFormat<float> {
  static constexpr int kMantissa = 23;
  static constexpr uint32_t kOne = 0x3f800000;
  static constexpr int kExpTerms = 7, kLogTerms = 7;      // of the series below
  static constexpr float kLeast = -87.0f, kMost = 88.0f;  // exp of less, and of more, is no normal number
  static constexpr float kLog2High = 0x1.62e4p-1f, kLog2Low = 0x1.7f7d1cp-20f;  // few bits, and the others
};
template <>
struct FloatFormat<double> {
  static constexpr int kMantissa = 52;
  static constexpr uint64_t kOne = 0x3ff0000000000000;
  static constexpr int kExpTerms = 13, kLogTerms = 17;
  static constexpr double kLeast = -708.0, kMost = 709.0;
  static constexpr double kLog2High = 0x1.62e42feep-1, kLog2Low = 0x1.a39ef35793c76p-33;
};

// exp(x) = scale (1 + rest), scale a power of two.
template <typename T>
struct Exponential {
  Vector<T> scale, rest;
};

template <typename T>
inline Exponential<T> exponential_parts(Vector<T> x) {
  using Format = FloatFormat<T>;
  using Unsigned = typename UnsignedOf<sizeof(T)>::Type;
  x = x < Format::kLeast ? Vector<T>{} + Format::kLeast : x;
  x = x > Format::kMost ? Vector<T>{} + Format::kMost : x;
  // Adding 1.5 * 2^mantissa leaves the nearest integer in the lowest bits.
  constexpr T kShift = T(1.5) * T(Unsigned(1) << Format::kMantissa);
  const Vector<T> shifted = x * T(1.44269504088896340736) + kShift, whole = shifted - kShift;
  const Vector<T> r = x - whole * Format::kLog2High - whole * Format::kLog2Low;
  T terms[Format::kExpTerms], factorial = 1;
  for (int i = 0; i < Format::kExpTerms; ++i) terms[i] = 1 / (factorial *= T(i + 1));
  Vector<T> rest{};
  for (int i = Format::kExpTerms; i-- > 0;) rest = (rest + terms[i]) * r;
  const Vector<Unsigned> exponent = reinterpret_cast<Vector<Unsigned>>(shifted) << Format::kMantissa;
  return {reinterpret_cast<Vector<T>>(exponent + Format::kOne), rest};
}

// tanh(u) and log(1 - tanh(u)^2), from one exponential of -2 |u|.
template <typename T>
inline void squash(Vector<T> u, Vector<T>& tanh, Vector<T>& log_slope) {
  const Vector<T> size = u < 0 ? -u : u;
  const Exponential<T> e = exponential_parts<T>(-2 * size);
  const Vector<T> power = e.scale + e.scale * e.rest, less_one = (e.scale - 1) + e.scale * e.rest;
  const Vector<T> of_size = -less_one / (1 + power);
  tanh = u < 0 ? -of_size : of_size;
  // log(1 + p) = 2 artanh(p / (2 + p)), whose argument is at most 1/3.
  const Vector<T> t = power / (2 + power), square = t * t;
  Vector<T> series{};
  for (int i = FloatFormat<T>::kLogTerms; i-- > 0;) series = series * square + T(1) / T(2 * i + 1);
  log_slope = 2 * (T(0.69314718055994530942) - size - 2 * t * series);
}

template <typename T>
inline void exponential_of(const T* x, int64_t count, T* out) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Exponential<T> e = exponential_parts<T>(load(x + i));
    store(out + i, e.scale + e.scale * e.rest);
  }
}

// States that are worked on together, and the numbers of their samples, which only the way forward needs, and of
// themselves.
template <typename T>
struct TanhGaussianWork {
  int64_t states;
  T *u, *action, *log_prob;  // per sample
  T *log_std, *std;          // per state

  TanhGaussianWork(const TanhGaussian<T>& g, bool forward, Arena<T>& arena) {
    const int64_t each = g.samples * g.dim;
    states = smaller(g.states, each < 1024 ? 1024 / each : 1);
    const int64_t samples = round_up(states * each, kLanes<T>), means = round_up(states * g.dim, kLanes<T>);
    log_std = arena.take(means), std = arena.take(means);
    if (forward) u = arena.take(samples), action = arena.take(samples), log_prob = arena.take(samples);
    if (arena.next == nullptr) return;
    fill(log_std, means, T(0));  // whole vectors read behind the last number
    if (forward) fill(u, samples, T(0));
  }

  void load_std(const TanhGaussian<T>& g, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count * g.dim; ++i) log_std[i] = g.log_std[first * g.dim + i];
    exponential_of(log_std, count * g.dim, std);
  }
};

template <typename T>
int64_t tanh_gaussian_workspace(const TanhGaussian<T>& g) {
  Arena<T> arena{nullptr};
  TanhGaussianWork<T> work(g, true, arena);
  return arena.used;
}

// Of the states [begin, end); actions [states, samples, dim], log_prob [states, samples].
template <typename T>
void tanh_gaussian(const TanhGaussian<T>& g, int64_t begin, int64_t end, T* space, T* actions, T* log_prob) {
  Arena<T> arena{space};
  TanhGaussianWork<T> work(g, true, arena);
  for (int64_t first = begin; first < end; first += work.states) {
    const int64_t count = smaller(work.states, end - first), numbers = count * g.samples * g.dim;
    const T* noise = g.noise + first * g.samples * g.dim;
    work.load_std(g, first, count);
    for (int64_t i = 0, k = 0; i < count; ++i) {
      const T* mean = g.mean + (first + i) * g.dim;
      const T *log_std = work.log_std + i * g.dim, *std = work.std + i * g.dim;
      for (int64_t j = 0; j < g.samples; ++j, k += g.dim) {
        for (int64_t d = 0; d < g.dim; ++d) {
          const T z = noise[k + d];
          work.u[k + d] = mean[d] + std[d] * z;
          work.log_prob[k + d] = T(-0.5) * z * z - log_std[d] - T(0.91893853320467274178);
        }
      }
    }
    for (int64_t k = 0; k < numbers; k += kLanes<T>) {
      Vector<T> tanh, log_slope;
      squash<T>(load(work.u + k), tanh, log_slope);
      store(work.action + k, tanh), store(work.log_prob + k, load(work.log_prob + k) - log_slope);
    }
    for (int64_t k = 0; k < numbers; ++k) actions[first * g.samples * g.dim + k] = work.action[k];
    for (int64_t r = 0; r < count * g.samples; ++r) {
      T sum = 0;
      for (int64_t d = 0; d < g.dim; ++d) sum += work.log_prob[r * g.dim + d];
      log_prob[first * g.samples + r] = sum;
    }
  }
}

// The slope of tanh is 1 - action^2, that of -log(1 - tanh^2) is 2 action.
template <typename T>
void tanh_gaussian_backward(const TanhGaussianGradient<T>& gradient, int64_t begin, int64_t end, T* space) {
  const TanhGaussian<T>& g = gradient.forward;
  Arena<T> arena{space};
  TanhGaussianWork<T> work(g, false, arena);
  for (int64_t first = begin; first < end; first += work.states) {
    const int64_t count = smaller(work.states, end - first);
    work.load_std(g, first, count);
    for (int64_t i = first; i < first + count; ++i) {
      T *mean_grad = gradient.mean_grad + i * g.dim, *log_std_grad = gradient.log_std_grad + i * g.dim;
      const T* std = work.std + (i - first) * g.dim;
      fill(mean_grad, g.dim, T(0)), fill(log_std_grad, g.dim, T(0));
      for (int64_t j = i * g.samples; j < (i + 1) * g.samples; ++j) {
        const T log_prob_grad = gradient.log_prob_grad[j];
        for (int64_t d = 0; d < g.dim; ++d) {
          const int64_t k = j * g.dim + d;
          const T action = gradient.actions[k];
          const T u_grad = gradient.action_grad[k] * (1 - action * action) + 2 * log_prob_grad * action;
          mean_grad[d] += u_grad;
          log_std_grad[d] += u_grad * std[d] * g.noise[k] - log_prob_grad;
        }
      }
    }
  }
}

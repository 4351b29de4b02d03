// The emulated kernels around the networks (csrc/nets/policy.h) as Python calls them.
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "c_api.h"
#include "nets/cuda/policy_launch.h"

namespace {

using emulator::Buffer;
using emulator::guarded;

// The arrays of one call, as device memory. Pointers of inputs may be null; then so is the array.
class Arrays {
 public:
  Arrays(const void* const* inputs, void* const* outputs) : inputs_(inputs), outputs_(outputs) {}
  template <typename T>
  const T* in(size_t i, int64_t count) {
    return inputs_[i] == nullptr ? nullptr : make(inputs_[i], bytes_of<T>(count)).template as<T>();
  }
  template <typename T>
  T* out(size_t i, int64_t count) {
    buffers_.push_back(std::make_unique<Buffer>(bytes_of<T>(count)));
    return written<T>(i);
  }
  // An input that the call changes, which comes back as an output.
  template <typename T>
  T* in_out(size_t from, size_t to, int64_t count) {
    if (inputs_[from] == nullptr) return nullptr;
    make(inputs_[from], bytes_of<T>(count));
    return written<T>(to);
  }
  void read() const {
    for (const auto& [buffer, i] : results_) buffer->read(outputs_[i]);
  }

 private:
  template <typename T>
  static size_t bytes_of(int64_t count) {
    return static_cast<size_t>(count) * sizeof(T);
  }
  Buffer& make(const void* host, size_t bytes) {
    buffers_.push_back(std::make_unique<Buffer>(host, bytes));
    return *buffers_.back();
  }
  template <typename T>
  T* written(size_t i) {
    results_.emplace_back(buffers_.back().get(), i);
    return buffers_.back()->template as<T>();
  }

  const void* const* inputs_;
  void* const* outputs_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<std::pair<Buffer*, size_t>> results_;
};

using qcse::cuda::Status;

// sizes: states, samples, dim. inputs: mean, log_std, noise. outputs: actions, log_prob.
template <typename T>
Status tanh_gaussian(Arrays& arrays, const int64_t* sizes, const double*) {
  qcse::TanhGaussian<T> g;
  g.states = sizes[0], g.samples = sizes[1], g.dim = sizes[2];
  const int64_t rows = g.states * g.samples;
  g.mean = arrays.in<T>(0, g.states * g.dim), g.log_std = arrays.in<T>(1, g.states * g.dim);
  g.noise = arrays.in<T>(2, rows * g.dim);
  T* const actions = arrays.out<T>(0, rows * g.dim);
  return qcse::cuda::tanh_gaussian(g, actions, arrays.out<T>(1, rows), nullptr);
}

// sizes: states, samples, dim, row and column stride of action_grad, its numbers. inputs: actions, log_std, noise,
// log_prob_grad, action_grad. outputs: mean_grad, log_std_grad.
template <typename T>
Status tanh_gaussian_backward(Arrays& arrays, const int64_t* sizes, const double*) {
  qcse::TanhGaussianGradient<T> gradient;
  qcse::TanhGaussian<T>& g = gradient.forward;
  g.states = sizes[0], g.samples = sizes[1], g.dim = sizes[2];
  const int64_t rows = g.states * g.samples;
  gradient.actions = arrays.in<T>(0, rows * g.dim);
  g.log_std = arrays.in<T>(1, g.states * g.dim), g.noise = arrays.in<T>(2, rows * g.dim);
  gradient.log_prob_grad = arrays.in<T>(3, rows);
  const qcse::Rows<T> action_grad{arrays.in<T>(4, sizes[5]), sizes[3], sizes[4]};
  gradient.mean_grad = arrays.out<T>(0, g.states * g.dim), gradient.log_std_grad = arrays.out<T>(1, g.states * g.dim);
  return qcse::cuda::tanh_gaussian_backward(gradient, action_grad, nullptr);
}

// sizes: seeds, states, dim. numbers: low, high. inputs: raw, multiplier, offset.
template <typename T>
qcse::GaussianHead<T> head_of(Arrays& arrays, const int64_t* sizes, const double* numbers) {
  qcse::GaussianHead<T> head;
  head.seeds = sizes[0], head.states = sizes[1], head.dim = sizes[2];
  head.low = static_cast<T>(numbers[0]), head.high = static_cast<T>(numbers[1]);
  head.raw = arrays.in<T>(0, head.seeds * head.states * 2 * head.dim);
  head.multiplier = arrays.in<T>(1, head.seeds), head.offset = arrays.in<T>(2, head.seeds);
  return head;
}

// outputs: mean, log_std.
template <typename T>
Status gaussian_head(Arrays& arrays, const int64_t* sizes, const double* numbers) {
  const auto head = head_of<T>(arrays, sizes, numbers);
  const int64_t count = head.seeds * head.states * head.dim;
  T* const mean = arrays.out<T>(0, count);
  return qcse::cuda::gaussian_head(head, mean, arrays.out<T>(1, count), nullptr);
}

// further inputs: mean_grad, log_std_grad. outputs: raw_grad, multiplier_grad, offset_grad.
template <typename T>
Status gaussian_head_backward(Arrays& arrays, const int64_t* sizes, const double* numbers) {
  qcse::GaussianHeadGradient<T> g;
  g.forward = head_of<T>(arrays, sizes, numbers);
  const int64_t count = g.forward.seeds * g.forward.states * g.forward.dim;
  g.mean_grad = arrays.in<T>(3, count), g.log_std_grad = arrays.in<T>(4, count);
  g.raw_grad = arrays.out<T>(0, 2 * count);
  g.multiplier_grad = arrays.out<T>(1, g.forward.seeds), g.offset_grad = arrays.out<T>(2, g.forward.seeds);
  return qcse::cuda::gaussian_head_backward(g, nullptr);
}

// sizes: seeds, members, states, actions. numbers: discount. inputs: values, rewards, bootstrap, temperature, log_prob
// (may be null). outputs: target.
template <typename T>
Status bellman_target(Arrays& arrays, const int64_t* sizes, const double* numbers) {
  qcse::BellmanTarget<T> t;
  t.seeds = sizes[0], t.members = sizes[1], t.states = sizes[2], t.actions = sizes[3];
  const int64_t rows = t.seeds * t.states;
  t.discount = static_cast<T>(numbers[0]);
  t.values = arrays.in<T>(0, rows * t.members * t.actions);
  t.rewards = arrays.in<T>(1, rows), t.bootstrap = arrays.in<T>(2, rows), t.temperature = arrays.in<T>(3, t.seeds);
  t.log_prob = arrays.in<T>(4, rows * t.actions), t.target = arrays.out<T>(0, rows);
  return qcse::cuda::bellman_target(t, nullptr);
}

// sizes: seeds, members, states, whether the least is taken. inputs: q, temperature, then log_prob or loss_grad.
template <typename T>
qcse::ActorLoss<T> actor_of(Arrays& arrays, const int64_t* sizes) {
  qcse::ActorLoss<T> a;
  a.seeds = sizes[0], a.members = sizes[1], a.states = sizes[2], a.least = sizes[3] != 0;
  a.q = arrays.in<T>(0, a.seeds * a.members * a.states), a.temperature = arrays.in<T>(1, a.seeds);
  return a;
}

// outputs: loss, mean_log_prob.
template <typename T>
Status actor_loss(Arrays& arrays, const int64_t* sizes, const double*) {
  auto a = actor_of<T>(arrays, sizes);
  a.log_prob = arrays.in<T>(2, a.seeds * a.states);
  T* const loss = arrays.out<T>(0, a.seeds);
  return qcse::cuda::actor_loss(a, loss, arrays.out<T>(1, a.seeds), nullptr);
}

// further size: stride of loss_grad. outputs: q_grad, log_prob_grad.
template <typename T>
Status actor_loss_backward(Arrays& arrays, const int64_t* sizes, const double*) {
  qcse::ActorLossGradient<T> g;
  g.forward = actor_of<T>(arrays, sizes);
  g.loss_grad_stride = sizes[4];
  g.loss_grad = arrays.in<T>(2, sizes[4] != 0 ? g.forward.seeds : 1);
  g.q_grad = arrays.out<T>(0, g.forward.seeds * g.forward.members * g.forward.states);
  g.log_prob_grad = arrays.out<T>(1, g.forward.seeds * g.forward.states);
  return qcse::cuda::actor_loss_backward(g, nullptr);
}

// sizes: tensors, the count of each. numbers: beta1, beta2, epsilon, target_rate, the rate of each. inputs, for each
// tensor: parameter, gradient, first and second moment, target (may be null), steps; then tickets. outputs: parameter,
// moments, target, steps; then tickets.
template <typename T>
Status adam(Arrays& arrays, const int64_t* sizes, const double* numbers) {
  std::vector<qcse::AdamTensor<T>> tensors;
  const auto count = static_cast<size_t>(sizes[0]);
  for (size_t i = 0; i < count; ++i) {
    qcse::AdamTensor<T> t;
    t.count = sizes[1 + i], t.rate = numbers[4 + i];
    t.parameter = arrays.in_out<T>(6 * i, 5 * i, t.count), t.gradient = arrays.in<T>(6 * i + 1, t.count);
    t.first_moment = arrays.in_out<T>(6 * i + 2, 5 * i + 1, t.count);
    t.second_moment = arrays.in_out<T>(6 * i + 3, 5 * i + 2, t.count);
    t.target = arrays.in_out<T>(6 * i + 4, 5 * i + 3, t.count);
    t.steps = arrays.in_out<float>(6 * i + 5, 5 * i + 4, 1);
    tensors.push_back(t);
  }
  int32_t* const tickets = arrays.in_out<int32_t>(6 * count, 5 * count, sizes[0]);
  return qcse::cuda::adam(tensors, {numbers[0], numbers[1], numbers[2], numbers[3]}, tickets, nullptr);
}

struct Entry {
  const char* name;
  Status (*of_float)(Arrays&, const int64_t*, const double*);
  Status (*of_double)(Arrays&, const int64_t*, const double*);
};
constexpr Entry kEntries[] = {
    {"tanh_gaussian", tanh_gaussian<float>, tanh_gaussian<double>},
    {"tanh_gaussian_backward", tanh_gaussian_backward<float>, tanh_gaussian_backward<double>},
    {"gaussian_head", gaussian_head<float>, gaussian_head<double>},
    {"gaussian_head_backward", gaussian_head_backward<float>, gaussian_head_backward<double>},
    {"bellman_target", bellman_target<float>, bellman_target<double>},
    {"actor_loss", actor_loss<float>, actor_loss<double>},
    {"actor_loss_backward", actor_loss_backward<float>, actor_loss_backward<double>},
    {"adam", adam<float>, adam<double>},
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Runs the kernel of this name; the comments above have its arguments. Returns 0, or 1 and leaves a message.
int emulator_policy(const char* name, int is_double, const int64_t* sizes, const double* numbers,
                    const void* const* inputs, void* const* outputs) {
  return guarded([&] {
    for (const Entry& entry : kEntries) {
      if (std::string(name) != entry.name) continue;
      Arrays arrays(inputs, outputs);
      const Status status = (is_double != 0 ? entry.of_double : entry.of_float)(arrays, sizes, numbers);
      if (status.error != nullptr) throw std::runtime_error(std::string(status.kernel) + ": " + status.error);
      return arrays.read();
    }
    throw std::runtime_error(std::string("there is no kernel named ") + name);
  });
}

}  // extern "C"
#pragma GCC visibility pop

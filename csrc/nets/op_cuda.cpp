// CUDA registration of the operators around the networks: samples and head of a policy, target and policy's loss of an
// actor-critic, and the optimiser. Each call is one launch on torch's current stream (the optimiser's one for each
// cuda::kAdamTensors tensors); only an argument that is not dense costs another, which copies it.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/op_cuda.h"
#include "nets/cuda/policy_launch.h"
#include "nets/op_tanh_gaussian.h"

namespace qcse {
namespace {

// Device and stream of a call: kernels run where `example` lies.
class Call {
 public:
  Call(const char* op, const Tensor& example)
      : op_(op), guard_(example.get_device_index()), stream_(current_cuda_stream(example.get_device_index())) {
    cuda::Device device;
    expect_launched(op_, cuda::select_device(example.get_device_index(), &device), shape_of(example));
  }
  void* stream() const { return stream_; }
  void expect(const cuda::Status& status, const Tensor& example) const {
    expect_launched(op_, status, shape_of(example) + ", " + type_name(example.scalar_type()));
  }

 private:
  const char* op_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
};

template <typename Run>
void for_type(const Tensor& t, const Run& run) {
  t.scalar_type() == ScalarType::Double ? run(double()) : run(float());
}

Tensor dense(const Tensor& t) { return torch::stable::contiguous(t); }

// --- Samples of a tanh-squashed Gaussian ----------------------------------------------------------------------------

std::tuple<Tensor, Tensor> tanh_gaussian_cuda(const Tensor& mean, const Tensor& log_std, const Tensor& noise) {
  const char* op = "qcse::tanh_gaussian";
  expect(op, "log_std", log_std, mean, sizes_of(mean), std::nullopt, "mean");
  const Call call(op, mean);
  const TanhGaussianArguments a(op, log_std, noise);
  const Tensor dense_mean = dense(mean);
  Tensor actions = torch::stable::empty_like(a.noise), log_prob = torch::stable::new_empty(a.noise, a.log_prob_shape());
  for_type(mean, [&]<typename T>(T) {
    TanhGaussian<T> g = a.describe<T>();
    g.mean = dense_mean.const_data_ptr<T>();
    call.expect(cuda::tanh_gaussian(g, actions.mutable_data_ptr<T>(), log_prob.mutable_data_ptr<T>(), call.stream()),
                noise);
  });
  return {actions, log_prob};
}

// Row and column stride of a tensor all of whose dimensions but the last are as one; false where they are not. A
// network's gradient for its input is such a tensor, for a part of the input.
bool rows_of(const Tensor& t, int64_t& row, int64_t& column) {
  const int64_t last = t.dim() - 1;
  column = t.stride(last), row = 0;
  bool begun = false;
  int64_t next = 0;  // the stride that continues the rows; 0 behind an expanded dimension
  for (int64_t d = last - 1; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    if (!begun) row = t.stride(d), next = row, begun = true;
    if (t.stride(d) != next) return false;
    next *= t.size(d);
  }
  return true;
}

std::tuple<Tensor, Tensor> tanh_gaussian_backward_cuda(const Tensor& action_grad, const Tensor& log_prob_grad,
                                                       const Tensor& actions, const Tensor& log_std,
                                                       const Tensor& noise) {
  const char* op = "qcse::tanh_gaussian_backward";
  const Call call(op, log_std);
  const TanhGaussianArguments a(op, log_std, noise);
  a.expect_gradient(op, action_grad, log_prob_grad, actions);
  const Tensor dense_actions = dense(actions), dense_log_prob_grad = dense(log_prob_grad);
  int64_t row = 0, column = 0;
  const Tensor own_grad = rows_of(action_grad, row, column) ? action_grad : dense(action_grad);
  rows_of(own_grad, row, column);
  Tensor mean_grad = torch::stable::empty_like(a.log_std), log_std_grad = torch::stable::empty_like(a.log_std);
  for_type(log_std, [&]<typename T>(T) {
    TanhGaussianGradient<T> g;
    g.forward = a.describe<T>();
    g.actions = dense_actions.const_data_ptr<T>();
    g.log_prob_grad = dense_log_prob_grad.const_data_ptr<T>();
    g.mean_grad = mean_grad.mutable_data_ptr<T>(), g.log_std_grad = log_std_grad.mutable_data_ptr<T>();
    const Rows<T> rows{own_grad.const_data_ptr<T>(), row, column};
    call.expect(cuda::tanh_gaussian_backward(g, rows, call.stream()), noise);
  });
  return {mean_grad, log_std_grad};
}

// --- The head of a Gaussian policy ----------------------------------------------------------------------------------

struct HeadArguments {
  Tensor raw, multiplier, offset;  // dense
  int64_t seeds, states, dim;
  double low, high;

  HeadArguments(const char* op, const Tensor& raw_, const Tensor& multiplier_, const Tensor& offset_, double low_,
                double high_)
      : low(low_), high(high_) {
    expect_float(op, "raw", raw_);
    if (raw_.dim() != 3 || raw_.size(2) % 2 != 0 || raw_.numel() == 0) {
      fail(op, ": raw must have shape [S, B, 2 A] and not be empty, got ", shape_of(raw_));
    }
    seeds = raw_.size(0), states = raw_.size(1), dim = raw_.size(2) / 2;
    expect(op, "multiplier", multiplier_, raw_, {seeds, 1, 1}, std::nullopt, "raw");
    expect(op, "offset", offset_, raw_, {seeds, 1, 1}, std::nullopt, "raw");
    raw = dense(raw_), multiplier = dense(multiplier_), offset = dense(offset_);
  }

  template <typename T>
  GaussianHead<T> describe() const {
    GaussianHead<T> head;
    head.seeds = seeds, head.states = states, head.dim = dim;
    head.raw = raw.const_data_ptr<T>();
    head.multiplier = multiplier.const_data_ptr<T>(), head.offset = offset.const_data_ptr<T>();
    head.low = static_cast<T>(low), head.high = static_cast<T>(high);
    return head;
  }
};

std::tuple<Tensor, Tensor> gaussian_head_cuda(const Tensor& raw, const Tensor& multiplier, const Tensor& offset,
                                              double low, double high) {
  const char* op = "qcse::gaussian_head";
  const Call call(op, raw);
  const HeadArguments a(op, raw, multiplier, offset, low, high);
  Tensor mean = torch::stable::new_empty(a.raw, {a.seeds, a.states, a.dim}), log_std = torch::stable::empty_like(mean);
  for_type(raw, [&]<typename T>(T) {
    call.expect(
        cuda::gaussian_head(a.describe<T>(), mean.mutable_data_ptr<T>(), log_std.mutable_data_ptr<T>(), call.stream()),
        raw);
  });
  return {mean, log_std};
}

std::tuple<Tensor, Tensor, Tensor> gaussian_head_backward_cuda(const Tensor& mean_grad, const Tensor& log_std_grad,
                                                               const Tensor& raw, const Tensor& multiplier,
                                                               const Tensor& offset, double low, double high) {
  const char* op = "qcse::gaussian_head_backward";
  const Call call(op, raw);
  const HeadArguments a(op, raw, multiplier, offset, low, high);
  expect(op, "mean_grad", mean_grad, raw, {a.seeds, a.states, a.dim}, std::nullopt, "raw");
  expect(op, "log_std_grad", log_std_grad, raw, {a.seeds, a.states, a.dim}, std::nullopt, "raw");
  const Tensor dense_mean_grad = dense(mean_grad), dense_log_std_grad = dense(log_std_grad);
  Tensor raw_grad = torch::stable::empty_like(a.raw), multiplier_grad = torch::stable::empty_like(a.multiplier);
  Tensor offset_grad = torch::stable::empty_like(a.offset);
  for_type(raw, [&]<typename T>(T) {
    GaussianHeadGradient<T> g;
    g.forward = a.describe<T>();
    g.mean_grad = dense_mean_grad.const_data_ptr<T>(), g.log_std_grad = dense_log_std_grad.const_data_ptr<T>();
    g.raw_grad = raw_grad.mutable_data_ptr<T>();
    g.multiplier_grad = multiplier_grad.mutable_data_ptr<T>(), g.offset_grad = offset_grad.mutable_data_ptr<T>();
    call.expect(cuda::gaussian_head_backward(g, call.stream()), raw);
  });
  return {raw_grad, multiplier_grad, offset_grad};
}

// --- The target and the policy's loss -------------------------------------------------------------------------------

Tensor bellman_target_cuda(const Tensor& values, const Tensor& log_prob, const Tensor& rewards, const Tensor& bootstrap,
                           const Tensor& temperature, double discount, bool entropy_backup) {
  const char* op = "qcse::bellman_target";
  expect_float(op, "values", values);
  if (values.dim() != 4 || values.numel() == 0) {
    fail(op, ": values must have shape [S, E, B, n] and not be empty, got ", shape_of(values));
  }
  const int64_t seeds = values.size(0), states = values.size(2), actions = values.size(3);
  expect(op, "log_prob", log_prob, values, {seeds, states, actions}, std::nullopt, "values");
  expect(op, "rewards", rewards, values, {seeds, states}, std::nullopt, "values");
  expect(op, "bootstrap", bootstrap, values, {seeds, states}, std::nullopt, "values");
  expect(op, "temperature", temperature, values, {seeds}, std::nullopt, "values");
  const Call call(op, values);
  const Tensor v = dense(values), l = dense(log_prob), r = dense(rewards), b = dense(bootstrap), t = dense(temperature);
  Tensor target = torch::stable::empty_like(r);
  for_type(values, [&]<typename T>(T) {
    BellmanTarget<T> g;
    g.seeds = seeds, g.members = values.size(1), g.states = states, g.actions = actions;
    g.values = v.const_data_ptr<T>(), g.log_prob = entropy_backup ? l.const_data_ptr<T>() : nullptr;
    g.rewards = r.const_data_ptr<T>(), g.bootstrap = b.const_data_ptr<T>(), g.temperature = t.const_data_ptr<T>();
    g.discount = static_cast<T>(discount), g.target = target.mutable_data_ptr<T>();
    call.expect(cuda::bellman_target(g, call.stream()), values);
  });
  return target;
}

// The dense tensors that an ActorLoss<T> points into.
struct ActorArguments {
  Tensor q, temperature;
  bool least;

  ActorArguments(const char* op, const Tensor& q_, const Tensor& temperature_, bool least_) : least(least_) {
    expect_float(op, "q", q_);
    if (q_.dim() != 3 || q_.numel() == 0) {
      fail(op, ": q must have shape [S, E, B] and not be empty, got ", shape_of(q_));
    }
    expect(op, "temperature", temperature_, q_, {q_.size(0)}, std::nullopt, "q");
    q = dense(q_), temperature = dense(temperature_);
  }

  template <typename T>
  ActorLoss<T> describe() const {
    ActorLoss<T> a;
    a.seeds = q.size(0), a.members = q.size(1), a.states = q.size(2), a.least = least;
    a.q = q.const_data_ptr<T>(), a.temperature = temperature.const_data_ptr<T>();
    return a;
  }
};

std::tuple<Tensor, Tensor> actor_loss_cuda(const Tensor& q, const Tensor& log_prob, const Tensor& temperature,
                                           bool least) {
  const char* op = "qcse::actor_loss";
  const ActorArguments a(op, q, temperature, least);
  expect(op, "log_prob", log_prob, q, {q.size(0), q.size(2)}, std::nullopt, "q");
  const Call call(op, q);
  const Tensor dense_log_prob = dense(log_prob);
  Tensor loss = torch::stable::empty_like(a.temperature), mean_log_prob = torch::stable::empty_like(a.temperature);
  for_type(q, [&]<typename T>(T) {
    ActorLoss<T> g = a.describe<T>();
    g.log_prob = dense_log_prob.const_data_ptr<T>();
    call.expect(cuda::actor_loss(g, loss.mutable_data_ptr<T>(), mean_log_prob.mutable_data_ptr<T>(), call.stream()), q);
  });
  return {loss, mean_log_prob};
}

std::tuple<Tensor, Tensor> actor_loss_backward_cuda(const Tensor& loss_grad, const Tensor& q, const Tensor& temperature,
                                                    bool least) {
  const char* op = "qcse::actor_loss_backward";
  const ActorArguments a(op, q, temperature, least);
  expect(op, "loss_grad", loss_grad, q, {q.size(0)}, std::nullopt, "q");
  const Call call(op, q);
  Tensor q_grad = torch::stable::empty_like(a.q);
  Tensor log_prob_grad = torch::stable::new_empty(a.q, {q.size(0), q.size(2)});
  for_type(q, [&]<typename T>(T) {
    ActorLossGradient<T> g;
    g.forward = a.describe<T>();
    g.loss_grad = loss_grad.const_data_ptr<T>(), g.loss_grad_stride = loss_grad.stride(0);  // 0 behind a sum
    g.q_grad = q_grad.mutable_data_ptr<T>(), g.log_prob_grad = log_prob_grad.mutable_data_ptr<T>();
    call.expect(cuda::actor_loss_backward(g, call.stream()), q);
  });
  return {q_grad, log_prob_grad};
}

// --- The optimiser --------------------------------------------------------------------------------------------------

// A tensor that is changed in place must be dense itself.
void expect_written(const char* op, const std::string& name, const Tensor& t, const Tensor& parameter) {
  expect(op, name, t, parameter, sizes_of(parameter), std::nullopt, "parameters");
  if (!t.is_contiguous()) fail(op, ": ", name, " must be contiguous, as it is changed in place");
}

struct AdamArguments {
  const char* op = "qcse::adam_";
  std::vector<Tensor> parameters, gradients, first_moments, second_moments, steps;  // gradients dense
  std::vector<Tensor> targets;
  std::vector<int64_t> followed;
  std::vector<double> rates;

  void check(const Tensor& tickets) {
    const size_t count = parameters.size();
    for (const size_t other :
         {gradients.size(), first_moments.size(), second_moments.size(), steps.size(), rates.size()}) {
      if (other != count) fail(op, ": the lists must be as long as parameters (", count, "), got ", other);
    }
    if (targets.size() != followed.size()) fail(op, ": targets and followed must be as many");
    for (size_t i = 0; i < count; ++i) {
      const std::string index = std::string("[").append(std::to_string(i)).append("]");  // `+` alarms GCC 12
      expect_float(op, "parameters", parameters[i]);
      expect(op, "parameters" + index, parameters[i], parameters[0], sizes_of(parameters[i]), std::nullopt,
             "parameters[0]");
      expect_written(op, "parameters" + index, parameters[i], parameters[i]);
      expect_written(op, "first_moments" + index, first_moments[i], parameters[i]);
      expect_written(op, "second_moments" + index, second_moments[i], parameters[i]);
      expect(op, "gradients" + index, gradients[i], parameters[i], sizes_of(parameters[i]), std::nullopt, "parameters");
      expect(op, "steps" + index, steps[i], parameters[i], {}, ScalarType::Float, "parameters");
      gradients[i] = dense(gradients[i]);
    }
    for (size_t i = 0; i < targets.size(); ++i) {
      const bool known = 0 <= followed[i] && followed[i] < static_cast<int64_t>(count);
      if (!known) fail(op, ": followed must be numbers of parameters, 0 to ", count, " - 1, got ", followed[i]);
      expect_written(op, "targets[" + std::to_string(i) + "]", targets[i],
                     parameters[static_cast<size_t>(followed[i])]);
    }
    expect_device(op, "tickets", tickets, "parameters", parameters[0]);
    if (tickets.dim() != 1 || tickets.size(0) < static_cast<int64_t>(count) ||
        tickets.scalar_type() != ScalarType::Int || !tickets.is_contiguous()) {
      fail(op, ": tickets must be contiguous int32 numbers, one for each parameter, got ", shape_of(tickets));
    }
  }

  template <typename T>
  std::vector<AdamTensor<T>> describe() const {
    std::vector<AdamTensor<T>> described(parameters.size());
    for (size_t i = 0; i < described.size(); ++i) {
      AdamTensor<T>& d = described[i];
      d.count = parameters[i].numel(), d.parameter = parameters[i].mutable_data_ptr<T>();
      d.gradient = gradients[i].const_data_ptr<T>(), d.steps = steps[i].mutable_data_ptr<float>(), d.rate = rates[i];
      d.first_moment = first_moments[i].mutable_data_ptr<T>();
      d.second_moment = second_moments[i].mutable_data_ptr<T>();
    }
    for (size_t i = 0; i < targets.size(); ++i) {
      T*& target = described[static_cast<size_t>(followed[i])].target;
      if (target != nullptr) fail(op, ": followed has ", followed[i], " twice");
      target = targets[i].mutable_data_ptr<T>();
    }
    return described;
  }
};

void adam_cuda(std::vector<Tensor> parameters, std::vector<Tensor> gradients, std::vector<Tensor> first_moments,
               std::vector<Tensor> second_moments, std::vector<Tensor> steps, std::vector<Tensor> targets,
               std::vector<int64_t> followed, std::vector<double> rates, double beta1, double beta2, double epsilon,
               double target_rate, Tensor tickets) {
  if (parameters.empty()) return;
  AdamArguments a;
  a.parameters = std::move(parameters), a.gradients = std::move(gradients), a.steps = std::move(steps);
  a.first_moments = std::move(first_moments), a.second_moments = std::move(second_moments);
  a.targets = std::move(targets), a.followed = std::move(followed), a.rates = std::move(rates);
  const Call call(a.op, a.parameters[0]);
  a.check(tickets);
  for_type(a.parameters[0], [&]<typename T>(T) {
    const std::vector<AdamTensor<T>> all = a.describe<T>();
    for (size_t first = 0; first < all.size(); first += cuda::kAdamTensors) {
      const auto begin = all.begin() + static_cast<ptrdiff_t>(first);
      const size_t count = std::min<size_t>(cuda::kAdamTensors, all.size() - first);
      const std::vector<AdamTensor<T>> some(begin, begin + static_cast<ptrdiff_t>(count));
      const AdamSettings settings{beta1, beta2, epsilon, target_rate};
      int32_t* const own = tickets.mutable_data_ptr<int32_t>() + first;
      call.expect(cuda::adam(some, settings, own, call.stream()), a.parameters[first]);
    }
  });
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_IMPL(qcse, CUDA, m) {
  m.impl("tanh_gaussian", TORCH_BOX(&qcse::tanh_gaussian_cuda));
  m.impl("tanh_gaussian_backward", TORCH_BOX(&qcse::tanh_gaussian_backward_cuda));
  m.impl("gaussian_head", TORCH_BOX(&qcse::gaussian_head_cuda));
  m.impl("gaussian_head_backward", TORCH_BOX(&qcse::gaussian_head_backward_cuda));
  m.impl("bellman_target", TORCH_BOX(&qcse::bellman_target_cuda));
  m.impl("actor_loss", TORCH_BOX(&qcse::actor_loss_cuda));
  m.impl("actor_loss_backward", TORCH_BOX(&qcse::actor_loss_backward_cuda));
  m.impl("adam_", TORCH_BOX(&qcse::adam_cuda));
}

// Sampling from a tanh-squashed Gaussian policy as operators: schemas, checks, CPU registration (LibTorch stable ABI).
#include <string>
#include <tuple>
#include <vector>

#include "nets/cpu/launch.h"
#include "base/op.h"

namespace qcse {
namespace {

// The dense tensors that a TanhGaussian<T> points into.
struct TanhGaussianArguments {
  Tensor log_std, noise;
  std::vector<int64_t> shape;  // of log_std and the mean: [..., A]
  int64_t states = 1, samples, dim;
  bool is_double;

  TanhGaussianArguments(const char* op, const Tensor& log_std_, const Tensor& noise_) {
    expect_float(op, "log_std", log_std_);
    const int64_t dims = log_std_.dim();
    if (dims < 1) fail(op, ": log_std must have shape [..., A], got " + shape_of(log_std_));
    for (int64_t i = 0; i < dims; ++i) shape.push_back(log_std_.size(i));
    for (size_t i = 0; i + 1 < shape.size(); ++i) states *= shape[i];
    dim = shape.back();
    samples = noise_.dim() == dims + 1 ? noise_.size(dims - 1) : 0;
    std::vector<int64_t> sampled = shape;
    sampled.insert(sampled.end() - 1, samples);
    if (states < 1 || dim < 1 || samples < 1) {
      fail(op, ": log_std and noise must have shape [..., A] and [..., n, A] and not be empty, got " +
                   shape_of(log_std_) + " and " + shape_of(noise_));
    }
    expect(op, "noise", noise_, log_std_, sampled, std::nullopt, "log_std");
    log_std = torch::stable::contiguous(log_std_);
    noise = torch::stable::contiguous(noise_);
    is_double = log_std.scalar_type() == ScalarType::Double;
  }

  template <typename T>
  TanhGaussian<T> describe() const {
    TanhGaussian<T> g;
    g.states = states, g.samples = samples, g.dim = dim;
    g.log_std = log_std.const_data_ptr<T>();
    g.noise = noise.const_data_ptr<T>();
    return g;
  }

  std::vector<int64_t> log_prob_shape() const {
    std::vector<int64_t> s(shape.begin(), shape.end() - 1);
    s.push_back(samples);
    return s;
  }
};

std::tuple<Tensor, Tensor> tanh_gaussian_cpu(const Tensor& mean, const Tensor& log_std, const Tensor& noise) {
  const char* op = "qcse::tanh_gaussian";
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < mean.dim(); ++i) shape.push_back(mean.size(i));
  expect(op, "log_std", log_std, mean, shape, std::nullopt, "mean");
  const TanhGaussianArguments a(op, log_std, noise);
  const Tensor dense_mean = torch::stable::contiguous(mean);
  Tensor actions = torch::stable::empty_like(a.noise), log_prob = torch::stable::new_empty(a.noise, a.log_prob_shape());
  const auto run = [&]<typename T>(T) {
    TanhGaussian<T> g = a.describe<T>();
    g.mean = dense_mean.const_data_ptr<T>();
    cpu::tanh_gaussian(g, actions.mutable_data_ptr<T>(), log_prob.mutable_data_ptr<T>(), cpu_threads());
  };
  a.is_double ? run(double()) : run(float());
  return {actions, log_prob};
}

std::tuple<Tensor, Tensor> tanh_gaussian_backward_cpu(const Tensor& action_grad, const Tensor& log_prob_grad,
                                                      const Tensor& actions, const Tensor& log_std,
                                                      const Tensor& noise) {
  const char* op = "qcse::tanh_gaussian_backward";
  const TanhGaussianArguments a(op, log_std, noise);
  expect(op, "log_prob_grad", log_prob_grad, log_std, a.log_prob_shape(), std::nullopt, "log_std");
  std::vector<int64_t> sampled = a.log_prob_shape();
  sampled.push_back(a.dim);
  expect(op, "actions", actions, log_std, sampled, std::nullopt, "log_std");
  expect(op, "action_grad", action_grad, log_std, sampled, std::nullopt, "log_std");
  const Tensor dense_actions = torch::stable::contiguous(actions), dense_grad = torch::stable::contiguous(action_grad);
  const Tensor dense_log_prob_grad = torch::stable::contiguous(log_prob_grad);
  Tensor mean_grad = torch::stable::empty_like(a.log_std), log_std_grad = torch::stable::empty_like(a.log_std);
  const auto run = [&]<typename T>(T) {
    TanhGaussianGradient<T> g;
    g.forward = a.describe<T>();
    g.actions = dense_actions.const_data_ptr<T>();
    g.action_grad = dense_grad.const_data_ptr<T>();
    g.log_prob_grad = dense_log_prob_grad.const_data_ptr<T>();
    g.mean_grad = mean_grad.mutable_data_ptr<T>(), g.log_std_grad = log_std_grad.mutable_data_ptr<T>();
    cpu::tanh_gaussian_backward(g, cpu_threads());
  };
  a.is_double ? run(double()) : run(float());
  return {mean_grad, log_std_grad};
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_FRAGMENT(qcse, m) {
  m.def("tanh_gaussian(Tensor mean, Tensor log_std, Tensor noise) -> (Tensor actions, Tensor log_prob)");
  m.def(
      "tanh_gaussian_backward(Tensor action_grad, Tensor log_prob_grad, Tensor actions, Tensor log_std, Tensor noise) "
      "-> (Tensor mean_grad, Tensor log_std_grad)");
}

STABLE_TORCH_LIBRARY_IMPL(qcse, CPU, m) {
  m.impl("tanh_gaussian", TORCH_BOX(&qcse::tanh_gaussian_cpu));
  m.impl("tanh_gaussian_backward", TORCH_BOX(&qcse::tanh_gaussian_backward_cpu));
}

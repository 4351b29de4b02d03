// Sampling from a tanh-squashed Gaussian policy as operators: schemas, checks, CPU registration (LibTorch stable ABI).
#include <tuple>
#include <vector>

#include "nets/cpu/launch.h"
#include "nets/op_tanh_gaussian.h"

namespace qcse {
namespace {

std::tuple<Tensor, Tensor> tanh_gaussian_cpu(const Tensor& mean, const Tensor& log_std, const Tensor& noise) {
  const char* op = "qcse::tanh_gaussian";
  expect(op, "log_std", log_std, mean, sizes_of(mean), std::nullopt, "mean");
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
  a.expect_gradient(op, action_grad, log_prob_grad, actions);
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

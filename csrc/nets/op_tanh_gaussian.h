// The arguments of the operators on samples of a tanh-squashed Gaussian, checked; for all devices.
#pragma once
#include <string>
#include <vector>

#include "base/op.h"
#include "nets/tanh_gaussian.h"

namespace qcse {

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
    shape = sizes_of(log_std_);
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

  // The further arguments of the gradient.
  void expect_gradient(const char* op, const Tensor& action_grad, const Tensor& log_prob_grad,
                       const Tensor& actions) const {
    expect(op, "log_prob_grad", log_prob_grad, log_std, log_prob_shape(), std::nullopt, "log_std");
    expect(op, "actions", actions, log_std, sizes_of(noise), std::nullopt, "log_std");
    expect(op, "action_grad", action_grad, log_std, sizes_of(noise), std::nullopt, "log_std");
  }
};

}  // namespace qcse

// The CUDA registration of the operators of op_pointwise.cpp: checks, results from torch's allocator, torch's current
// stream.
#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <string>
#include <tuple>

#include "base/op.h"
#include "base/op_cuda.h"
#include "nets/cuda/pointwise.h"

namespace qcse {
namespace {

// Selects the device of a tensor for the length of a call.
struct OnDevice {
  torch::stable::accelerator::DeviceGuard guard;
  int32_t index;
  explicit OnDevice(const Tensor& t) : guard(t.get_device_index()), index(t.get_device_index()) {}

  template <typename Problem>
  void run(const char* op, const Problem& problem, const Tensor& example) const {
    cuda::Device device;
    const std::string shape = shape_of(example) + (example.scalar_type() == ScalarType::Double ? ", float64" : "");
    expect_launched(op, cuda::select_device(index, &device), shape);
    expect_launched(op, cuda::launch(problem, current_cuda_stream(index)), shape);
  }
};

template <typename Run>
void by_dtype(const Tensor& t, const Run& run) {
  t.scalar_type() == ScalarType::Double ? run(double()) : run(float());
}

// Throws unless t holds [networks, rows, width], or with `dims` 4 [networks, states, actions, width], dense and of a
// size that the kernels take.
void expect_rows(const char* op, const char* name, const Tensor& t, int64_t dims) {
  expect_float(op, name, t);
  const char* const shape = dims == 3 ? "[networks, rows, width]" : "[networks, states, actions, width]";
  if (t.dim() != dims || t.numel() == 0)
    fail(op, ": ", name, " must have shape ", shape, " and not be empty, got ", shape_of(t));
  if (!t.is_contiguous()) fail(op, ": ", name, " must be contiguous");
  const int64_t width = t.size(dims - 1), rows = t.numel() / t.size(0) / width;
  if (rows > cuda::kMostRows || width > cuda::kWidest) {
    fail(op, ": ", name, " must have at most ", cuda::kMostRows, " rows of ", cuda::kWidest, ", got ", shape_of(t));
  }
}

// t, dense, and with the shape and device and dtype that it must have.
Tensor dense(const char* op, const char* name, const Tensor& t, const std::vector<int64_t>& shape,
             const char* like_name, const Tensor& like) {
  expect(op, name, t, like, shape, std::nullopt, like_name);
  return torch::stable::contiguous(t);
}

void bias_relu(Tensor x, const Tensor& bias) {
  const char* op = "qcse::bias_relu_";
  expect_rows(op, "x", x, 3);
  const Tensor b = dense(op, "bias", bias, {x.size(0), 1, x.size(2)}, "x", x);
  const OnDevice device(x);
  by_dtype(x, [&]<typename T>(T) {
    AddRelu<T> p;
    p.nets = x.size(0), p.rows = x.size(1), p.width = x.size(2);
    p.x = x.mutable_data_ptr<T>(), p.bias = b.const_data_ptr<T>();
    device.run(op, p, x);
  });
}

void state_relu(Tensor x, const Tensor& state, const Tensor& bias) {
  const char* op = "qcse::state_relu_";
  expect_rows(op, "x", x, 4);
  const Tensor s = dense(op, "state", state, {x.size(0), x.size(1), x.size(3)}, "x", x);
  const Tensor b = dense(op, "bias", bias, {x.size(0), 1, x.size(3)}, "x", x);
  const OnDevice device(x);
  by_dtype(x, [&]<typename T>(T) {
    AddRelu<T> p;
    p.nets = x.size(0), p.rows = x.size(1) * x.size(2), p.width = x.size(3), p.actions = x.size(2);
    p.x = x.mutable_data_ptr<T>(), p.state = s.const_data_ptr<T>(), p.bias = b.const_data_ptr<T>();
    device.run(op, p, x);
  });
}

Tensor relu_dot(Tensor x, std::optional<Tensor> bias, const Tensor& weight, const Tensor& last_bias, bool keep) {
  const char* op = "qcse::relu_dot_";
  expect_rows(op, "x", x, 3);
  const int64_t nets = x.size(0), rows = x.size(1), width = x.size(2);
  std::optional<Tensor> b;
  if (bias) b = dense(op, "bias", *bias, {nets, 1, width}, "x", x);
  const Tensor w = dense(op, "weight", weight, {nets, width, 1}, "x", x);
  const Tensor last = dense(op, "last_bias", last_bias, {nets, 1, 1}, "x", x);
  const OnDevice device(x);
  Tensor y = torch::stable::new_empty(x, {nets, rows, 1});
  by_dtype(x, [&]<typename T>(T) {
    ReluDot<T> p;
    p.nets = nets, p.rows = rows, p.width = width, p.keep = keep;
    p.x = x.mutable_data_ptr<T>(), p.y = y.mutable_data_ptr<T>();
    if (b) p.bias = b->const_data_ptr<T>();
    p.weight = w.const_data_ptr<T>(), p.last_bias = last.const_data_ptr<T>();
    device.run(op, p, x);
  });
  return y;
}

Tensor relu_backward(Tensor grad, const Tensor& h) {
  const char* op = "qcse::relu_backward_";
  expect_rows(op, "grad", grad, 3);
  const Tensor of_h = dense(op, "h", h, {grad.size(0), grad.size(1), grad.size(2)}, "grad", grad);
  const OnDevice device(grad);
  Tensor bias_grad = torch::stable::new_empty(grad, {grad.size(0), 1, grad.size(2)});
  by_dtype(grad, [&]<typename T>(T) {
    ReluGradient<T> p;
    p.nets = grad.size(0), p.rows = grad.size(1), p.width = grad.size(2);
    p.h = of_h.const_data_ptr<T>(), p.grad = grad.mutable_data_ptr<T>();
    p.bias_grad = bias_grad.mutable_data_ptr<T>();
    device.run(op, p, grad);
  });
  return bias_grad;
}

std::tuple<Tensor, Tensor> state_relu_backward(Tensor grad, const Tensor& h) {
  const char* op = "qcse::state_relu_backward_";
  expect_rows(op, "grad", grad, 4);
  const int64_t nets = grad.size(0), states = grad.size(1), actions = grad.size(2), width = grad.size(3);
  const Tensor of_h = dense(op, "h", h, {nets, states, actions, width}, "grad", grad);
  const OnDevice device(grad);
  Tensor state_grad = torch::stable::new_empty(grad, {nets, states, width});
  Tensor bias_grad = torch::stable::new_empty(grad, {nets, 1, width});
  by_dtype(grad, [&]<typename T>(T) {
    ReluGradient<T> p;
    p.nets = nets, p.rows = states * actions, p.width = width, p.actions = actions;
    p.h = of_h.const_data_ptr<T>(), p.grad = grad.mutable_data_ptr<T>();
    p.state_grad = state_grad.mutable_data_ptr<T>(), p.bias_grad = bias_grad.mutable_data_ptr<T>();
    device.run(op, p, grad);
  });
  return {state_grad, bias_grad};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> outer_relu_backward(const Tensor& y_grad, const Tensor& h,
                                                               const Tensor& weight, std::optional<Tensor> factor,
                                                               bool sums) {
  const char* op = "qcse::outer_relu_backward";
  expect_rows(op, "h", h, 3);
  const int64_t nets = h.size(0), rows = h.size(1), width = h.size(2);
  const Tensor of_y = dense(op, "y_grad", y_grad, {nets, rows, 1}, "h", h);
  const Tensor w = dense(op, "weight", weight, {nets, width, 1}, "h", h);
  std::optional<Tensor> f;
  if (factor) {
    if (factor->dim() != 1 || factor->numel() < 1 || nets % factor->numel() != 0) {
      fail(op, ": factor must have shape [F], F a divisor of ", nets, ", got ", shape_of(*factor));
    }
    expect(op, "factor", *factor, h, {factor->numel()}, std::nullopt, "h");
    f = *factor;  // not made dense: the gradient of a sum over the seeds is one number, expanded
  }
  const OnDevice device(h);
  Tensor grad = torch::stable::new_empty(h, {nets, rows, width});
  Tensor bias_grad = torch::stable::new_empty(h, {sums ? nets : 0, 1, width});
  Tensor weight_grad = torch::stable::new_empty(h, {sums ? nets : 0, width, 1});
  Tensor last_bias_grad = torch::stable::new_empty(h, {sums ? nets : 0, 1, 1});
  by_dtype(h, [&]<typename T>(T) {
    OuterReluGradient<T> p;
    p.nets = nets, p.rows = rows, p.width = width;
    p.h = h.const_data_ptr<T>(), p.y_grad = of_y.const_data_ptr<T>(), p.weight = w.const_data_ptr<T>();
    if (f) p.factor = f->const_data_ptr<T>(), p.members = nets / f->numel(), p.factor_step = f->stride(0);
    p.grad = grad.mutable_data_ptr<T>();
    if (sums) {
      p.bias_grad = bias_grad.mutable_data_ptr<T>(), p.weight_grad = weight_grad.mutable_data_ptr<T>();
      p.last_bias_grad = last_bias_grad.mutable_data_ptr<T>();
    }
    device.run(op, p, h);
  });
  return {grad, bias_grad, weight_grad, last_bias_grad};
}

std::tuple<Tensor, Tensor, Tensor> conservative_head(const Tensor& q, const Tensor& target, const Tensor& offsets,
                                                     const Tensor& bound, const Tensor& weight, double temperature,
                                                     double floor, bool include_data) {
  const char* op = "qcse::conservative_head";
  expect_float(op, "q", q);
  const int64_t sampled = q.dim() == 4 ? (q.size(3) - 1) / 3 : 0;
  if (sampled < 1 || q.size(3) != 1 + 3 * sampled || q.numel() == 0) {
    fail(op, ": q must have shape [S, E, B, 1 + 3n] with n at least 1 and not be empty, got ", shape_of(q));
  }
  if (q.size(2) > cuda::kMostRows || sampled > cuda::kWidest) fail(op, ": q is too large, got ", shape_of(q));
  if (!(temperature > 0)) fail(op, ": temperature must be above 0, got ", temperature);
  const int64_t seeds = q.size(0), members = q.size(1), batch = q.size(2);
  const Tensor values = torch::stable::contiguous(q);
  const Tensor t = dense(op, "target", target, {seeds, batch}, "q", q);
  const Tensor o = dense(op, "offsets", offsets, {seeds, batch, 3 * sampled}, "q", q);
  const Tensor b = dense(op, "bound", bound, {seeds, batch}, "q", q);
  const Tensor w = dense(op, "weight", weight, {seeds}, "q", q);
  const OnDevice device(q);
  Tensor loss = torch::stable::new_empty(q, {seeds}), statistics = torch::stable::new_empty(q, {6, seeds, members});
  Tensor q_grad = torch::stable::new_empty(q, {seeds, members, batch, 1 + 3 * sampled});
  // Torch's allocator ties it to the current stream, so it may be given back as soon as this returns.
  Tensor partial = torch::stable::new_empty(q, {seeds, members, kConservativeSums, conservative_parts(batch)});
  by_dtype(q, [&]<typename T>(T) {
    ConservativeHead<T> p;
    p.seeds = seeds, p.members = members, p.batch = batch, p.sampled = sampled;
    p.q = values.const_data_ptr<T>(), p.target = t.const_data_ptr<T>(), p.offsets = o.const_data_ptr<T>();
    p.bound = b.const_data_ptr<T>(), p.weight = w.const_data_ptr<T>();
    p.temperature = static_cast<T>(temperature), p.floor = static_cast<T>(floor), p.include_data = include_data;
    p.loss = loss.mutable_data_ptr<T>(), p.statistics = statistics.mutable_data_ptr<T>();
    p.q_grad = q_grad.mutable_data_ptr<T>(), p.partial = partial.mutable_data_ptr<T>();
    device.run(op, p, q);
  });
  return {loss, statistics, q_grad};
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_IMPL(qcse, CUDA, m) {
  m.impl("bias_relu_", TORCH_BOX(&qcse::bias_relu));
  m.impl("state_relu_", TORCH_BOX(&qcse::state_relu));
  m.impl("relu_dot_", TORCH_BOX(&qcse::relu_dot));
  m.impl("relu_backward_", TORCH_BOX(&qcse::relu_backward));
  m.impl("state_relu_backward_", TORCH_BOX(&qcse::state_relu_backward));
  m.impl("outer_relu_backward", TORCH_BOX(&qcse::outer_relu_backward));
  m.impl("conservative_head", TORCH_BOX(&qcse::conservative_head));
}

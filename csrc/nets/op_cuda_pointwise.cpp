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

void expect_size(const char* op, const char* name, const Tensor& t, int64_t rows, int64_t width) {
  if (rows <= cuda::kMostRows && width <= cuda::kWidest) return;
  fail(op, ": ", name, " must have at most ", cuda::kMostRows, " rows of ", cuda::kWidest, ", got ", shape_of(t));
}

// Throws unless t holds [networks, rows, width], dense and of a size that the kernels take.
void expect_rows(const char* op, const char* name, const Tensor& t) {
  expect_float(op, name, t);
  if (t.dim() != 3 || t.numel() == 0)
    fail(op, ": ", name, " must have shape [networks, rows, width] and not be empty, got ", shape_of(t));
  if (!t.is_contiguous()) fail(op, ": ", name, " must be contiguous");
  expect_size(op, name, t, t.size(1), t.size(2));
}

// t, dense, and with the shape and device and dtype that it must have.
Tensor dense(const char* op, const char* name, const Tensor& t, const std::vector<int64_t>& shape,
             const char* like_name, const Tensor& like) {
  expect(op, name, t, like, shape, std::nullopt, like_name);
  return torch::stable::contiguous(t);
}

void bias_relu(Tensor x, const Tensor& bias) {
  const char* op = "qcse::bias_relu_";
  expect_rows(op, "x", x);
  const Tensor b = dense(op, "bias", bias, {x.size(0), 1, x.size(2)}, "x", x);
  const OnDevice device(x);
  by_dtype(x, [&]<typename T>(T) {
    BiasRelu<T> p;
    p.nets = x.size(0), p.rows = x.size(1), p.width = x.size(2);
    p.x = x.mutable_data_ptr<T>(), p.bias = b.const_data_ptr<T>();
    device.run(op, p, x);
  });
}

// Actions [F, B, n, inputs] of M networks, of which M / F that follow each other have the same.
struct Actions {
  Tensor dense;
  int64_t states, each, inputs, members;

  Actions(const char* op, const Tensor& t, int64_t nets, const char* like_name, const Tensor& like) {
    if (t.dim() != 4 || t.numel() == 0 || nets % t.size(0) != 0) {
      fail(op, ": actions must have shape [F, states, actions, inputs], F a divisor of ", nets,
           ", and not be empty, got ", shape_of(t));
    }
    expect(op, "actions", t, like, sizes_of(t), std::nullopt, like_name);
    expect_size(op, "actions", t, t.size(1) * t.size(2), t.size(3));
    dense = torch::stable::contiguous(t);
    states = t.size(1), each = t.size(2), inputs = t.size(3), members = nets / t.size(0);
  }
  int64_t rows() const { return states * each; }
  template <typename T, typename Problem>
  void describe(Problem* p) const {
    p->rows = rows(), p->actions = each, p->inputs = inputs, p->members = members;
    p->action = dense.const_data_ptr<T>();
  }
};

// Whether each network's part of t [networks, inputs, width] is dense; the parts may lie apart, as those of a view of
// all inputs' do.
bool has_dense_parts(const Tensor& t) {
  return (t.size(2) == 1 || t.stride(2) == 1) && (t.size(1) == 1 || t.stride(1) == t.size(2)) &&
         (t.size(0) == 1 || t.stride(0) >= t.size(1) * t.size(2));
}

Tensor action_relu(const Tensor& actions, const Tensor& weight, const Tensor& state, const Tensor& bias) {
  const char* op = "qcse::action_relu";
  expect_rows(op, "state", state);
  const int64_t nets = state.size(0), width = state.size(2);
  const Actions a(op, actions, nets, "state", state);
  expect(op, "state", state, state, {nets, a.states, width}, std::nullopt, "state");
  expect(op, "weight", weight, state, {nets, a.inputs, width}, std::nullopt, "state");
  const Tensor w = has_dense_parts(weight) ? weight : torch::stable::contiguous(weight);
  const Tensor b = dense(op, "bias", bias, {nets, 1, width}, "state", state);
  const OnDevice device(state);
  Tensor h = torch::stable::new_empty(state, {nets, a.rows(), width});
  by_dtype(state, [&]<typename T>(T) {
    ActionRelu<T> p;
    a.describe<T>(&p);
    p.nets = nets, p.width = width, p.weight_step = w.stride(0);
    p.weight = w.const_data_ptr<T>(), p.state = state.const_data_ptr<T>(), p.bias = b.const_data_ptr<T>();
    p.h = h.mutable_data_ptr<T>();
    device.run(op, p, h);
  });
  return h;
}

Tensor relu_dot(const Tensor& x, std::optional<Tensor> bias, const Tensor& weight, const Tensor& last_bias) {
  const char* op = "qcse::relu_dot";
  expect_rows(op, "x", x);
  const int64_t nets = x.size(0), rows = x.size(1), width = x.size(2);
  std::optional<Tensor> b;
  if (bias) b = dense(op, "bias", *bias, {nets, 1, width}, "x", x);
  const Tensor w = dense(op, "weight", weight, {nets, width, 1}, "x", x);
  const Tensor last = dense(op, "last_bias", last_bias, {nets, 1, 1}, "x", x);
  const OnDevice device(x);
  Tensor y = torch::stable::new_empty(x, {nets, rows, 1});
  by_dtype(x, [&]<typename T>(T) {
    ReluDot<T> p;
    p.nets = nets, p.rows = rows, p.width = width;
    p.x = x.const_data_ptr<T>(), p.y = y.mutable_data_ptr<T>();
    if (b) p.bias = b->const_data_ptr<T>();
    p.weight = w.const_data_ptr<T>(), p.last_bias = last.const_data_ptr<T>();
    device.run(op, p, x);
  });
  return y;
}

Tensor relu_backward(Tensor grad, const Tensor& h) {
  const char* op = "qcse::relu_backward_";
  expect_rows(op, "grad", grad);
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

std::tuple<Tensor, Tensor> action_relu_backward(Tensor weight_grad, const Tensor& grad, const Tensor& h,
                                                const Tensor& actions) {
  const char* op = "qcse::action_relu_backward_";
  expect_rows(op, "grad", grad);
  const int64_t nets = grad.size(0), width = grad.size(2);
  const Actions a(op, actions, nets, "grad", grad);
  expect(op, "grad", grad, grad, {nets, a.rows(), width}, std::nullopt, "grad");
  const Tensor of_h = dense(op, "h", h, {nets, a.rows(), width}, "grad", grad);
  expect(op, "weight_grad", weight_grad, grad, {nets, a.inputs, width}, std::nullopt, "grad");
  if (!has_dense_parts(weight_grad)) fail(op, ": weight_grad must be contiguous but for its first dimension");
  const OnDevice device(grad);
  Tensor state_grad = torch::stable::new_empty(grad, {nets, a.states, width});
  Tensor bias_grad = torch::stable::new_empty(grad, {nets, 1, width});
  by_dtype(grad, [&]<typename T>(T) {
    ActionReluGradient<T> p;
    a.describe<T>(&p);
    p.nets = nets, p.width = width, p.weight_step = weight_grad.stride(0);
    p.h = of_h.const_data_ptr<T>(), p.grad = grad.const_data_ptr<T>();
    p.weight_grad = weight_grad.mutable_data_ptr<T>();
    p.state_grad = state_grad.mutable_data_ptr<T>(), p.bias_grad = bias_grad.mutable_data_ptr<T>();
    device.run(op, p, grad);
  });
  return {state_grad, bias_grad};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> outer_relu_backward(const Tensor& y_grad, const Tensor& x,
                                                               std::optional<Tensor> bias, const Tensor& weight,
                                                               std::optional<Tensor> factor, bool sums) {
  const char* op = "qcse::outer_relu_backward";
  expect_rows(op, "x", x);
  const int64_t nets = x.size(0), rows = x.size(1), width = x.size(2);
  const Tensor of_y = dense(op, "y_grad", y_grad, {nets, rows, 1}, "x", x);
  const Tensor w = dense(op, "weight", weight, {nets, width, 1}, "x", x);
  std::optional<Tensor> b, f;
  if (bias) b = dense(op, "bias", *bias, {nets, 1, width}, "x", x);
  if (factor) {
    if (factor->dim() != 1 || factor->numel() < 1 || nets % factor->numel() != 0) {
      fail(op, ": factor must have shape [F], F a divisor of ", nets, ", got ", shape_of(*factor));
    }
    expect(op, "factor", *factor, x, {factor->numel()}, std::nullopt, "x");
    f = *factor;  // not made dense: the gradient of a sum over the seeds is one number, expanded
  }
  const OnDevice device(x);
  Tensor grad = torch::stable::new_empty(x, {nets, rows, width});
  Tensor bias_grad = torch::stable::new_empty(x, {sums ? nets : 0, 1, width});
  Tensor weight_grad = torch::stable::new_empty(x, {sums ? nets : 0, width, 1});
  Tensor last_bias_grad = torch::stable::new_empty(x, {sums ? nets : 0, 1, 1});
  by_dtype(x, [&]<typename T>(T) {
    OuterReluGradient<T> p;
    p.nets = nets, p.rows = rows, p.width = width;
    p.x = x.const_data_ptr<T>(), p.y_grad = of_y.const_data_ptr<T>(), p.weight = w.const_data_ptr<T>();
    if (b) p.bias = b->const_data_ptr<T>();
    if (f) p.factor = f->const_data_ptr<T>(), p.members = nets / f->numel(), p.factor_step = f->stride(0);
    p.grad = grad.mutable_data_ptr<T>();
    if (sums) {
      p.bias_grad = bias_grad.mutable_data_ptr<T>(), p.weight_grad = weight_grad.mutable_data_ptr<T>();
      p.last_bias_grad = last_bias_grad.mutable_data_ptr<T>();
    }
    device.run(op, p, x);
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
  m.impl("action_relu", TORCH_BOX(&qcse::action_relu));
  m.impl("relu_dot", TORCH_BOX(&qcse::relu_dot));
  m.impl("relu_backward_", TORCH_BOX(&qcse::relu_backward));
  m.impl("action_relu_backward_", TORCH_BOX(&qcse::action_relu_backward));
  m.impl("outer_relu_backward", TORCH_BOX(&qcse::outer_relu_backward));
  m.impl("conservative_head", TORCH_BOX(&qcse::conservative_head));
}

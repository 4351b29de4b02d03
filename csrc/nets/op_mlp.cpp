// Fully connected ReLU networks as operators: schemas, checks, CPU registration (LibTorch stable ABI).
#include <string>
#include <tuple>
#include <vector>

#include "base/integers.h"
#include "nets/op.h"

namespace qcse {
namespace {

// The tensors that an Mlp<T> points into.
struct MlpArguments {
  LayerArguments layers;
  Tensor x;
  int64_t rows, inputs;
  bool is_double, bf16;

  MlpArguments(const char* op, const Tensor& x_, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
               bool bf16_)
      : layers(op, weights, biases, "x", x_, checked_inputs(op, x_), bf16_),
        x(torch::stable::contiguous(x_)),
        rows(x.size(1)),
        inputs(x.size(2)),
        is_double(x.scalar_type() == ScalarType::Double),
        bf16(bf16_) {
    expect(op, "x", x, x, {layers.nets, rows, inputs}, std::nullopt, "x");
  }

  static int64_t checked_inputs(const char* op, const Tensor& x) {
    expect_float(op, "x", x);
    if (x.dim() != 3 || x.size(1) < 1 || x.size(2) < 1) {
      fail(op, ": x must have shape [networks, rows, inputs] and not be empty, got " + shape_of(x));
    }
    return x.size(2);
  }
};

template <typename T>
Mlp<T> describe(const MlpArguments& a, const std::vector<const T*>& weights, const std::vector<const T*>& biases) {
  Mlp<T> m;
  m.nets = a.layers.nets, m.rows = a.rows, m.inputs = a.inputs;
  m.layers = static_cast<int64_t>(a.layers.widths.size());
  m.widths = a.layers.widths.data();
  m.weights = weights.data(), m.biases = biases.data();
  m.x = a.x.const_data_ptr<T>();
  m.bf16 = a.bf16;
  m.chunks = ceil_div(a.rows, kMlpChunk);
  m.kept = 1;
  for (size_t l = 0; l + 1 < a.layers.widths.size(); ++l) m.kept += round_up(a.layers.widths[l], 32);
  return m;
}

std::tuple<Tensor, Tensor> mlp_forward_cpu(const Tensor& x, const std::vector<Tensor>& weights,
                                           const std::vector<Tensor>& biases, bool bf16, bool keep) {
  const MlpArguments a("qcse::mlp_forward", x, weights, biases, bf16);
  Tensor y = torch::stable::new_empty(a.x, {a.layers.nets, a.rows, a.layers.widths.back()});
  Tensor hidden;
  const auto run = [&]<typename T>(T) {
    const auto w = read<T>(a.layers.weights), b = read<T>(a.layers.biases);
    const Mlp<T> m = describe<T>(a, w, b);
    hidden = torch::stable::new_empty(a.x, {keep ? m.nets : 0, m.chunks, kMlpChunk, m.kept});
    cpu::mlp_forward(m, keep ? hidden.mutable_data_ptr<T>() : nullptr, y.mutable_data_ptr<T>(), cpu_threads());
  };
  a.is_double ? run(double()) : run(float());
  return {y, hidden};
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> mlp_backward_cpu(
    const Tensor& y_grad, const Tensor& x, const Tensor& hidden, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, bool bf16, bool input_wanted, bool parameters_wanted) {
  const char* op = "qcse::mlp_backward";
  const MlpArguments a(op, x, weights, biases, bf16);
  expect(op, "y_grad", y_grad, x, {a.layers.nets, a.rows, a.layers.widths.back()}, std::nullopt, "x");
  const Tensor dense_grad = torch::stable::contiguous(y_grad), dense_hidden = torch::stable::contiguous(hidden);
  Tensor x_grad = input_wanted ? torch::stable::empty_like(a.x) : torch::stable::new_empty(a.x, {0});
  std::vector<Tensor> weight_grads, bias_grads;
  if (parameters_wanted) {
    weight_grads = empty_like(a.layers.weights);
    for (const int64_t width : a.layers.widths) {
      bias_grads.push_back(torch::stable::new_empty(a.x, {a.layers.nets, 1, width}));
    }
  }
  const auto run = [&]<typename T>(T) {
    const auto w = read<T>(a.layers.weights);
    const auto weight_out = written<T>(weight_grads), bias_out = written<T>(bias_grads);
    MlpGradient<T> gradient;
    gradient.mlp = describe<T>(a, w, {});
    const Mlp<T>& m = gradient.mlp;
    expect(op, "hidden", hidden, x, {m.nets, m.chunks, kMlpChunk, m.kept}, std::nullopt, "x");
    gradient.hidden = dense_hidden.const_data_ptr<T>();
    gradient.y_grad = dense_grad.const_data_ptr<T>();
    if (input_wanted) gradient.x_grad = x_grad.mutable_data_ptr<T>();
    if (parameters_wanted) gradient.weight_grads = weight_out.data(), gradient.bias_grads = bias_out.data();
    cpu::mlp_backward(gradient, cpu_threads());
  };
  a.is_double ? run(double()) : run(float());
  return {x_grad, weight_grads, bias_grads};
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_FRAGMENT(qcse, m) {
  m.def("mlp_forward(Tensor x, Tensor[] weights, Tensor[] biases, bool bf16, bool keep) -> (Tensor y, Tensor hidden)");
  m.def(
      "mlp_backward(Tensor y_grad, Tensor x, Tensor hidden, Tensor[] weights, Tensor[] biases, bool bf16, "
      "bool input_wanted, bool parameters_wanted) "
      "-> (Tensor x_grad, Tensor[] weight_grads, Tensor[] bias_grads)");
}

STABLE_TORCH_LIBRARY_IMPL(qcse, CPU, m) {
  m.impl("mlp_forward", TORCH_BOX(&qcse::mlp_forward_cpu));
  m.impl("mlp_backward", TORCH_BOX(&qcse::mlp_backward_cpu));
}

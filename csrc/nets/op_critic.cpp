// The fused critic step as operators: schemas, checks, CPU registration (LibTorch stable ABI).
#include <string>
#include <tuple>
#include <vector>

#include "nets/op.h"

namespace qcse {
namespace {

// The tensors that a Critics<T> points into.
struct CriticArguments {
  LayerArguments layers;
  Tensor states, actions;
  int64_t seeds, members, batch, action_count, state_dim, action_dim;
  bool is_double, bf16;

  CriticArguments(const char* op, const Tensor& states_, const Tensor& actions_, const std::vector<Tensor>& weights,
                  const std::vector<Tensor>& biases, bool bf16_)
      : layers(op, weights, biases, "states", states_, checked_inputs(op, states_, actions_), bf16_),
        states(torch::stable::contiguous(states_)),
        actions(torch::stable::contiguous(actions_)),
        seeds(states.size(0)),
        members(layers.nets / seeds),
        batch(states.size(1)),
        action_count(actions.size(2)),
        state_dim(states.size(2)),
        action_dim(actions.size(3)),
        is_double(states.scalar_type() == ScalarType::Double),
        bf16(bf16_) {
    if (layers.nets % seeds != 0) {
      fail(op, ": weights[0] must have shape [S * E, D + A, width] with S = " + std::to_string(seeds) + ", got " +
                   shape_of(layers.weights[0]));
    }
    if (layers.widths.back() != 1) {
      fail(op, ": weights must end with one output, got " + shape_of(layers.weights.back()));
    }
    for (const int64_t width : layers.widths) {
      // A chunk holds whole states, and the kernel counts its bytes in 32 bits.
      const int64_t limit = (int64_t(1) << 29) / ((width + 31) / 32 * 32);
      if (action_count > limit) {
        fail(op, ": actions must be at most " + std::to_string(limit) + " per state at a hidden width of " +
                     std::to_string(width) + ", got " + std::to_string(action_count));
      }
    }
  }

  // D + A.
  static int64_t checked_inputs(const char* op, const Tensor& states, const Tensor& actions) {
    expect_float(op, "states", states);
    if (states.dim() != 3) fail(op, ": states must have shape [S, B, D], got " + shape_of(states));
    if (actions.dim() != 4) fail(op, ": actions must have shape [S, B, n, A], got " + shape_of(actions));
    expect(op, "actions", actions, states, {states.size(0), states.size(1), actions.size(2), actions.size(3)});
    for (const Tensor& t : {states, actions}) {
      for (int64_t i = 0; i < t.dim(); ++i) {
        if (t.size(i) < 1) {
          fail(op, ": states and actions must not be empty, got " + shape_of(states) + " and " + shape_of(actions));
        }
      }
    }
    return states.size(2) + actions.size(3);
  }
};

template <typename T>
Critics<T> describe(const CriticArguments& a, const std::vector<const T*>& weights,
                    const std::vector<const T*>& biases) {
  Critics<T> c;
  c.seeds = a.seeds, c.members = a.members, c.batch = a.batch, c.actions = a.action_count;
  c.state_dim = a.state_dim, c.action_dim = a.action_dim;
  c.layers = static_cast<int64_t>(a.layers.widths.size());
  c.widths = a.layers.widths.data();
  c.weights = weights.data(), c.biases = biases.data();
  c.bf16 = a.bf16;
  c.states = a.states.const_data_ptr<T>(), c.action_rows = a.actions.const_data_ptr<T>();
  return c;
}

Tensor critic_values_cpu(const Tensor& states, const Tensor& actions, const std::vector<Tensor>& weights,
                         const std::vector<Tensor>& biases, bool bf16) {
  const CriticArguments a("qcse::critic_values", states, actions, weights, biases, bf16);
  Tensor values = torch::stable::new_empty(a.states, {a.seeds, a.members, a.batch, a.action_count});
  const auto run = [&]<typename T>(T) {
    const auto w = read<T>(a.layers.weights), b = read<T>(a.layers.biases);
    cpu::critic_values(describe<T>(a, w, b), values.mutable_data_ptr<T>(), cpu_threads());
  };
  a.is_double ? run(double()) : run(float());
  return values;
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> conservative_loss_cpu(
    const Tensor& states, const Tensor& actions, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
    const Tensor& target, const Tensor& offsets, const Tensor& bound, const Tensor& weight, double temperature,
    double floor, bool include_data, bool bf16) {
  const char* op = "qcse::conservative_loss";
  const CriticArguments a(op, states, actions, weights, biases, bf16);
  const int64_t sampled = (a.action_count - 1) / 3;
  if (a.action_count != 1 + 3 * sampled || sampled < 1) {
    fail(op, ": actions must have shape [S, B, 1 + 3n, A] with n at least 1, got " + shape_of(actions));
  }
  if (!(temperature > 0)) {
    fail(op, ": temperature must be above 0, got " + std::to_string(temperature));
  }
  expect(op, "target", target, states, {a.seeds, a.batch});
  expect(op, "offsets", offsets, states, {a.seeds, a.batch, 3 * sampled});
  expect(op, "bound", bound, states, {a.seeds, a.batch});
  expect(op, "weight", weight, states, {a.seeds});
  const Tensor dense_target = torch::stable::contiguous(target), dense_offsets = torch::stable::contiguous(offsets);
  const Tensor dense_bound = torch::stable::contiguous(bound), dense_weight = torch::stable::contiguous(weight);

  Tensor statistics = torch::stable::new_empty(a.states, {6, a.seeds, a.members});
  const std::vector<Tensor> weight_grads = empty_like(a.layers.weights), bias_grads = empty_like(a.layers.biases);
  const auto run = [&]<typename T>(T) {
    const auto w = read<T>(a.layers.weights), b = read<T>(a.layers.biases);
    const auto weight_out = written<T>(weight_grads), bias_out = written<T>(bias_grads);
    const int64_t nets = a.seeds * a.members;
    T* out = statistics.mutable_data_ptr<T>();
    ConservativeLoss<T> loss;
    loss.critics = describe<T>(a, w, b);
    loss.sampled = sampled;
    loss.target = dense_target.const_data_ptr<T>();
    loss.offsets = dense_offsets.const_data_ptr<T>();
    loss.bound = dense_bound.const_data_ptr<T>();
    loss.weight = dense_weight.const_data_ptr<T>();
    loss.temperature = static_cast<T>(temperature);
    loss.floor = static_cast<T>(floor);
    loss.include_data = include_data;
    loss.error = out, loss.gap = out + nets, loss.q_data = out + 2 * nets;
    loss.q_uniform = out + 3 * nets, loss.q_policy = out + 4 * nets, loss.bound_share = out + 5 * nets;
    loss.weight_grads = weight_out.data(), loss.bias_grads = bias_out.data();
    cpu::conservative_loss(loss, cpu_threads());
  };
  a.is_double ? run(double()) : run(float());
  return {statistics, weight_grads, bias_grads};
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_FRAGMENT(qcse, m) {
  m.def("critic_values(Tensor states, Tensor actions, Tensor[] weights, Tensor[] biases, bool bf16=False) -> Tensor");
  m.def(
      "conservative_loss(Tensor states, Tensor actions, Tensor[] weights, Tensor[] biases, Tensor target, "
      "Tensor offsets, Tensor bound, Tensor weight, float temperature, float floor, bool include_data, bool "
      "bf16=False) "
      "-> (Tensor statistics, Tensor[] weight_grads, Tensor[] bias_grads)");
}

STABLE_TORCH_LIBRARY_IMPL(qcse, CPU, m) {
  m.impl("critic_values", TORCH_BOX(&qcse::critic_values_cpu));
  m.impl("conservative_loss", TORCH_BOX(&qcse::conservative_loss_cpu));
}

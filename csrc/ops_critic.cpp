// The fused critic step as operators: schemas, checks, CPU registration (LibTorch stable ABI).
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/networks_cpu.h"
#include "ops.h"

namespace qcse {
namespace {

// The tensors and pointer lists that a Critics<T> points into.
struct CriticArguments {
  Tensor states, actions;
  std::vector<Tensor> weights, biases;
  std::vector<int64_t> widths;
  int64_t seeds, members, batch, action_count, state_dim, action_dim;
  bool is_double, bf16;

  CriticArguments(const char* op, const Tensor& states_, const Tensor& actions_, const std::vector<Tensor>& weights_,
                  const std::vector<Tensor>& biases_, bool bf16_)
      : bf16(bf16_) {
    const auto fail = [op](const std::string& what) { throw std::runtime_error(std::string(op) + ": " + what); };
    const ScalarType type = states_.scalar_type();
    if (type != ScalarType::Float && type != ScalarType::Double) fail("states must be float32 or float64");
    if (bf16 && type != ScalarType::Float) fail("states must be float32 where bf16 is true");
    if (bf16 && !cpu::has_bf16()) fail("bf16 is true, but this CPU lacks AVX512-BF16 or AVX512-VBMI2; expected false");
    if (states_.dim() != 3) fail("states must have shape [S, B, D], got " + shape_of(states_));
    if (actions_.dim() != 4) fail("actions must have shape [S, B, n, A], got " + shape_of(actions_));
    const int64_t layers = static_cast<int64_t>(weights_.size());
    if (layers < 2 || layers > cpu::kMaxCriticLayers || biases_.size() != weights_.size()) {
      fail("weights and biases must be as many, 2 to " + std::to_string(cpu::kMaxCriticLayers) + ", got " +
           std::to_string(layers) + " and " + std::to_string(biases_.size()));
    }
    seeds = states_.size(0), batch = states_.size(1), state_dim = states_.size(2);
    action_count = actions_.size(2), action_dim = actions_.size(3);
    expect(op, "actions", actions_, states_, {seeds, batch, action_count, action_dim});
    if (seeds < 1 || batch < 1 || action_count < 1 || state_dim < 1 || action_dim < 1) {
      fail("states and actions must not be empty, got " + shape_of(states_) + " and " + shape_of(actions_));
    }
    const int64_t nets = weights_[0].dim() == 3 ? weights_[0].size(0) : 0;
    if (nets < 1 || nets % seeds != 0) {
      fail("weights[0] must have shape [S * E, D + A, width] with S = " + std::to_string(seeds) + ", got " +
           shape_of(weights_[0]));
    }
    members = nets / seeds;
    states = torch::stable::contiguous(states_);
    actions = torch::stable::contiguous(actions_);
    int64_t inputs = state_dim + action_dim;
    for (int64_t l = 0; l < layers; ++l) {
      const Tensor& w = weights_[static_cast<size_t>(l)];
      const int64_t outputs = l + 1 == layers ? 1 : (w.dim() == 3 ? w.size(2) : 0);
      if (outputs < 1) fail("weights must have shape [S * E, inputs, outputs], got " + shape_of(w));
      const std::string index = "[" + std::to_string(l) + "]";
      expect(op, "weights" + index, w, states_, {nets, inputs, outputs});
      expect(op, "biases" + index, biases_[static_cast<size_t>(l)], states_, {nets, 1, outputs});
      weights.push_back(torch::stable::contiguous(w));
      biases.push_back(torch::stable::contiguous(biases_[static_cast<size_t>(l)]));
      widths.push_back(outputs);
      // A chunk holds whole states, and the kernel counts its bytes in 32 bits.
      const int64_t limit = (int64_t(1) << 29) / ((outputs + 31) / 32 * 32);
      if (action_count > limit) {
        fail("actions must be at most " + std::to_string(limit) + " per state at a hidden width of " +
             std::to_string(outputs) + ", got " + std::to_string(action_count));
      }
      inputs = outputs;
    }
    is_double = type == ScalarType::Double;
  }
};

template <typename T>
std::vector<const T*> read(const std::vector<Tensor>& tensors) {
  std::vector<const T*> pointers;
  for (const Tensor& t : tensors) pointers.push_back(t.const_data_ptr<T>());
  return pointers;
}

template <typename T>
std::vector<T*> written(const std::vector<Tensor>& tensors) {
  std::vector<T*> pointers;
  for (const Tensor& t : tensors) pointers.push_back(t.mutable_data_ptr<T>());
  return pointers;
}

template <typename T>
Critics<T> describe(const CriticArguments& a, const std::vector<const T*>& weights,
                    const std::vector<const T*>& biases) {
  Critics<T> c;
  c.seeds = a.seeds, c.members = a.members, c.batch = a.batch, c.actions = a.action_count;
  c.state_dim = a.state_dim, c.action_dim = a.action_dim;
  c.layers = static_cast<int64_t>(a.widths.size());
  c.widths = a.widths.data();
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
    const auto w = read<T>(a.weights), b = read<T>(a.biases);
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
    throw std::runtime_error(std::string(op) + ": actions must have shape [S, B, 1 + 3n, A] with n at least 1, got " +
                             shape_of(actions));
  }
  if (!(temperature > 0)) {
    throw std::runtime_error(std::string(op) + ": temperature must be above 0, got " + std::to_string(temperature));
  }
  expect(op, "target", target, states, {a.seeds, a.batch});
  expect(op, "offsets", offsets, states, {a.seeds, a.batch, 3 * sampled});
  expect(op, "bound", bound, states, {a.seeds, a.batch});
  expect(op, "weight", weight, states, {a.seeds});
  const Tensor dense_target = torch::stable::contiguous(target), dense_offsets = torch::stable::contiguous(offsets);
  const Tensor dense_bound = torch::stable::contiguous(bound), dense_weight = torch::stable::contiguous(weight);

  Tensor statistics = torch::stable::new_empty(a.states, {6, a.seeds, a.members});
  std::vector<Tensor> weight_grads, bias_grads;
  for (size_t l = 0; l < a.weights.size(); ++l) {
    weight_grads.push_back(torch::stable::empty_like(a.weights[l]));
    bias_grads.push_back(torch::stable::empty_like(a.biases[l]));
  }
  const auto run = [&]<typename T>(T) {
    const auto w = read<T>(a.weights), b = read<T>(a.biases);
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

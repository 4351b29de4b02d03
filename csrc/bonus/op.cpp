// The bonus of a training batch as an operator: schema, checks, CPU registration (LibTorch stable ABI).
#include <string>
#include <tuple>

#include "bonus/cpu/launch.h"
#include "base/op.h"
#include "knn/knn.h"

namespace qcse {
namespace {

std::tuple<Tensor, Tensor, Tensor> batch_entropy_cpu(const Tensor& states, const Tensor& values, const Tensor& index,
                                                     const Tensor& eligible, Tensor mean, Tensor variance,
                                                     Tensor batches, int64_t k, bool count_self, bool learn,
                                                     double horizon, double divisor, double offset) {
  const char* op = "qcse::batch_entropy";
  expect_float(op, "states", states);
  if (states.dim() != 3) fail(op, ": states must have shape [S, N, D], got " + shape_of(states));
  const int64_t seeds = states.size(0), rows = states.size(1), dim = states.size(2);
  if (dim < 1 || dim > kMaxDim) {
    fail(op, ": D must be from 1 to " + std::to_string(kMaxDim) + ", got " + shape_of(states));
  }
  if (k < 1 || k > kMaxNeighbours) {
    fail(op, ": k must be from 1 to " + std::to_string(kMaxNeighbours) + ", got " + std::to_string(k));
  }
  if (!(horizon >= 1)) fail(op, ": horizon must be at least 1, got " + std::to_string(horizon));
  if (!(divisor > 0)) fail(op, ": divisor must be above 0, got " + std::to_string(divisor));
  expect(op, "values", values, states, {seeds, rows});
  expect(op, "index", index, states, {seeds, rows}, ScalarType::Long);
  expect(op, "eligible", eligible, states, {seeds, rows}, ScalarType::Bool);
  expect(op, "mean", mean, states, {seeds, dim + 1});
  expect(op, "variance", variance, states, {seeds, dim + 1});
  expect(op, "batches", batches, states, {seeds});
  for (const Tensor& changed : {mean, variance, batches}) {
    if (!changed.is_contiguous()) fail(op, ": mean, variance and batches are changed in place and must be contiguous");
  }
  const Tensor dense_states = torch::stable::contiguous(states), dense_values = torch::stable::contiguous(values);
  const Tensor dense_index = torch::stable::contiguous(index), dense_eligible = torch::stable::contiguous(eligible);
  Tensor entropy = torch::stable::new_empty(states, {seeds, rows});
  Tensor covered = torch::stable::new_empty(states, {seeds, rows}, ScalarType::Bool);
  Tensor statistics = torch::stable::new_empty(states, {3, seeds});
  const auto run = [&]<typename T>(T) {
    BatchEntropy<T> b;
    b.seeds = seeds, b.rows = rows, b.dim = dim, b.k = k;
    b.count_self = count_self, b.learn = learn;
    b.horizon = horizon, b.divisor = divisor, b.offset = offset;
    b.states = dense_states.const_data_ptr<T>(), b.values = dense_values.const_data_ptr<T>();
    b.index = dense_index.const_data_ptr<int64_t>(), b.eligible = dense_eligible.const_data_ptr<bool>();
    b.mean = mean.mutable_data_ptr<T>(), b.variance = variance.mutable_data_ptr<T>();
    b.batches = batches.mutable_data_ptr<T>();
    b.entropy = entropy.mutable_data_ptr<T>(), b.covered = covered.mutable_data_ptr<bool>();
    b.statistics = statistics.mutable_data_ptr<T>();
    cpu::batch_entropy(b, cpu_threads());
  };
  states.scalar_type() == ScalarType::Double ? run(double()) : run(float());
  return {entropy, covered, statistics};
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_FRAGMENT(qcse, m) {
  m.def(
      "batch_entropy(Tensor states, Tensor values, Tensor index, Tensor eligible, Tensor(a!) mean, "
      "Tensor(b!) variance, Tensor(c!) batches, int k, bool count_self, bool learn, float horizon, float divisor, "
      "float offset) -> (Tensor entropy, Tensor covered, Tensor statistics)");
}

STABLE_TORCH_LIBRARY_IMPL(qcse, CPU, m) { m.impl("batch_entropy", TORCH_BOX(&qcse::batch_entropy_cpu)); }

// The bonus of a training batch as an operator: schema, checks, CPU registration (LibTorch stable ABI).
#include "bonus/op.h"

#include <string>

#include "bonus/cpu/launch.h"
#include "knn/knn.h"

namespace qcse {

BatchEntropyArguments checked(const char* op, const BatchEntropyArguments& given) {
  const auto& [states, values, index, eligible, mean, variance, batches, k, count_self, learn, horizon, divisor,
               offset] = given;
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
  for (const Tensor* changed : {&mean, &variance, &batches}) {
    if (!changed->is_contiguous()) fail(op, ": mean, variance and batches are changed in place and must be contiguous");
  }
  BatchEntropyArguments dense = given;
  for (Tensor* read : {&dense.states, &dense.values, &dense.index, &dense.eligible}) {
    *read = torch::stable::contiguous(*read);
  }
  return dense;
}

namespace {

std::tuple<Tensor, Tensor, Tensor> batch_entropy_cpu(const Tensor& states, const Tensor& values, const Tensor& index,
                                                     const Tensor& eligible, Tensor mean, Tensor variance,
                                                     Tensor batches, int64_t k, bool count_self, bool learn,
                                                     double horizon, double divisor, double offset) {
  return run_batch_entropy(
      {states, values, index, eligible, mean, variance, batches, k, count_self, learn, horizon, divisor, offset},
      [](const auto& batch, const Tensor&) { cpu::batch_entropy(batch, cpu_threads()); });
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

// What the CPU and the CUDA registration of batch_entropy share: argument checks, the contract's dense arrays, outputs.
// A backend supplies a launcher and nothing else.
#pragma once
#include <tuple>

#include "base/op.h"
#include "bonus/batch_entropy.h"

namespace qcse {

// The checked arguments: tensors on one device, all float32 or all float64; dense ones.
struct BatchEntropyArguments {
  Tensor states, values, index, eligible, mean, variance, batches;
  int64_t k = 0;
  bool count_self = false, learn = false;
  double horizon = 1, divisor = 1, offset = 0;
};

// Throws std::runtime_error, which torch turns into RuntimeError; the message names the argument, what was got and
// what was expected. Makes dense what is only read.
BatchEntropyArguments checked(const char* op, const BatchEntropyArguments& given);

// `launch(batch, example)` is called for BatchEntropy<float> or BatchEntropy<double>; `example` is a tensor on the
// batch's device, from which a backend allocates its workspace. It is not called where there are no seeds.
template <typename Launch>
std::tuple<Tensor, Tensor, Tensor> run_batch_entropy(const BatchEntropyArguments& given, const Launch& launch) {
  BatchEntropyArguments a = checked("qcse::batch_entropy", given);
  const int64_t seeds = a.states.size(0), rows = a.states.size(1);
  Tensor entropy = torch::stable::new_empty(a.states, {seeds, rows});
  Tensor covered = torch::stable::new_empty(a.states, {seeds, rows}, ScalarType::Bool);
  Tensor statistics = torch::stable::new_empty(a.states, {3, seeds});
  const auto run = [&]<typename T>(T) {
    BatchEntropy<T> b;
    b.seeds = seeds, b.rows = rows, b.dim = a.states.size(2), b.k = a.k;
    b.count_self = a.count_self, b.learn = a.learn;
    b.horizon = a.horizon, b.divisor = a.divisor, b.offset = a.offset;
    b.states = a.states.const_data_ptr<T>(), b.values = a.values.const_data_ptr<T>();
    b.index = a.index.const_data_ptr<int64_t>(), b.eligible = a.eligible.const_data_ptr<bool>();
    b.mean = a.mean.mutable_data_ptr<T>(), b.variance = a.variance.mutable_data_ptr<T>();
    b.batches = a.batches.mutable_data_ptr<T>();
    b.entropy = entropy.mutable_data_ptr<T>(), b.covered = covered.mutable_data_ptr<bool>();
    b.statistics = statistics.mutable_data_ptr<T>();
    launch(b, a.states);
  };
  if (seeds > 0) a.states.scalar_type() == ScalarType::Double ? run(double()) : run(float());
  return {entropy, covered, statistics};
}

}  // namespace qcse

// What the CPU and the CUDA registration of knn and entropy share: argument checks, conversion to the contract's dense
// arrays, allocation of the outputs. A backend supplies a launcher and nothing else.
#pragma once
#include <optional>
#include <tuple>
#include <vector>

#include "base/op.h"
#include "knn/knn.h"

namespace qcse {

// The checked arguments: dense tensors on one device, all float32 or all float64, and the sizes of the problem.
struct KnnArguments {
  Tensor states, values;
  std::optional<Tensor> ref_states, ref_values, self_index;
  std::vector<int64_t> shape;  // of every output: the shape of `values`
  int64_t batch = 0, queries = 0, refs = 0, dim = 0, k = 0;
  bool is_double = false;
};

// Throws std::runtime_error, which torch turns into RuntimeError; the message names the argument, what was got and
// what was expected.
KnnArguments check_arguments(const char* op, const Tensor& states, const Tensor& values, int64_t k,
                             const std::optional<Tensor>& ref_states, const std::optional<Tensor>& ref_values,
                             const std::optional<Tensor>& self_index);

template <typename T>
KnnProblem<T> describe(const KnnArguments& a) {
  KnnProblem<T> p;
  p.batch = a.batch;
  p.queries = a.queries;
  p.refs = a.refs;
  p.dim = a.dim;
  p.k = a.k;
  p.states = a.states.const_data_ptr<T>();
  p.values = a.values.const_data_ptr<T>();
  p.ref_states = a.ref_states ? a.ref_states->const_data_ptr<T>() : p.states;
  p.ref_values = a.ref_values ? a.ref_values->const_data_ptr<T>() : p.values;
  p.self_join = !a.ref_states;
  p.self_index = a.self_index ? a.self_index->const_data_ptr<int64_t>() : nullptr;
  return p;
}

// `launch(problem, example)` is called for KnnProblem<float> or KnnProblem<double>; `example` is a tensor on the
// problem's device, from which a backend allocates its workspace. It is not called for an empty problem.
template <typename Launch>
std::tuple<Tensor, Tensor> run_knn(const KnnArguments& a, const Launch& launch) {
  Tensor radius = torch::stable::new_empty(a.states, a.shape, a.is_double ? ScalarType::Double : ScalarType::Float);
  Tensor count = torch::stable::new_empty(a.states, a.shape, ScalarType::Long);
  if (a.batch * a.queries != 0) {
    const auto run = [&]<typename T>(KnnProblem<T> p) {
      p.radius = radius.mutable_data_ptr<T>();
      p.count = count.mutable_data_ptr<int64_t>();
      launch(p, a.states);
    };
    a.is_double ? run(describe<double>(a)) : run(describe<float>(a));
  }
  return {radius, count};
}

template <typename Launch>
Tensor run_entropy(const KnnArguments& a, double offset, const Launch& launch) {
  Tensor entropy = torch::stable::new_empty(a.states, a.shape, a.is_double ? ScalarType::Double : ScalarType::Float);
  if (a.batch * a.queries != 0) {
    const auto run = [&]<typename T>(KnnProblem<T> p) {
      p.entropy = entropy.mutable_data_ptr<T>();
      p.offset = offset;
      launch(p, a.states);
    };
    a.is_double ? run(describe<double>(a)) : run(describe<float>(a));
  }
  return entropy;
}

}  // namespace qcse

// knn and entropy as operators: schemas, checks, CPU registration (LibTorch stable ABI).
#include "knn/op.h"

#include <string>

#include "knn/cpu/launch.h"

namespace qcse {
namespace {

// [..., N, D] against [..., N]: the values have the shape of the states without their last dimension.
void check_points(const char* op, const char* states_name, const Tensor& states, const char* values_name,
                  const Tensor& values) {
  if (states.dim() < 2) {
    fail(op, ": ", states_name, " must have shape [..., N, D] with at least 2 dimensions, got ", shape_of(states));
  }
  bool same = values.dim() == states.dim() - 1;
  for (int64_t d = 0; same && d < values.dim(); ++d) same = values.size(d) == states.size(d);
  if (!same) {
    fail(op, ": ", values_name, " must have the shape of ", states_name, " without its last dimension; got ",
         values_name, " ", shape_of(values), " and ", states_name, " ", shape_of(states));
  }
}

void check_like(const char* op, const char* name, const Tensor& t, const Tensor& states) {
  if (t.scalar_type() != states.scalar_type()) {
    fail(op, ": ", name, " must have the dtype of states (", type_name(states.scalar_type()), "), got ",
         type_name(t.scalar_type()), ". Convert one of them, for example with .to(states.dtype)");
  }
  expect_device(op, name, t, "states", states);
}

Tensor dense(const Tensor& t, bool to_float) {
  return torch::stable::contiguous(to_float ? torch::stable::to(t, ScalarType::Float) : t);
}

}  // namespace

KnnArguments check_arguments(const char* op, const Tensor& states, const Tensor& values, int64_t k,
                             const std::optional<Tensor>& ref_states, const std::optional<Tensor>& ref_values,
                             const std::optional<Tensor>& self_index) {
  const ScalarType type = states.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double && type != ScalarType::Half &&
      type != ScalarType::BFloat16) {
    fail(op, ": states must be float32, float64, float16 or bfloat16, got ", type_name(type));
  }
  check_points(op, "states", states, "values", values);
  check_like(op, "values", values, states);

  KnnArguments a;
  const int64_t leading = states.dim() - 2;
  a.dim = states.size(leading + 1);
  a.queries = states.size(leading);
  a.refs = a.queries;
  a.k = k;
  a.batch = 1;
  for (int64_t d = 0; d < leading; ++d) a.batch *= states.size(d);
  a.shape.assign(values.sizes().begin(), values.sizes().end());
  a.is_double = type == ScalarType::Double;
  if (a.dim < 1 || a.dim > kMaxDim) {
    fail(op, ": the last dimension of states must be from 1 to ", kMaxDim, ", got ", a.dim, " in ", shape_of(states));
  }

  if (ref_states.has_value() != ref_values.has_value()) {
    fail(op, ": reference_states and reference_values go together; got only ",
         ref_states ? "reference_states" : "reference_values");
  }
  if (ref_states) {
    check_points(op, "reference_states", *ref_states, "reference_values", *ref_values);
    check_like(op, "reference_states", *ref_states, states);
    check_like(op, "reference_values", *ref_values, states);
    bool same = ref_states->dim() == states.dim() && ref_states->size(leading + 1) == a.dim;
    for (int64_t d = 0; same && d < leading; ++d) same = ref_states->size(d) == states.size(d);
    if (!same) {
      fail(op, ": reference_states must have shape [..., M, D] with the leading dimensions and the D of states; got ",
           shape_of(*ref_states), " and states ", shape_of(states));
    }
    a.refs = ref_states->size(leading);
  }
  if (self_index) {
    if (!ref_states) {
      fail(op, ": self_index names rows of reference_states, which is missing; ",
           "without references each row's own index is left out already");
    }
    if (self_index->scalar_type() != ScalarType::Long) {
      fail(op, ": self_index must be int64, got ", type_name(self_index->scalar_type()));
    }
    bool same = self_index->dim() == values.dim();
    for (int64_t d = 0; same && d < values.dim(); ++d) same = self_index->size(d) == values.size(d);
    if (!same)
      fail(op, ": self_index must have the shape of values ", shape_of(values), ", got ", shape_of(*self_index));
    expect_device(op, "self_index", *self_index, "states", states);
  }
  constexpr int64_t kMaxRows = INT32_MAX;
  if (a.queries > kMaxRows || a.refs > kMaxRows) {
    fail(op, ": at most ", kMaxRows, " rows are supported, got ", a.queries, " queries and ", a.refs, " references");
  }

  if (a.batch * a.queries != 0) {
    if (k < 1 || k > kMaxNeighbours) fail(op, ": k must be from 1 to ", kMaxNeighbours, ", got ", k);
    const int64_t candidates = ref_states && !self_index ? a.refs : a.refs - 1;
    if (k > candidates) {
      if (!ref_states) {
        fail(op, ": k must be at most N - 1 = ", candidates, " (a row is not its own neighbour), got k = ", k,
             " for states ", shape_of(states));
      }
      fail(op, ": k must be at most ", self_index ? "M - 1 = " : "M = ", candidates,
           self_index ? " (self_index leaves one reference out)" : "", ", got k = ", k, " for reference_states ",
           shape_of(*ref_states));
    }
  }

  const bool to_float = type == ScalarType::Half || type == ScalarType::BFloat16;
  a.states = dense(states, to_float);
  a.values = dense(values, to_float);
  if (ref_states) {
    a.ref_states = dense(*ref_states, to_float);
    a.ref_values = dense(*ref_values, to_float);
  }
  if (self_index) a.self_index = torch::stable::contiguous(*self_index);
  return a;
}

namespace {

struct LaunchCpu {
  const char* op;
  template <typename T>
  void operator()(const KnnProblem<T>& p, const Tensor&) const {
    if (p.self_index != nullptr) {
      for (int64_t i = 0; i < p.batch * p.queries; ++i) {
        if (p.self_index[i] < -1 || p.self_index[i] >= p.refs) {
          fail(op, ": self_index must be -1 or a row of reference_states (0 to ", p.refs - 1, "), got ",
               p.self_index[i], " at flat position ", i);
        }
      }
    }
    cpu::knn(p, cpu_threads());
  }
};

std::tuple<Tensor, Tensor> knn_cpu(const Tensor& states, const Tensor& values, int64_t k,
                                   std::optional<Tensor> ref_states, std::optional<Tensor> ref_values,
                                   std::optional<Tensor> self_index) {
  return run_knn(check_arguments("qcse::knn", states, values, k, ref_states, ref_values, self_index),
                 LaunchCpu{"qcse::knn"});
}

Tensor entropy_cpu(const Tensor& states, const Tensor& values, int64_t k, std::optional<Tensor> ref_states,
                   std::optional<Tensor> ref_values, std::optional<Tensor> self_index, double offset) {
  return run_entropy(check_arguments("qcse::entropy", states, values, k, ref_states, ref_values, self_index), offset,
                     LaunchCpu{"qcse::entropy"});
}

#ifndef QCSE_WITH_CUDA
[[noreturn]] void no_cuda(const char* op) {
  fail(op,
       ": got a CUDA tensor, but this build of qcse holds no CUDA kernels. Move the tensors to the CPU, or install ",
       "the CUDA toolkit (nvcc) and rebuild: pip install --no-build-isolation --force-reinstall --no-deps ",
       "-C cmake.define.QCSE_CUDA=ON .");
}

std::tuple<Tensor, Tensor> knn_without_cuda(const Tensor&, const Tensor&, int64_t, std::optional<Tensor>,
                                            std::optional<Tensor>, std::optional<Tensor>) {
  no_cuda("qcse::knn");
}

Tensor entropy_without_cuda(const Tensor&, const Tensor&, int64_t, std::optional<Tensor>, std::optional<Tensor>,
                            std::optional<Tensor>, double) {
  no_cuda("qcse::entropy");
}
#endif

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY(qcse, m) {
  m.def(
      "knn(Tensor states, Tensor values, int k, Tensor? reference_states=None, Tensor? reference_values=None, "
      "Tensor? self_index=None) -> (Tensor radius, Tensor count)");
  m.def(
      "entropy(Tensor states, Tensor values, int k, Tensor? reference_states=None, Tensor? reference_values=None, "
      "Tensor? self_index=None, float offset=1e-5) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcse, CPU, m) {
  m.impl("knn", TORCH_BOX(&qcse::knn_cpu));
  m.impl("entropy", TORCH_BOX(&qcse::entropy_cpu));
}

#ifndef QCSE_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(qcse, CUDA, m) {
  m.impl("knn", TORCH_BOX(&qcse::knn_without_cuda));
  m.impl("entropy", TORCH_BOX(&qcse::entropy_without_cuda));
}
#endif

// Gathering transitions as an operator: schema, CPU registration (LibTorch stable ABI).
#include "buffer/op.h"

#include "buffer/cpu/gather.h"

namespace qcse {
namespace {

std::tuple<std::vector<Tensor>, Tensor> gather_transitions_cpu(const std::vector<Tensor>& dataset,
                                                               const std::vector<Tensor>& online, const Tensor& index) {
  return run_gather(dataset, online, index, [](const Gather& g) {
    if (!cpu::gather(g, cpu_threads())) {
      fail("qcse::gather_transitions: index must be from 0 to ", g.dataset_size + g.capacity - 1, " (", g.dataset_size,
           " rows of the dataset, ", g.capacity, " online), and has a number beyond");
    }
  });
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_FRAGMENT(qcse, m) {
  m.def("gather_transitions(Tensor[] dataset, Tensor[] online, Tensor index) -> (Tensor[] columns, Tensor is_online)");
}

STABLE_TORCH_LIBRARY_IMPL(qcse, CPU, m) { m.impl("gather_transitions", TORCH_BOX(&qcse::gather_transitions_cpu)); }

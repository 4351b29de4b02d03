// Random numbers as operators: schemas, CPU registration (LibTorch stable ABI).
#include "random/op.h"

#include "random/cpu/launch.h"

namespace qcse {
namespace {

Tensor random_cpu(const Tensor& keys, Tensor counters, const std::vector<int64_t>& laws,
                  const std::vector<int64_t>& counts) {
  return run_random(keys, counters, laws, counts,
                    [](const RandomNumbers& draw) { cpu::random_numbers(draw, cpu_threads()); });
}

Tensor random_rows_cpu(const Tensor& keys, Tensor counters, int64_t count, int64_t dataset, int64_t held,
                       std::optional<Tensor> held_there, std::optional<int64_t> leading) {
  return run_random_rows(keys, counters, count, dataset, held, held_there, leading,
                         [](const RandomRows& draw) { cpu::random_rows(draw, cpu_threads()); });
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_FRAGMENT(qcse, m) {
  m.def("random(Tensor keys, Tensor(a!) counters, int[] laws, int[] counts) -> Tensor");
  m.def(
      "random_rows(Tensor keys, Tensor(a!) counters, int count, int dataset, int held, Tensor? held_there, "
      "int? leading) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcse, CPU, m) {
  m.impl("random", TORCH_BOX(&qcse::random_cpu));
  m.impl("random_rows", TORCH_BOX(&qcse::random_rows_cpu));
}

// Adding the bonus of a training batch as an operator: its schema (LibTorch stable ABI). It has no kernel for a CPU.
#include "base/op.h"

STABLE_TORCH_LIBRARY_FRAGMENT(qcse, m) {
  m.def(
      "add_bonus(Tensor(a!) rewards, Tensor novelty, Tensor covered, Tensor eligible, Tensor weight, bool squash) -> "
      "Tensor");
}

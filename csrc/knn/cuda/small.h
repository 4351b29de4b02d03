// The kernel for as many references a batch entry as shared memory has room for: one launch for radius, count and
// entropy, in which every block sees all candidates of its queries, so that no two blocks ever have to agree on
// anything.
#pragma once
#include "base/cuda/device.h"
#include "launch.h"

namespace qcse::cuda {

// Whether the references, and what else a block needs, fit into its shared memory.
template <typename T>
bool small_fits(const KnnProblem<T>& problem, const Device& device, int variant);

// Refs up to kSmallMaxRefs; no workspace.
template <typename T>
Status launch_small(const KnnProblem<T>& problem, const Device& device, cudaStream_t stream, int variant);

}  // namespace qcse::cuda

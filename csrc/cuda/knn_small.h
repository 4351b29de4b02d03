// The kernel for up to 4096 references a batch entry: one launch for radius, count and entropy, in which every block
// sees all candidates of its queries, so that no two blocks ever have to agree on anything.
#pragma once
#include "device.h"
#include "knn_cuda.h"

namespace qcse::cuda {

// Refs up to kSmallMaxRefs; no workspace.
template <typename T>
Status launch_small(const KnnProblem<T>& problem, const Device& device, cudaStream_t stream);

}  // namespace qcse::cuda

// The kernel for as many references a batch entry as shared memory has room for: one launch for radius, count and
// entropy, in which every block sees all candidates of its queries, so that no two blocks ever have to agree on
// anything.
#pragma once
#include "device.h"
#include "knn_cuda.h"

namespace qcse::cuda {

// What a block needs at least.
template <typename T>
size_t small_shared_bytes(const KnnProblem<T>& problem);

// Refs up to kSmallMaxRefs; no workspace.
template <typename T>
Status launch_small(const KnnProblem<T>& problem, const Device& device, cudaStream_t stream, int variant);

}  // namespace qcse::cuda

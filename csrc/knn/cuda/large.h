// The kernels for any number of references. Points are sorted by value; a block visits candidate tiles outward from
// its queries' values and stops a side where the gap in value alone rules out all that is left.
#pragma once
#include "base/cuda/device.h"
#include "launch.h"

namespace qcse::cuda {

// Whether a block of this device has enough shared memory.
template <typename T>
bool large_fits(const KnnProblem<T>& problem, const Device& device, int variant);

template <typename T>
size_t large_workspace_bytes(const KnnProblem<T>& problem, const Device& device, int variant);

template <typename T>
Status launch_large(const KnnProblem<T>& problem, const Device& device, void* workspace, cudaStream_t stream,
                    int variant);

}  // namespace qcse::cuda

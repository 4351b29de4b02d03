// The kernels for many references of several dimensions: tensor cores rule nearly all pairs out (screen.h has the
// proof), and what they leave is computed by the contract. Points are sorted by value and visited as in the large
// kernel.
#pragma once
#include "device.h"
#include "knn_cuda.h"

namespace qcse::cuda {

// Whether this shape is worth it on this device; any whose shared memory fits may be launched, several hundred
// dimensions on a large GPU.
template <typename T>
bool screen_suits(const KnnProblem<T>& problem, const Device& device);

template <typename T>
size_t screened_workspace_bytes(const KnnProblem<T>& problem);

template <typename T>
Status launch_screened(const KnnProblem<T>& problem, const Device& device, void* workspace, cudaStream_t stream);

}  // namespace qcse::cuda

// The kernels for many references of several dimensions: tensor cores rule nearly all pairs out (screen.h has the
// proof), and what they leave is computed by the contract. Points are sorted by value and visited as in the large
// kernel.
#pragma once
#include "base/cuda/device.h"
#include "launch.h"

namespace qcse::cuda {

// What a block gets of this device; nothing where it has too little shared memory.
struct ScreenDivision {
  int warps = 0, stages = 0, blocks = 0;  // blocks: that find room on a multiprocessor's shared memory at a time
  size_t bytes = 0;                       // of shared memory
};
template <typename T>
ScreenDivision screen_division(const KnnProblem<T>& problem, const Device& device, int variant);

// Whether a block of this device has enough shared memory: several hundred dimensions on a large GPU.
template <typename T>
bool screened_fits(const KnnProblem<T>& problem, const Device& device, int variant);

// By rule: whether this shape is worth it on this device.
template <typename T>
bool screen_suits(const KnnProblem<T>& problem, const Device& device);

template <typename T>
size_t screened_workspace_bytes(const KnnProblem<T>& problem, int variant);

template <typename T>
Status launch_screened(const KnnProblem<T>& problem, const Device& device, void* workspace, cudaStream_t stream,
                       int variant);

}  // namespace qcse::cuda

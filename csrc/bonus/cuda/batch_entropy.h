// The CUDA launchers of the contract in batch_entropy.h. No CUDA and no torch header is needed to call them.
#pragma once
#include <cstddef>

#include "base/cuda/launch.h"
#include "bonus/batch_entropy.h"
#include "knn/cuda/launch.h"

namespace qcse::cuda {

// How a call is carried out. It follows from the shape and the device alone; tests name other ways.
struct BatchPlan {
  Choice search;                // of csrc/knn/cuda
  bool rows_in_shared = false;  // a block's tables of the rows; otherwise they are in the workspace
};
template <typename T>
BatchPlan plan(const BatchEntropy<T>& batch, const Device& device);

// Bytes of device memory, aligned to 256, that `launch` needs for this shape. What it holds beforehand does not matter.
template <typename T>
size_t workspace_bytes(const BatchEntropy<T>& batch, const Device& device, const BatchPlan& plan);

// Enqueues the whole operator on `stream` (a cudaStream_t) of the current device and returns at once: no allocation, no
// synchronisation and nothing read back, so a stream capture may contain it, a first call too. There must be a seed.
template <typename T>
Status launch(const BatchEntropy<T>& batch, const Device& device, void* workspace, void* stream, const BatchPlan& plan);

}  // namespace qcse::cuda

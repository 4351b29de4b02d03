// The CUDA launcher of the contract in buffer/gather.h: one launch.
#pragma once
#include "base/cuda/launch.h"
#include "buffer/gather.h"

namespace qcse::cuda {

// Enqueues it on `stream` (a cudaStream_t) of the current device and returns at once. Nothing may be empty. A row whose
// number is out of range is NaN, as a kernel cannot refuse it.
Status gather(const Gather& g, void* stream);

}  // namespace qcse::cuda

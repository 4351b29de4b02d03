// The CUDA launchers of the contract in random/random.h: one launch each, which moves the counters, too.
#pragma once
#include "base/cuda/launch.h"
#include "random/random.h"

namespace qcse::cuda {

// Enqueue the whole operator on `stream` (a cudaStream_t) of the current device and return at once. Nothing may be
// empty.
Status random_numbers(const RandomNumbers& draw, const Device& device, void* stream);
Status random_rows(const RandomRows& draw, void* stream);

}  // namespace qcse::cuda

// The CUDA launcher of the contract in bonus/add_bonus.h: one launch, a block for each seed.
#pragma once
#include "base/cuda/launch.h"
#include "bonus/add_bonus.h"

namespace qcse::cuda {

// Enqueues it on `stream` (a cudaStream_t) of the current device and returns at once. Nothing may be empty.
template <typename T>
Status add_bonus(const AddBonus<T>& batch, void* stream);

}  // namespace qcse::cuda

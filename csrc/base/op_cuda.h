// What the CUDA registrations of the operators share. No torch header is needed to call it.
#pragma once
#include <cstdint>
#include <string>

#include "base/cuda/launch.h"

namespace qcse {

// torch's current stream (a cudaStream_t) on this device. Throws std::runtime_error where torch has none to offer.
void* current_cuda_stream(int32_t device_index);

// Throws std::runtime_error where a launch failed; `shape` says of what.
void expect_launched(const char* op, const cuda::Status& status, const std::string& shape);

}  // namespace qcse

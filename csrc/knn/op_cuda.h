// What the CUDA registration of the operators offers to the module. No torch header is needed to call it.
#pragma once
#include <cstdint>

namespace qcse {

// torch's current stream (a cudaStream_t) on this device. Throws std::runtime_error where torch has none to offer.
void* current_cuda_stream(int32_t device_index);

}  // namespace qcse

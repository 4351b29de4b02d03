// What all CUDA launchers share with their callers. No CUDA and no torch header is needed to include it.
#pragma once
#include <cstddef>

namespace qcse::cuda {

// What the choice of kernel and grid may depend on, beside the problem's shape. Nothing here depends on the data.
struct Device {
  int capability = 0;  // 90 for compute capability 9.0
  int multiprocessors = 0;
  size_t shared_bytes_per_block = 0;  // the opt-in limit
};

// What each block takes of a multiprocessor's shared memory beside its own; a multiprocessor has as much more than the
// limit above.
inline constexpr size_t kOfSystem = 1024;

// A launch that failed names the kernel and the driver's reason; `error` is null where all went well.
struct Status {
  const char* kernel = "";
  const char* error = nullptr;
};

// Makes this device current for the launchers and tells its facts. (The caller's own runtime library may be another
// copy than the one in here, so its choice of device does not carry over.)
Status select_device(int ordinal, Device* device);

}  // namespace qcse::cuda

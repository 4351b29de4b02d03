// Small kernels by which the emulator itself is tested: right ones, and one for each rule that a kernel can break.
#pragma once

namespace emulator {

// Runs the kernel of this name; false where there is none. out: `elements` ints of device memory, not initialised.
bool run_self_kernel(const char* name, int* out, int elements);

}  // namespace emulator

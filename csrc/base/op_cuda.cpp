#include "base/op_cuda.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <atomic>

#include "base/op.h"

namespace qcse {
namespace {

using GetStream = AOTITorchError (*)(int32_t device_index, void** stream);

// The function lives in torch's CUDA library alone, which torch loads without adding its symbols to the global ones: no
// reference of this module, weak or not, would ever be bound to it. So it is looked up in the library that is there
// already; nothing is loaded. Null beside a torch without CUDA.
GetStream find_get_stream() {
  static std::atomic<GetStream> known = nullptr;
  if (const GetStream found = known.load(std::memory_order_relaxed)) return found;
  constexpr const char* kName = "aoti_torch_get_current_cuda_stream";
  void* symbol = dlsym(RTLD_DEFAULT, kName);
  if (symbol == nullptr) {
    // Never closed: the function stays in use.
    if (void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) symbol = dlsym(library, kName);
  }
  const auto found = reinterpret_cast<GetStream>(symbol);
  known.store(found, std::memory_order_relaxed);
  return found;
}

}  // namespace

void* current_cuda_stream(int32_t device_index) {
  const GetStream get = find_get_stream();
  if (get == nullptr) {
    fail(
        "qcse: got a CUDA tensor, but no CUDA library of torch is loaded that offers a current stream (expected "
        "aoti_torch_get_current_cuda_stream in libtorch_cuda.so; torch 2.11 and newer have it in their CUDA builds)");
  }
  void* stream = nullptr;
  if (const AOTITorchError status = get(device_index, &stream); status != 0) {
    fail("qcse: torch could not tell the current stream of CUDA device ", device_index, " (status ", status, ")");
  }
  return stream;
}

void expect_launched(const char* op, const cuda::Status& status, const std::string& shape) {
  if (status.error == nullptr) return;
  fail(op, ": ", status.kernel, " failed: ", status.error, " (", shape, "; kernels built for compute capability ",
       QCSE_CUDA_ARCHITECTURES, " by CUDA ", QCSE_CUDA_TOOLKIT, ")");
}

}  // namespace qcse

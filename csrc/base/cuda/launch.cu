#include "base/cuda/launch.h"

#include "base/cuda/device.h"

namespace qcse::cuda {

Status select_device(int ordinal, Device* device) {
  const CaptureRelaxed relaxed;  // this may be the process's first call
  cudaError_t status = cudaSetDevice(ordinal);
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, ordinal);
    return value;
  };
  device->capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
  device->multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  device->shared_bytes_per_block = static_cast<size_t>(ask(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  return status_of("select_device", status);
}

}  // namespace qcse::cuda

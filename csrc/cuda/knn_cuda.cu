#include "knn_cuda.h"

#include "device.h"
#include "knn_small.h"

namespace qcse::cuda {

Status select_device(int ordinal, Device* device) {
  int multiprocessors = 0;
  int shared_bytes = 0;
  cudaError_t status = cudaSetDevice(ordinal);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, ordinal);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
  }
  if (status != cudaSuccess) return {"select_device", cudaGetErrorString(status)};
  device->multiprocessors = multiprocessors;
  device->shared_bytes_per_block = static_cast<size_t>(shared_bytes);
  return {};
}

template <typename T>
const char* kernel_for(const KnnProblem<T>& problem) {
  return problem.refs <= kSmallMaxRefs ? "small" : "large";
}

template <typename T>
size_t workspace_bytes(const KnnProblem<T>&, const Device&) {
  return 0;
}

template <typename T>
Status launch(const KnnProblem<T>& problem, const Device& device, void*, void* stream) {
  if (problem.refs <= kSmallMaxRefs) return launch_small(problem, device, static_cast<cudaStream_t>(stream));
  return {"knn_small_kernel", "more references than it is made for"};
}

template const char* kernel_for(const KnnProblem<float>&);
template const char* kernel_for(const KnnProblem<double>&);
template size_t workspace_bytes(const KnnProblem<float>&, const Device&);
template size_t workspace_bytes(const KnnProblem<double>&, const Device&);
template Status launch(const KnnProblem<float>&, const Device&, void*, void*);
template Status launch(const KnnProblem<double>&, const Device&, void*, void*);

}  // namespace qcse::cuda

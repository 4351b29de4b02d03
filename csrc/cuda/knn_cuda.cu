#include "knn_cuda.h"

#include <stdexcept>

#include "device.h"
#include "knn_large.h"
#include "knn_screened.h"
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

namespace {

Path chosen_path = Path::kAuto;

template <typename T>
Path choose(const KnnProblem<T>& problem, const Device& device, Path path) {
  if (path == Path::kAuto) path = chosen_path;
  if (path != Path::kAuto) return path;
  if (problem.refs <= kSmallMaxRefs) return Path::kSmall;
  return screen_suits(problem, device) ? Path::kScreened : Path::kLarge;
}

}  // namespace

void set_path(const std::string& name) {
  if (name == "auto") {
    chosen_path = Path::kAuto;
  } else if (name == "small") {
    chosen_path = Path::kSmall;
  } else if (name == "large") {
    chosen_path = Path::kLarge;
  } else if (name == "screened") {
    chosen_path = Path::kScreened;
  } else {
    throw std::invalid_argument("CUDA path must be 'auto', 'small', 'large' or 'screened', got '" + name + "'");
  }
}

template <typename T>
size_t workspace_bytes(const KnnProblem<T>& problem, const Device& device, Path path) {
  switch (choose(problem, device, path)) {
    case Path::kScreened: return screened_workspace_bytes(problem);
    case Path::kLarge: return large_workspace_bytes(problem);
    default: return 0;
  }
}

template <typename T>
Status launch(const KnnProblem<T>& problem, const Device& device, void* workspace, void* stream, Path path) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (choose(problem, device, path)) {
    case Path::kScreened: return launch_screened(problem, device, workspace, on);
    case Path::kLarge: return launch_large(problem, device, workspace, on);
    default: break;
  }
  if (problem.refs > kSmallMaxRefs) return {"knn_small_kernel", "it is made for at most 4096 references"};
  return launch_small(problem, device, on);
}

template size_t workspace_bytes(const KnnProblem<float>&, const Device&, Path);
template size_t workspace_bytes(const KnnProblem<double>&, const Device&, Path);
template Status launch(const KnnProblem<float>&, const Device&, void*, void*, Path);
template Status launch(const KnnProblem<double>&, const Device&, void*, void*, Path);

}  // namespace qcse::cuda

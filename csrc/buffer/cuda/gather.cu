#include "buffer/cuda/gather.h"

#include "base/cuda/device.h"
#include "base/integers.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

// A warp for each row. The lanes go through the columns as if they were one wide one, so that all loads of a row are on
// their way at once.
__global__ void __launch_bounds__(kThreads) gather_kernel(const Gather g) {
  const int64_t at = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (at >= g.seeds * g.rows) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t row = g.index[at], slot = row - g.dataset_size;
  const bool online = slot >= 0, in_range = row >= 0 && slot < g.capacity;
  const int64_t own = at / g.rows * g.capacity + slot;
  if (lane == 0) g.is_online[at] = online;
  int64_t place = lane;  // within the column
  for (int c = 0; c < g.columns; ++c) {
    const Column& column = g.column[c];
    const float* const from = online ? column.online + own * column.width : column.dataset + row * column.width;
    float* const to = column.out + at * column.width;
    for (; place < column.width; place += kWarp) to[place] = in_range ? from[place] : not_a_number<float>();
    place -= column.width;
  }
}

}  // namespace

Status gather(const Gather& g, void* stream) {
  const CaptureRelaxed relaxed;
  const char* const name = "gather_kernel";
  const int64_t blocks = ceil_div(g.seeds * g.rows, kWarps);
  if (blocks > INT32_MAX) return {name, kTooManyBlocks};
  return status_of(name, launch_kernel(gather_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                                       static_cast<cudaStream_t>(stream), g));
}

}  // namespace qcse::cuda

#include "random/cuda/random.h"

#include "base/cuda/device.h"
#include "base/integers.h"

namespace qcse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kMostArrivals = 1 << 14;  // blocks of a seed: their number fits above the counter's bits

// The counter as it was before this launch, for all threads of the block. A block that reads it says so in the bits
// above kCounterBits, in the same atomic step; the last of the seed's `arrivals` blocks, which knows that all have
// read, clears those bits again and moves the counter by `used`. So one launch reads and moves it, and a replay finds
// it moved.
__device__ __forceinline__ uint64_t take_counter(int64_t* counter, unsigned arrivals, int64_t used, uint64_t* shared) {
  if (threadIdx.x == 0) {
    using Word = unsigned long long;
    constexpr Word kArrival = Word{1} << kCounterBits;
    Word* const word = reinterpret_cast<Word*>(counter);
    const Word before = atomicAdd(word, kArrival);
    if ((before >> kCounterBits) + 1 == arrivals) atomicAdd(word, static_cast<Word>(used) - arrivals * kArrival);
    *shared = before & (kArrival - 1);
  }
  __syncthreads();
  return *shared;
}

__device__ __forceinline__ Numbers numbers_of(Law law, const Words& words) {
  if (law == Law::kNormal) return qcse::numbers_of<Law::kNormal>(words);
  return law == Law::kUnit ? qcse::numbers_of<Law::kUnit>(words) : qcse::numbers_of<Law::kSymmetric>(words);
}

// Grid: blocks of a seed, seeds. A thread makes four numbers at a time.
__global__ void __launch_bounds__(kThreads) random_numbers_kernel(const RandomNumbers draw) {
  SharedLayout layout;
  uint64_t* const shared = shared_array<uint64_t>(layout.add<uint64_t>(1), 1);
  const int64_t seed = blockIdx.y;
  const uint64_t counter = take_counter(draw.stream.counters + seed, gridDim.x, draw.blocks, shared);
  const auto key = static_cast<uint64_t>(draw.stream.keys[seed]);
  for (int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x; block < draw.blocks;
       block += int64_t{gridDim.x} * kThreads) {
    int i = 0;
    while (i + 1 < draw.segments && block >= draw.segment[i + 1].first_block) ++i;
    const Segment& segment = draw.segment[i];
    const Numbers numbers = numbers_of(segment.law, philox(key, counter + static_cast<uint64_t>(block)));
    const int64_t first = kNumbersPerBlock * (block - segment.first_block);
    float* const to = draw.numbers + segment.at + seed * segment.count + first;
    if (segment.count % kNumbersPerBlock == 0) {
      *reinterpret_cast<Pack<float, kNumbersPerBlock>*>(to) = {
          {numbers.at[0], numbers.at[1], numbers.at[2], numbers.at[3]}};
    } else {
#pragma unroll
      for (int j = 0; j < kNumbersPerBlock; ++j) {
        if (first + j < segment.count) to[j] = numbers.at[j];
      }
    }
  }
}

// A block for each seed: a batch is small.
__global__ void __launch_bounds__(kThreads) random_rows_kernel(const RandomRows draw) {
  SharedLayout layout;
  uint64_t* const shared = shared_array<uint64_t>(layout.add<uint64_t>(1), 1);
  const int64_t seed = blockIdx.x, blocks = (draw.count + kRowsPerBlock - 1) / kRowsPerBlock;
  const uint64_t counter = take_counter(draw.stream.counters + seed, 1, blocks, shared);
  const auto key = static_cast<uint64_t>(draw.stream.keys[seed]);
  const int64_t held = draw.held_there != nullptr ? static_cast<int64_t>(*draw.held_there) : draw.held;
  int64_t* const rows = draw.rows + seed * draw.count;
  for (int64_t block = threadIdx.x; block < blocks; block += kThreads) {
    const Words w = philox(key, counter + static_cast<uint64_t>(block));
    const int64_t place = kRowsPerBlock * block;
    rows[place] = row_of(draw, held, place, w.at[0], w.at[1]);
    if (place + 1 < draw.count) rows[place + 1] = row_of(draw, held, place + 1, w.at[2], w.at[3]);
  }
}

size_t shared_bytes() {
  SharedLayout layout;
  layout.add<uint64_t>(1);
  return layout.bytes();
}

}  // namespace

Status random_numbers(const RandomNumbers& draw, const Device& device, void* stream) {
  const CaptureRelaxed relaxed;
  const char* const name = "random_numbers_kernel";
  if (draw.stream.seeds > 65535) return {name, "there are more than 65535 seeds"};
  const int64_t wanted = ceil_div(draw.blocks, kThreads);
  const int64_t room = ceil_div(kBlocksPerMultiprocessor * device.multiprocessors, draw.stream.seeds);
  const int64_t blocks = wanted < room ? wanted : room < kMostArrivals ? room : kMostArrivals;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(draw.stream.seeds));
  return status_of(name, launch_kernel(random_numbers_kernel, grid, dim3(kThreads), shared_bytes(),
                                       static_cast<cudaStream_t>(stream), draw));
}

Status random_rows(const RandomRows& draw, void* stream) {
  const CaptureRelaxed relaxed;
  const char* const name = "random_rows_kernel";
  if (draw.stream.seeds > INT32_MAX) return {name, kTooManyBlocks};
  const dim3 grid(static_cast<unsigned>(draw.stream.seeds));
  return status_of(name, launch_kernel(random_rows_kernel, grid, dim3(kThreads), shared_bytes(),
                                       static_cast<cudaStream_t>(stream), draw));
}

}  // namespace qcse::cuda

#include "self_kernels.h"

#include <cstring>

#include "base/cuda/device.h"

namespace emulator {
namespace {

using qcse::cuda::kFullWarp;
using qcse::cuda::launch_kernel;

int* shared_ints(int count) { return qcse::cuda::shared_array<int>(0, static_cast<size_t>(count)); }
qcse::cuda::Gate* shared_gates() { return qcse::cuda::shared_array<qcse::cuda::Gate>(512, 2); }
unsigned* shared_counters() { return qcse::cuda::shared_array<unsigned>(640, 2); }
int thread() { return static_cast<int>(threadIdx.x); }
int here() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

// --- Right ----------------------------------------------------------------------------------------------------------
void shuffles(int* out) {  // 4 x 32
  const int lane = thread();
  out[lane] = __shfl_sync(kFullWarp, 100 + lane, (lane + 31) % 32);
  out[32 + lane] = __shfl_up_sync(kFullWarp, 100 + lane, 3);
  out[64 + lane] = __shfl_down_sync(kFullWarp, 100 + lane, 3);
  out[96 + lane] = __shfl_xor_sync(kFullWarp, 100 + lane, 5);
}
void votes(int* out) {  // 6 x 32
  const int lane = thread();
  out[lane] = static_cast<int>(__ballot_sync(kFullWarp, lane % 3 == 0));
  out[32 + lane] = __any_sync(kFullWarp, lane == 7) * 2 + __all_sync(kFullWarp, lane == 7);
  out[64 + lane] = __reduce_add_sync(kFullWarp, lane);
  out[96 + lane] = __reduce_min_sync(kFullWarp, lane - 9);
  out[128 + lane] = __reduce_max_sync(kFullWarp, lane - 9);
  out[160 + lane] = static_cast<int>(__reduce_or_sync(kFullWarp, 4u * static_cast<unsigned>(lane)));
}
void half_warp_vote(int* out) { out[thread()] = thread() < 16 ? static_cast<int>(__ballot_sync(0xffffu, 1)) : -1; }
void barrier_votes(int* out) {  // 3 x 64
  out[thread()] = __syncthreads_count(thread() % 4 == 0);
  out[64 + thread()] = __syncthreads_and(thread() < 64);
  out[128 + thread()] = __syncthreads_or(thread() == 63);
}
void reverse_block(int* out) {
  int* const s = shared_ints(64);
  s[thread()] = here();
  __syncthreads();
  out[here()] = s[63 - thread()];
}
void reverse_warp(int* out) {
  int* const s = shared_ints(32);
  s[thread()] = thread();
  __syncwarp();
  out[thread()] = s[31 - thread()];
}
void atomic_sum(int* out) {
  int* const s = shared_ints(1);
  if (thread() == 0) s[0] = 0;
  __syncthreads();
  atomicAdd(&s[0], thread());
  __syncthreads();
  out[here()] = s[0];
}
void copied(int* out) {
  int* const s = shared_ints(64);
  out[here()] = 3 * here();
  qcse::cuda::copy_async<4>(&s[thread()], &out[here()]);
  qcse::cuda::copies_commit();
  qcse::cuda::copies_wait();
  __syncthreads();
  const int neighbour = s[63 - thread()];
  out[here()] = neighbour;
}
// The last block to arrive adds up what all wrote: out[0] is the sum, out[1] the ticket, out[2...] one from each block.
void last_block(int* out) {
  int* const last = shared_ints(1);
  if (thread() == 0) {
    out[2 + blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
    __threadfence();
    last[0] = atomicAdd(&out[1], 1) == static_cast<int>(gridDim.x) - 1;
    __threadfence();
  }
  __syncthreads();
  if (last[0] != 0 && thread() == 5) {
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += out[2 + b];
    out[0] = sum;
  }
}

// The first warp's lanes write and the second warp's read, with a gate between them.
struct Handing {
  unsigned arrivals = 32;
  bool prepared = true, barrier = true, arrives_late = true, waits = true;
  unsigned opening = 0;
};
void hand_over(int* out, const Handing& how) {
  int* const s = shared_ints(64);
  qcse::cuda::Gate* const gate = shared_gates();
  if (thread() == 0 && how.prepared) qcse::cuda::gate_prepare(gate, how.arrivals);
  if (how.barrier) __syncthreads();
  if (thread() < 32) {
    if (!how.arrives_late) qcse::cuda::gate_arrive(gate);
    s[thread()] = 7 * thread();
    if (how.arrives_late) qcse::cuda::gate_arrive(gate);
  } else {
    if (how.waits) qcse::cuda::gate_wait(gate, how.opening);
    out[thread() - 32] = s[63 - thread()];
  }
}
void handed_over(int* out) { hand_over(out, {}); }
// Two stages of 32 that are filled in turns by copies: the last warp to leave one fills it again. out: 6 x 64 that
// were read, then the 6 x 32 that are copied.
void ring(int* out, bool counts_in_order, bool waits_for_copies) {
  constexpr int kTurns = 6;
  int* const s = shared_ints(64);
  int* const in = out + kTurns * 64;
  qcse::cuda::Gate* const gates = shared_gates();
  unsigned* const leavers = shared_counters();
  const int lane = thread() % 32;
  const auto fill = [&](int turn) {
    qcse::cuda::copy_async<4>(&s[turn % 2 * 32 + lane], &in[turn * 32 + lane]);
    if (waits_for_copies) {
      qcse::cuda::gate_arrive_after_copies(gates + turn % 2);
    } else {
      qcse::cuda::gate_arrive(gates + turn % 2);
    }
  };
  if (thread() < 2) qcse::cuda::gate_prepare(gates + thread(), 32);
  if (thread() < 2) leavers[thread()] = 0;
  for (int i = thread(); i < kTurns * 32; i += 64) in[i] = 5 * i;
  __syncthreads();
  if (thread() < 32) fill(0);
  if (thread() >= 32) fill(1);
  for (int turn = 0; turn < kTurns; ++turn) {
    qcse::cuda::gate_wait(gates + turn % 2, static_cast<unsigned>(turn / 2));
    out[turn * 64 + thread()] = s[turn % 2 * 32 + 31 - lane];
    __syncwarp();
    unsigned before = 0;
    if (lane == 0) {
      before = counts_in_order ? qcse::cuda::add_in_order(leavers + turn % 2, 1u) : atomicAdd(leavers + turn % 2, 1u);
    }
    const bool last = __shfl_sync(kFullWarp, before, 0) % 2 == 1;
    __syncwarp();
    if (last && turn + 2 < kTurns) fill(turn + 2);
  }
}
void copied_in_turns(int* out) { ring(out, true, true); }
void peeked(int* out) {
  qcse::cuda::Gate* const gate = shared_gates();
  if (thread() == 0) qcse::cuda::gate_prepare(gate, 64);
  __syncthreads();
  const bool early = thread() == 0 && qcse::cuda::gate_passed(gate, 0);
  qcse::cuda::gate_arrive(gate);
  qcse::cuda::gate_wait(gate, 0);
  out[thread()] = 2 * early + qcse::cuda::gate_passed(gate, 0);
}

// --- Wrong ----------------------------------------------------------------------------------------------------------
void no_barrier(int* out) {
  int* const s = shared_ints(64);
  s[thread()] = here();
  out[here()] = s[63 - thread()];
}
void no_second_barrier(int* out) {
  int* const s = shared_ints(64);
  for (int round = 0; round < 2; ++round) {
    s[thread()] = here() + round;
    __syncthreads();
    out[here()] = s[63 - thread()];
  }
}
void shuffle_is_no_barrier(int* out) {
  int* const s = shared_ints(32);
  s[thread()] = thread();
  static_cast<void>(__shfl_sync(kFullWarp, thread(), 0));
  out[thread()] = s[31 - thread()];
}
void plain_sum(int* out) {
  int* const s = shared_ints(1);
  if (thread() == 0) s[0] = 0;
  __syncthreads();
  s[0] += thread();
  __syncthreads();
  out[here()] = s[0];
}
void same_element(int* out) { out[0] = static_cast<int>(blockIdx.x); }
void barrier_in_branch(int* out) {
  if (thread() < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[here()] = 1;
}
void barrier_after_return(int* out) {
  out[here()] = 1;
  if (thread() == 40) return;
  __syncthreads();
}
void barriers_differ_in_number(int* out) {
  for (int i = 0; i <= thread() / 32; ++i) __syncthreads();
  out[here()] = 1;
}
void vote_in_branch(int* out) {
  out[thread()] = 0;
  if (thread() < 20) out[thread()] = __any_sync(kFullWarp, 1);
}
void not_in_own_mask(int* out) { out[thread()] = __any_sync(0xffffu, 1); }
void shuffle_from_outside_mask(int* out) { out[thread()] = thread() < 16 ? __shfl_down_sync(0xffffu, thread(), 8) : 0; }
void past_shared_array(int* out) {
  int* const s = shared_ints(64);
  s[thread()] = 0;
  __syncthreads();
  out[here()] = s[thread() + 1];
}
void before_shared_array(int* out) {
  int* const s = qcse::cuda::shared_array<int>(64, 64);
  s[thread()] = 0;
  __syncthreads();
  out[here()] = s[thread() - 1];
}
void past_output(int* out) {
  if (here() == 0) out[gridDim.x * blockDim.x] = 1;
}
void shared_not_written(int* out) { out[here()] = shared_ints(64)[thread()]; }
void global_not_written(int* out) { out[here()] += 1; }
void shared_too_large(int* out) {
  int* const s = shared_ints(1 << 12);
  s[thread()] = 0;
  out[here()] = s[thread()];
}
void host_memory(int* out) {
  static int counter = 0;
  if (here() == 0) counter += 1;
  out[here()] = 0;
}
void misaligned(int* out) {
  out[here()] = here();
  __syncwarp();
  if (here() < 8) out[here()] = qcse::cuda::load_pack<4>(out + 1 + here()).at[0];
}
void copy_not_awaited(int* out) {
  int* const s = shared_ints(64);
  out[here()] = here();
  qcse::cuda::copy_async<4>(&s[thread()], &out[here()]);
  qcse::cuda::copies_commit();
  __syncthreads();
  const int mine = s[thread()];
  qcse::cuda::copies_wait();
  out[here()] = mine;
}
void copy_without_barrier(int* out) {
  int* const s = shared_ints(64);
  out[here()] = here();
  qcse::cuda::copy_async<4>(&s[thread()], &out[here()]);
  qcse::cuda::copies_commit();
  qcse::cuda::copies_wait();
  const int neighbour = s[63 - thread()];
  __syncthreads();
  out[here()] = neighbour;
}
void copy_over_readers(int* out) {
  int* const s = shared_ints(64);
  out[here()] = here();
  s[thread()] = 1;
  __syncthreads();
  const int neighbour = s[63 - thread()];
  qcse::cuda::copy_async<4>(&s[thread()], &out[here()]);
  qcse::cuda::copies_commit();
  qcse::cuda::copies_wait();
  out[here()] = neighbour;
}
void last_block_without_release(int* out) {
  int* const last = shared_ints(1);
  if (thread() == 0) {
    out[2 + blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
    last[0] = atomicAdd(&out[1], 1) == static_cast<int>(gridDim.x) - 1;
    __threadfence();
  }
  __syncthreads();
  if (last[0] != 0 && thread() == 5) {
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += out[2 + b];
    out[0] = sum;
  }
}
void last_block_without_acquire(int* out) {
  int* const last = shared_ints(1);
  if (thread() == 0) {
    out[2 + blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
    __threadfence();
    last[0] = atomicAdd(&out[1], 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (last[0] != 0 && thread() == 5) {
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += out[2 + b];
    out[0] = sum;
  }
}

void gate_not_waited_for(int* out) { hand_over(out, {.waits = false}); }
void gate_not_prepared(int* out) { hand_over(out, {.prepared = false}); }
void gate_prepared_without_barrier(int* out) { hand_over(out, {.barrier = false}); }
void gate_that_never_opens(int* out) { hand_over(out, {.arrivals = 33}); }
void gate_that_opens_early(int* out) { hand_over(out, {.arrivals = 31}); }
void gate_of_the_opening_before(int* out) { hand_over(out, {.opening = 1}); }
void arrival_before_the_write(int* out) { hand_over(out, {.arrives_late = false}); }
void turns_without_order(int* out) { ring(out, false, true); }
void turns_without_copies(int* out) { ring(out, true, false); }
void copies_bring_nothing_else(int* out) {
  int* const s = shared_ints(64);
  qcse::cuda::Gate* const gate = shared_gates();
  out[thread()] = thread();
  if (thread() == 0) qcse::cuda::gate_prepare(gate, 32);
  __syncthreads();
  if (thread() < 32) {
    qcse::cuda::copy_async<4>(&s[thread()], &out[thread()]);
    s[32 + thread()] = 1;
    qcse::cuda::gate_arrive_after_copies(gate);
  } else {
    qcse::cuda::gate_wait(gate, 0);
    out[thread()] = s[63 - thread()] + s[thread()];
  }
}
void copies_are_not_the_threads_own(int* out) {
  int* const s = shared_ints(64);
  qcse::cuda::Gate* const gate = shared_gates();
  out[thread()] = thread();
  if (thread() == 0) qcse::cuda::gate_prepare(gate, 64);
  __syncthreads();
  qcse::cuda::copy_async<4>(&s[thread()], &out[thread()]);
  qcse::cuda::gate_arrive_after_copies(gate);
  out[thread()] = s[thread()];
}
void filled_over_readers(int* out) {
  int* const s = shared_ints(64);
  qcse::cuda::Gate* const gates = shared_gates();
  if (thread() < 2) qcse::cuda::gate_prepare(gates + thread(), 32);
  __syncthreads();
  for (int turn = 0; turn < 2; ++turn) {
    if (thread() < 32) {
      s[thread()] = turn;
      qcse::cuda::gate_arrive(gates + turn);
    } else {
      qcse::cuda::gate_wait(gates + turn, 0);
      out[thread() - 32] = s[63 - thread()];
    }
  }
}

struct Entry {
  const char* name;
  void (*kernel)(int*);
  unsigned blocks, threads;
  size_t shared_ints;
};
#define KERNEL(name, blocks, threads, shared) {#name, name, blocks, threads, shared}
constexpr Entry kKernels[] = {
    KERNEL(shuffles, 1, 32, 0),
    KERNEL(votes, 1, 32, 0),
    KERNEL(half_warp_vote, 1, 32, 0),
    KERNEL(barrier_votes, 1, 64, 0),
    KERNEL(reverse_block, 3, 64, 64),
    KERNEL(reverse_warp, 1, 32, 32),
    KERNEL(atomic_sum, 3, 64, 1),
    KERNEL(copied, 3, 64, 64),
    KERNEL(last_block, 6, 32, 1),
    KERNEL(handed_over, 1, 64, 176),
    KERNEL(copied_in_turns, 1, 64, 176),
    KERNEL(peeked, 1, 64, 176),
    KERNEL(no_barrier, 1, 64, 64),
    KERNEL(no_second_barrier, 1, 64, 64),
    KERNEL(shuffle_is_no_barrier, 1, 32, 32),
    KERNEL(plain_sum, 1, 64, 1),
    KERNEL(same_element, 2, 1, 0),
    KERNEL(barrier_in_branch, 1, 64, 0),
    KERNEL(barrier_after_return, 1, 64, 0),
    KERNEL(barriers_differ_in_number, 1, 64, 0),
    KERNEL(vote_in_branch, 1, 32, 0),
    KERNEL(not_in_own_mask, 1, 32, 0),
    KERNEL(shuffle_from_outside_mask, 1, 32, 0),
    KERNEL(past_shared_array, 1, 64, 80),
    KERNEL(before_shared_array, 1, 64, 80),
    KERNEL(past_output, 2, 32, 0),
    KERNEL(shared_not_written, 1, 64, 64),
    KERNEL(global_not_written, 1, 64, 0),
    KERNEL(shared_too_large, 1, 64, 64),
    KERNEL(host_memory, 1, 32, 0),
    KERNEL(misaligned, 1, 32, 0),
    KERNEL(copy_not_awaited, 1, 64, 64),
    KERNEL(copy_without_barrier, 1, 64, 64),
    KERNEL(copy_over_readers, 1, 64, 64),
    KERNEL(last_block_without_release, 6, 32, 1),
    KERNEL(last_block_without_acquire, 6, 32, 1),
    KERNEL(gate_not_waited_for, 1, 64, 176),
    KERNEL(gate_not_prepared, 1, 64, 176),
    KERNEL(gate_prepared_without_barrier, 1, 64, 176),
    KERNEL(gate_that_never_opens, 1, 64, 176),
    KERNEL(gate_that_opens_early, 1, 64, 176),
    KERNEL(gate_of_the_opening_before, 1, 64, 176),
    KERNEL(arrival_before_the_write, 1, 64, 176),
    KERNEL(turns_without_order, 1, 64, 176),
    KERNEL(turns_without_copies, 1, 64, 176),
    KERNEL(copies_bring_nothing_else, 1, 64, 176),
    KERNEL(copies_are_not_the_threads_own, 1, 64, 176),
    KERNEL(filled_over_readers, 1, 64, 176),
};

}  // namespace

bool run_self_kernel(const char* name, int* out, int elements) {
  for (const Entry& entry : kKernels) {
    if (std::strcmp(entry.name, name) != 0) continue;
    if (std::strncmp(name, "last_block", 10) == 0) {
      cudaMemsetAsync(out, 0, static_cast<size_t>(elements) * sizeof(int), nullptr);
    }
    const cudaError_t status = launch_kernel(entry.kernel, dim3(entry.blocks), dim3(entry.threads),
                                             entry.shared_ints * sizeof(int), nullptr, out);
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
    return true;
  }
  return false;
}

}  // namespace emulator

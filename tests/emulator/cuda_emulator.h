// Runs CUDA C++ kernels on the CPU: a host compiler includes this in place of <cuda_runtime.h>. Each CUDA thread is a
// fiber; emulator.cpp schedules the fibers in an order drawn from a seed and completes barriers, votes and shuffles;
// checker.cpp receives every load and store of the kernel and applies CUDA's rules to it.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

// --- Language -------------------------------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// A bare `__shared__` would be memory that nobody watches.
#define __shared__ static_assert(false, "take shared memory through qcse::cuda::shared_array");

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern uint3 threadIdx, blockIdx;  // the scheduler rewrites them whenever it switches fibers
extern dim3 blockDim, gridDim;

// --- What a test may set and learn ----------------------------------------------------------------------------------
namespace emulator {

enum class Kind {
  kNone,
  kBarrierDivergence,
  kWarpDivergence,
  kBadMask,
  kDeadlock,
  kRace,
  kOutOfBounds,
  kUninitialised,
  kCopyPending,
  kHostAccess,
  kMisaligned,
  kSharedMemory,
};
const char* name_of(Kind kind);

struct Error : std::runtime_error {
  Error(Kind kind_, const std::string& message)
      : std::runtime_error(std::string(name_of(kind_)) + ": " + message), kind(kind_) {}
  Kind kind;
};

struct Config {
  uint64_t seed = 0;  // 0: threads in order; 1: newest first; others: random orders, several blocks at a time
  bool checks = true;
  int multiprocessors = 8;  // what the emulated device says of itself
  size_t shared_bytes = 227 * 1024;
};
Config& config();

uint64_t accesses_so_far();  // loads and stores of kernels to device memory, a measure of the work done
uint64_t launches_so_far();  // kernels, and calls of libraries, each of which counts as one
void library_call();         // by what stands in for a library

// Device memory: unwritten bytes are known as such, and each allocation has a red zone on either side.
void* allocate(size_t bytes);
void release(void* pointer);
void write(void* device, const void* host, size_t bytes);

// --- Entry points of the device functions below ---------------------------------------------------------------------
struct Site {
  const char* file;
  int line;
};
#define EMULATOR_SITE ::emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

enum class Vote {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAll,
  kAny,
  kAdd,
  kMin,
  kMax,
  kOr,
  kMatrix
};
enum class Barrier { kPlain, kCount, kAnd, kOr };
uint64_t vote(Vote vote, unsigned mask, uint64_t value, int operand, Site site);
int barrier(Barrier kind, int predicate, Site site);
void* shared_array(size_t offset, size_t bytes);
void require_alignment(const void* pointer, size_t bytes);
unsigned half_bits(float a);
float half_value(unsigned bits);
// The tensor core's product for one lane: operands, and the sum that it gives back. Products are exact; the result errs
// by as much as a GPU may (csrc/knn/cuda/screen.h has the model), upwards, downwards or at random by the seed.
struct MatrixLane {
  const unsigned* a;
  const unsigned* b;
  float* sum;
};
void multiply_halves(float* sum, const unsigned* a, const unsigned* b,
                     Site site = {__builtin_FILE(), __builtin_LINE()});
void fence();
void before_atomic(void* pointer, size_t bytes);
void copy_async(void* shared, const void* global, size_t bytes, Site site);
void copies_commit();
void copies_wait(unsigned but_newest);
void gate_prepare(uint64_t* gate, unsigned arrivals);
void gate_arrive(uint64_t* gate);
void gate_arrive_after_copies(uint64_t* gate);
bool gate_passed(uint64_t* gate, unsigned parity);
void gate_wait(uint64_t* gate, unsigned parity, Site site = {__builtin_FILE(), __builtin_LINE()});
unsigned add_in_order(unsigned* counter, unsigned value);
void kernel_begins();
void run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);
size_t shared_limit(const void* kernel);
// Stricter than CUDA: what was raised must not be lowered, for another thread's launch may count on it.
void set_shared_limit(const void* kernel, size_t bytes);
void forget_shared_limits();  // the device is another one from now on

template <typename T>
uint64_t to_bits(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
// Not instrumented: an atomic access is reported as such by before_atomic, and not as an ordinary one beside it.
template <typename T, typename Change>
__attribute__((noinline, no_sanitize("thread"))) T atomic(T* pointer, const Change& change) {
  before_atomic(pointer, sizeof(T));
  const T old = *pointer;
  *pointer = change(old);
  return old;
}

}  // namespace emulator

// --- Barriers, votes, shuffles --------------------------------------------------------------------------------------
inline void __syncthreads(EMULATOR_SITE) { emulator::barrier(emulator::Barrier::kPlain, 0, site); }
inline int __syncthreads_count(int p, EMULATOR_SITE) { return emulator::barrier(emulator::Barrier::kCount, p, site); }
inline int __syncthreads_and(int p, EMULATOR_SITE) { return emulator::barrier(emulator::Barrier::kAnd, p, site); }
inline int __syncthreads_or(int p, EMULATOR_SITE) { return emulator::barrier(emulator::Barrier::kOr, p, site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  emulator::vote(emulator::Vote::kSync, mask, 0, 0, site);
}
inline unsigned __ballot_sync(unsigned mask, int p, EMULATOR_SITE) {
  return static_cast<unsigned>(emulator::vote(emulator::Vote::kBallot, mask, p != 0, 0, site));
}
inline int __all_sync(unsigned mask, int p, EMULATOR_SITE) {
  return static_cast<int>(emulator::vote(emulator::Vote::kAll, mask, p != 0, 0, site));
}
inline int __any_sync(unsigned mask, int p, EMULATOR_SITE) {
  return static_cast<int>(emulator::vote(emulator::Vote::kAny, mask, p != 0, 0, site));
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, EMULATOR_SITE) {
  return emulator::from_bits<T>(emulator::vote(emulator::Vote::kShuffle, mask, emulator::to_bits(value), source, site));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, EMULATOR_SITE) {
  return emulator::from_bits<T>(
      emulator::vote(emulator::Vote::kShuffleUp, mask, emulator::to_bits(value), static_cast<int>(by), site));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, EMULATOR_SITE) {
  return emulator::from_bits<T>(
      emulator::vote(emulator::Vote::kShuffleDown, mask, emulator::to_bits(value), static_cast<int>(by), site));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, EMULATOR_SITE) {
  return emulator::from_bits<T>(
      emulator::vote(emulator::Vote::kShuffleXor, mask, emulator::to_bits(value), lanes, site));
}
inline int __reduce_add_sync(unsigned mask, int value, EMULATOR_SITE) {
  return static_cast<int>(emulator::vote(emulator::Vote::kAdd, mask, static_cast<uint32_t>(value), 0, site));
}
inline int __reduce_min_sync(unsigned mask, int value, EMULATOR_SITE) {
  return static_cast<int>(emulator::vote(emulator::Vote::kMin, mask, static_cast<uint32_t>(value), 0, site));
}
inline int __reduce_max_sync(unsigned mask, int value, EMULATOR_SITE) {
  return static_cast<int>(emulator::vote(emulator::Vote::kMax, mask, static_cast<uint32_t>(value), 0, site));
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, EMULATOR_SITE) {
  return static_cast<unsigned>(emulator::vote(emulator::Vote::kOr, mask, value, 0, site));
}

// --- Fences, atomics, asynchronous copies, scalar functions ---------------------------------------------------------
inline void __threadfence() { emulator::fence(); }

template <typename T>
T atomicAdd(T* pointer, T value) {
  return emulator::atomic(pointer, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicOr(T* pointer, T value) {
  return emulator::atomic(pointer, [=](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicMin(T* pointer, T value) {
  return emulator::atomic(pointer, [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicMax(T* pointer, T value) {
  return emulator::atomic(pointer, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicExch(T* pointer, T value) {
  return emulator::atomic(pointer, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* pointer, T expected, T value) {
  return emulator::atomic(pointer, [=](T old) { return old == expected ? value : old; });
}

inline void __pipeline_memcpy_async(void* shared, const void* global, size_t bytes, EMULATOR_SITE) {
  emulator::copy_async(shared, global, bytes, site);
}
inline void __pipeline_commit() { emulator::copies_commit(); }
inline void __pipeline_wait_prior(unsigned but_newest) { emulator::copies_wait(but_newest); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }

// --- The part of the runtime that launchers use ---------------------------------------------------------------------
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeRelaxed = 2 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
  }
  return "unrecognized error code";
}
// The thread's last error stays until somebody asks for it.
inline cudaError_t& emulated_last_error() {
  static thread_local cudaError_t last = cudaSuccess;
  return last;
}
inline cudaError_t emulated_failure(cudaError_t error) { return emulated_last_error() = error; }
inline cudaError_t cudaGetLastError() { return std::exchange(emulated_last_error(), cudaSuccess); }
inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : emulated_failure(cudaErrorInvalidValue);
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = emulator::config().multiprocessors; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 0; break;  // of no generation that was ever measured
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(emulator::config().shared_bytes); break;
  }
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static thread_local cudaStreamCaptureMode now = cudaStreamCaptureModeGlobal;
  std::swap(now, *mode);
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > emulator::config().shared_bytes) {
    return emulated_failure(cudaErrorInvalidValue);
  }
  emulator::set_shared_limit(kernel, static_cast<size_t>(bytes));
  return cudaSuccess;
}
// Work enqueued on a stream is done at once: there is one stream.
inline cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  const std::string filled(bytes, static_cast<char>(value));
  emulator::write(pointer, filled.data(), bytes);
  return cudaSuccess;
}
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(Parameters...), const Arguments&... given) {
  const uint64_t threads = uint64_t{c->blockDim.x} * c->blockDim.y * c->blockDim.z;
  if (threads == 0 || threads > 1024 || c->gridDim.x == 0 || c->gridDim.x > 0x7fffffffu || c->gridDim.y == 0 ||
      c->gridDim.y > 65535 || c->gridDim.z == 0 || c->gridDim.z > 65535) {
    return emulated_failure(cudaErrorInvalidConfiguration);
  }
  if (c->dynamicSmemBytes > emulator::shared_limit(reinterpret_cast<const void*>(kernel))) {
    return emulated_failure(cudaErrorInvalidValue);
  }
  const std::tuple<std::remove_cv_t<Parameters>...> parameters{static_cast<Parameters>(given)...};
  emulator::run("kernel", c->gridDim, c->blockDim, c->dynamicSmemBytes, [&] {
    const auto own = parameters;  // every thread has its own copy, on its own stack
    const auto own_kernel = kernel;
    emulator::kernel_begins();
    std::apply(own_kernel, own);
  });
  return cudaSuccess;
}

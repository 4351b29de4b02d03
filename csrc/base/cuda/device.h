// One source, two compilers: nvcc builds the kernels for GPUs, a host compiler builds them for the emulator in
// tests/emulator, which defines QCSE_EMULATED_CUDA. Everything that differs between the two worlds is in this header.
//
// Rules that keep a kernel fit for both: launch with `launch_kernel`, take shared memory through SharedLayout and
// shared_array, fuse with fma_rn, take roots with sqrt_rn, divide with div_rn, and hide any other special instruction
// behind a wrapper here that has a twin in the emulator.
#pragma once
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>
#elif defined(QCSE_EMULATED_CUDA)
#include "cuda_emulator.h"
#else
#error "the kernels are compiled by nvcc or, for the emulator, with QCSE_EMULATED_CUDA"
#endif

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/cuda/launch.h"

namespace qcse::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kWarp = 32;

// --- Arithmetic with one rounding, the same on every device ---------------------------------------------------------
#if defined(__CUDACC__)
__device__ __forceinline__ float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ float sqrt_rn(float a) { return __fsqrt_rn(a); }
__device__ __forceinline__ double sqrt_rn(double a) { return __dsqrt_rn(a); }
__device__ __forceinline__ float div_rn(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ double div_rn(double a, double b) { return __ddiv_rn(a, b); }
#else
inline float fma_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float sqrt_rn(float a) { return __builtin_sqrtf(a); }
inline double sqrt_rn(double a) { return __builtin_sqrt(a); }
inline float div_rn(float a, float b) { return a / b; }
inline double div_rn(double a, double b) { return a / b; }
#endif

template <typename T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float kMax = FLT_MAX;
  static constexpr float kMinNormal = FLT_MIN;
};
template <>
struct Limits<double> {
  static constexpr double kMax = DBL_MAX;
  static constexpr double kMinNormal = DBL_MIN;
};

template <typename T>
__device__ __forceinline__ T infinity() {
  return static_cast<T>(INFINITY);
}
template <typename T>
__device__ __forceinline__ T not_a_number() {
  return static_cast<T>(NAN);
}
__device__ __forceinline__ float magnitude(float a) { return fabsf(a); }
__device__ __forceinline__ double magnitude(double a) { return fabs(a); }
template <typename T>
__device__ __forceinline__ bool is_finite(T a) {
  return magnitude(a) <= Limits<T>::kMax;  // false for NaN
}
// Neither argument is ever NaN where these are used.
template <typename T>
__device__ __forceinline__ T smaller(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
__device__ __forceinline__ T larger(T a, T b) {
  return a > b ? a : b;
}
__device__ __forceinline__ float smaller(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ double smaller(double a, double b) { return fmin(a, b); }
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// --- Half precision and the tensor cores ----------------------------------------------------------------------------
// The bits of the nearest half-precision number, for magnitudes up to 65504, and the number of these bits.
#if defined(__CUDACC__)
__device__ __forceinline__ unsigned half_bits(float a) { return __half_as_ushort(__float2half_rn(a)); }
__device__ __forceinline__ float half_value(unsigned bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
#else
inline unsigned half_bits(float a) { return emulator::half_bits(a); }
inline float half_value(unsigned bits) { return emulator::half_value(bits); }
#endif

// sum += A B for a 16 x 16 matrix A and a 16 x 8 matrix B of halves, by a whole warp. Lane 4 g + t holds rows g and g +
// 8 of A in a[0], a[2] and a[1], a[3], column g of B in b[0], b[1], and of the sum rows g and g + 8 (sum[0], sum[1] and
// sum[2], sum[3]) at columns 2 t and 2 t + 1. Which 16 products make up an element does not depend on their order, so
// the lane's two words may be any two of the row's eight, as long as A and B agree.
__device__ __forceinline__ void multiply_halves(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(__CUDACC__)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulator::multiply_halves(sum, a, b);
#endif
}

// --- Shared memory --------------------------------------------------------------------------------------------------
// N values that travel in one or two vector instructions.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
#if !defined(__CUDACC__)
  emulator::require_alignment(p, alignof(Pack<T, N>));
#endif
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <int N, typename T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack) {
#if !defined(__CUDACC__)
  emulator::require_alignment(p, alignof(Pack<T, N>));
#endif
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Host and device compute the same layout: the host for the size of the launch, the device for the addresses. In the
// emulator a red zone follows each array, so that running past one array into the next is found.
class SharedLayout {
 public:
  template <typename T>
  __host__ __device__ constexpr size_t add(size_t count) {
    const size_t at = end_;
    end_ = (at + count * sizeof(T) + kRedZone + 15) / 16 * 16;
    return at;
  }
  __host__ __device__ constexpr size_t bytes() const { return end_; }

 private:
#if defined(__CUDACC__)
  static constexpr size_t kRedZone = 0;
#else
  static constexpr size_t kRedZone = 64;
#endif
  size_t end_ = 0;
};

// The array of `count` elements at `offset` of a SharedLayout.
template <typename T>
__device__ __forceinline__ T* shared_array(size_t offset, size_t count) {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char qcse_shared_memory[];
  static_cast<void>(count);
  return reinterpret_cast<T*>(qcse_shared_memory + offset);
#else
  return static_cast<T*>(emulator::shared_array(offset, count * sizeof(T)));
#endif
}

// Copies kBytes (4, 8 or 16, both addresses aligned to it) from global to shared memory in the background. The data is
// there for the calling thread after copies_wait(), and for the block after the barrier that follows.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, kBytes);
}
__device__ __forceinline__ void copies_commit() { __pipeline_commit(); }
__device__ __forceinline__ void copies_wait() { __pipeline_wait_prior(0); }

// --- Order among the warps of a block, without a barrier of all ------------------------------------------------------
// A gate in shared memory opens each time so many arrivals have come, and whoever passes it sees what was done before
// them. Openings count from 0. A gate knows the latest alone, and of those asked for only whether they are even: so
// nobody may ask for one before the latest, nor for one beyond the next.
using Gate = uint64_t;

#if defined(__CUDACC__)
__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
#endif

// By one thread; a barrier of the block follows.
__device__ __forceinline__ void gate_prepare(Gate* gate, unsigned arrivals) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(gate)), "r"(arrivals) : "memory");
#else
  emulator::gate_prepare(gate, arrivals);
#endif
}

__device__ __forceinline__ void gate_arrive(Gate* gate) {
#if defined(__CUDACC__)
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(gate)) : "memory");
#else
  emulator::gate_arrive(gate);
#endif
}

// An arrival that comes once the copies have landed that the calling thread began so far. It brings them alone: what
// else the thread did needs an arrival of its own.
__device__ __forceinline__ void gate_arrive_after_copies(Gate* gate) {
#if defined(__CUDACC__)
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(gate)) : "memory");
#else
  emulator::gate_arrive_after_copies(gate);
#endif
}

// Whether the gate has opened for this time; if so, it is passed.
__device__ __forceinline__ bool gate_passed(Gate* gate, unsigned opening) {
#if defined(__CUDACC__)
  unsigned open;
  asm volatile("{ .reg .pred open; mbarrier.test_wait.parity.shared.b64 open, [%1], %2; selp.u32 %0, 1, 0, open; }"
               : "=r"(open)
               : "r"(shared_address(gate)), "r"(opening & 1)
               : "memory");
  return open != 0;
#else
  return emulator::gate_passed(gate, opening & 1);
#endif
}

__device__ __forceinline__ void gate_wait(Gate* gate, unsigned opening) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
  unsigned open;
  do {  // each try suspends the warp for a while, without issue slots; the gate's opening ends it
    asm volatile("{ .reg .pred open; mbarrier.try_wait.parity.shared.b64 open, [%1], %2; selp.u32 %0, 1, 0, open; }"
                 : "=r"(open)
                 : "r"(shared_address(gate)), "r"(opening & 1)
                 : "memory");
  } while (open == 0);
#elif defined(__CUDACC__)
  while (!gate_passed(gate, opening)) __nanosleep(32);  // at most 64 ns late, and the slots are left to other warps
#else
  emulator::gate_wait(gate, opening & 1);
#endif
}

// Adds to a counter in shared memory and returns what it was before; whoever adds sees what was done before the earlier
// additions. A plain store, which may begin the count anew, ends that.
__device__ __forceinline__ unsigned add_in_order(unsigned* counter, unsigned value) {
#if defined(__CUDACC__)
  unsigned before;
  asm volatile("atom.acq_rel.cta.shared.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "r"(shared_address(counter)), "r"(value)
               : "memory");
  return before;
#else
  return emulator::add_in_order(counter, value);
#endif
}

// --- Launching ------------------------------------------------------------------------------------------------------
// While it lives, this thread may do what a stream capture elsewhere forbids: the first launch of a kernel loads its
// code, which the driver counts among the unsafe calls, although nothing of it belongs to the graph.
class CaptureRelaxed {
 public:
  CaptureRelaxed() : changed_(cudaThreadExchangeStreamCaptureMode(&mode_) == cudaSuccess) {}
  ~CaptureRelaxed() {
    if (changed_) cudaThreadExchangeStreamCaptureMode(&mode_);
  }
  CaptureRelaxed(const CaptureRelaxed&) = delete;
  CaptureRelaxed& operator=(const CaptureRelaxed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
  bool changed_;
};

// Raises the kernel's limit of dynamic shared memory where the default of 48 KiB is too small, always to the device's:
// all threads of the process share it, so a lower one could fail a launch of another thread that asked for more.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                          cudaStream_t stream, const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024) {
    int device = 0, most = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess) {
      status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    if (status == cudaSuccess) {
      status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    most);
    }
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

inline constexpr const char* kTooManyBlocks = "the batch needs more than 2147483647 blocks";

// What failed is told here and not kept by the runtime, where a later call that succeeds would find it: CUB takes the
// thread's last error for its own, and one that it meets at its first call for the device's for good.
inline Status status_of(const char* kernel, cudaError_t error) {
  if (error == cudaSuccess) return {kernel, nullptr};
  static_cast<void>(cudaGetLastError());
  return {kernel, cudaGetErrorString(error)};
}

// Hands out pieces of the workspace; with a null base it only measures.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

}  // namespace qcse::cuda

// What the laboratory needs of a GPU: memory, problems in it, events, graphs, and the ceilings of the hardware.
#pragma once
#if defined(QCSE_EMULATED_CUDA)
#include "lab_runtime.h"
#else
#include <cuda_runtime.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/cuda/device.h"
#include "knn/cuda/launch.h"
#include "lab_judge.h"

namespace lab {

using qcse::cuda::Device;
using qcse::cuda::Status;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}
inline void check(const Status& status) {
  if (status.error != nullptr) throw std::runtime_error(std::string(status.kernel) + ": " + status.error);
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// Device memory, freed at the end.
class Memory {
 public:
  explicit Memory(size_t bytes) { check(cudaMalloc(&at_, std::max<size_t>(bytes, 1)), "cudaMalloc"); }
  Memory(const void* from, size_t bytes) : Memory(bytes) {
    check(cudaMemcpy(at_, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~Memory() { cudaFree(at_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <typename T>
  T* as(size_t offset = 0) const {
    return static_cast<T*>(at_) + offset;
  }

 private:
  void* at_ = nullptr;
};

// A problem in the GPU's memory, with `copies` of what it searches.
template <typename T>
class OnDevice {
 public:
  OnDevice(const KnnProblem<T>& p, int copies)
      : host_(p),
        states_(copies * rows() * p.dim * sizeof(T)),
        values_(copies * rows() * sizeof(T)),
        ref_states_(p.ref_states, p.self_join ? 0 : p.batch * p.refs * p.dim * sizeof(T)),
        ref_values_(p.ref_values, p.self_join ? 0 : p.batch * p.refs * sizeof(T)),
        self_index_(p.self_index, p.self_index == nullptr ? 0 : rows() * sizeof(int64_t)),
        radius_(rows() * sizeof(T)),
        count_(rows() * sizeof(int64_t)),
        entropy_(rows() * sizeof(T)) {
    for (int copy = 0; copy < copies; ++copy) {
      check(cudaMemcpy(states_.as<T>(copy * rows() * p.dim), p.states, rows() * p.dim * sizeof(T),
                       cudaMemcpyHostToDevice),
            "cudaMemcpy");
      check(cudaMemcpy(values_.as<T>(copy * rows()), p.values, rows() * sizeof(T), cudaMemcpyHostToDevice),
            "cudaMemcpy");
    }
    forget();
  }
  int64_t rows() const { return host_.batch * host_.queries; }
  KnnProblem<T> problem(int copy) const {
    KnnProblem<T> p = host_;
    p.states = states_.template as<T>(copy * rows() * p.dim);
    p.values = values_.template as<T>(copy * rows());
    p.ref_states = p.self_join ? p.states : ref_states_.template as<T>();
    p.ref_values = p.self_join ? p.values : ref_values_.template as<T>();
    p.self_index = p.self_index == nullptr ? nullptr : self_index_.template as<int64_t>();
    p.radius = radius_.template as<T>();
    p.count = count_.template as<int64_t>();
    p.entropy = entropy_.template as<T>();
    return p;
  }
  // Overwrites the outputs, so that an answer that was never written is noticed. Waits: neither this nor the copies
  // above are in order with what a non-blocking stream does next.
  void forget() const {
    check(cudaMemset(radius_.template as<T>(), 0x7e, rows() * sizeof(T)), "cudaMemset");
    check(cudaMemset(count_.template as<int64_t>(), 0x7e, rows() * sizeof(int64_t)), "cudaMemset");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  Answer<T> answer() const {
    Answer<T> a;
    a.radius.resize(rows());
    a.count.resize(rows());
    check(cudaMemcpy(a.radius.data(), radius_.template as<T>(), rows() * sizeof(T), cudaMemcpyDeviceToHost),
          "cudaMemcpy");
    check(cudaMemcpy(a.count.data(), count_.template as<int64_t>(), rows() * sizeof(int64_t), cudaMemcpyDeviceToHost),
          "cudaMemcpy");
    return a;
  }

 private:
  KnnProblem<T> host_;
  Memory states_, values_, ref_states_, ref_values_, self_index_, radius_, count_, entropy_;
};

struct Gpu {
  Device device;
  std::string name;
  size_t cache_bytes = 0;
  cudaStream_t stream = nullptr;

  void wait(const char* what) const { check(cudaStreamSynchronize(stream), what); }
};

// The GPU, or why there is none.
inline std::optional<Gpu> find_gpu() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();
    std::printf("no GPU here (%s): the CPU half runs alone\n",
                status != cudaSuccess ? cudaGetErrorString(status) : "no device");
    return std::nullopt;
  }
  Gpu gpu;
  check(qcse::cuda::select_device(0, &gpu.device));
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  gpu.name = properties.name;
  gpu.cache_bytes = properties.l2CacheSize;
  check(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking), "cudaStreamCreate");
  return gpu;
}

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  double since(const Event& earlier) const {
    float ms = 0;
    check(cudaEventSynchronize(event_), "cudaEventSynchronize");
    check(cudaEventElapsedTime(&ms, earlier.event_, event_), "cudaEventElapsedTime");
    return ms;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// Milliseconds of what `enqueue` puts on the stream.
template <typename F>
double timed(const Gpu& gpu, const F& enqueue) {
  Event begin, end;
  begin.record(gpu.stream);
  enqueue();
  end.record(gpu.stream);
  return end.since(begin);
}

// `calls` calls in a graph.
class Graph {
 public:
  template <typename F>
  Graph(const Gpu& gpu, int calls, const F& call) {
    check(cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      for (int i = 0; i < calls; ++i) call(i);
    } catch (...) {
      cudaStreamEndCapture(gpu.stream, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check(cudaStreamEndCapture(gpu.stream, &graph), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "cudaGraphInstantiate");
  }
  ~Graph() { cudaGraphExecDestroy(exec_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void replay(const Gpu& gpu) const { check(cudaGraphLaunch(exec_, gpu.stream), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

// --- Ceilings -------------------------------------------------------------------------------------------------------
// Eight chains of one difference and one fused multiply-add, as the exact kernels have them for each dimension of a
// pair.
static __global__ void differences(float* out, int rounds) {
  float sum[8], x = static_cast<float>(threadIdx.x);
  for (int i = 0; i < 8; ++i) sum[i] = static_cast<float>(i);
#pragma unroll 4
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float difference = x - sum[i];
      sum[i] = qcse::cuda::fma_rn(difference, 1e-3f, sum[i]);
    }
  }
  float total = 0;
  for (int i = 0; i < 8; ++i) total += sum[i];
  if (total == 12345.678f) *out = total;  // never, but the compiler can't know
}

// Four independent chains of 16 x 8 x 16 products of halves with single-precision sums.
static __global__ void half_products(float* out, int rounds) {
  float sum[4][4] = {};
  unsigned a[4] = {threadIdx.x, threadIdx.x * 3, 0x3c003c00u, 0x3c003c00u}, b[2] = {0x3c003c00u, threadIdx.x};
#pragma unroll 4
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < 4; ++i) qcse::cuda::multiply_halves(sum[i], a, b);
  }
  float total = 0;
  for (auto& row : sum) total += row[0] + row[1] + row[2] + row[3];
  if (total == 12345.678f) *out = total;
}

struct Ceilings {
  double copied_gb_s, differences_per_s, half_products_per_s;
};

#if defined(QCSE_EMULATED_CUDA)
inline constexpr size_t kCopied = 1 << 10;
inline constexpr int kRounds = 1, kWarmUps = 1;
#else
inline constexpr size_t kCopied = size_t{1} << 30;
inline constexpr int kRounds = 1 << 14, kWarmUps = 200;
#endif
inline constexpr unsigned kCeilingThreads = 512;

inline unsigned ceiling_blocks(const Gpu& gpu) { return static_cast<unsigned>(gpu.device.multiprocessors) * 4; }

inline void run_ceiling(const Gpu& gpu, void (*kernel)(float*, int), float* out) {
  check(
      qcse::cuda::launch_kernel(kernel, dim3(ceiling_blocks(gpu)), dim3(kCeilingThreads), 0, gpu.stream, out, kRounds),
      "launch");
}

// Some tenths of a second of work, so that the clocks are up: an idle GPU runs at a fraction of them.
inline void warm_up(const Gpu& gpu) {
  const Memory out(sizeof(float));
  for (int i = 0; i < kWarmUps; ++i) run_ceiling(gpu, half_products, out.as<float>());
  gpu.wait("warm-up");
}

inline Ceilings measure_ceilings(const Gpu& gpu) {
  const Memory from(kCopied), to(kCopied), out(sizeof(float));
  std::vector<double> copies, singles, halves;
  for (int i = 0; i < 7; ++i) {
    copies.push_back(timed(gpu, [&] {
      check(cudaMemcpyAsync(to.as<char>(), from.as<char>(), kCopied, cudaMemcpyDeviceToDevice, gpu.stream), "copy");
    }));
    singles.push_back(timed(gpu, [&] { run_ceiling(gpu, differences, out.as<float>()); }));
    halves.push_back(timed(gpu, [&] { run_ceiling(gpu, half_products, out.as<float>()); }));
  }
  gpu.wait("ceilings");
  const double thread_rounds = 1.0 * kCeilingThreads * ceiling_blocks(gpu) * kRounds;
  return {2e-6 * static_cast<double>(kCopied) / median(copies), 8e3 * thread_rounds / median(singles),
          4 * 4096e3 * thread_rounds / 32 / median(halves)};
}

}  // namespace lab

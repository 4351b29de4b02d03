// The laboratory: the search's CUDA kernels without torch and without Python, for a machine whose minutes count. Built
// beforehand (make gpu-kit), carried as one file. The CPU operator is the judge: radius and count must have its bits.
//
//   qcse_lab facts    what the GPU is, and its three ceilings, measured: copies, differences and sums, tensor cores
//   qcse_lab check    random problems of every kind on every kernel           [--problems 40] [--seed 0]
//   qcse_lab search   the published sizes on every kernel, warm and cold      [--sizes 4096x17] [--data normal] [--k
//   12] qcse_lab tune     every variant that variants.h holds, at the shapes of tune.py qcse_lab profile  one launch of
//   each kernel that a profiler is to look at qcse_lab dump     points and the CPU's answer as raw files in a folder
//   --sizes 500x17 --data normal --folder F
//
// One JSON object a line: results hold "implementation", facts do not. --budget S begins nothing new after S seconds.
// Times are of graph replays: as many calls in one graph as take some 20 ms, 20 at most, so that the start of the
// replay does not count. Warm: the calls read the same points. Cold: each reads a copy of its own, and the second-level
// cache has been overwritten before each replay. Without a GPU each command does its CPU half and says so.
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <thread>

#include "cpu/knn_cpu.h"
#include "cuda/knn_cuda.h"
#include "lab_data.h"

namespace {

using lab::Points;
using qcse::KnnProblem;
using qcse::cuda::Choice;
using qcse::cuda::Device;
using qcse::cuda::Path;
using qcse::cuda::Status;
using qcse::cuda::Variant;
using Clock = std::chrono::steady_clock;

constexpr int64_t kJudged = 512;  // rows of a problem that the CPU solves too
constexpr int kMaxCalls = 20;
const std::map<std::string, Path> kKernels = {
    {"small", Path::kSmall}, {"large", Path::kLarge}, {"screened", Path::kScreened}};

// --- Output and errors ----------------------------------------------------------------------------------------------
// A flat JSON object.
class Line {
 public:
  Line& add(const std::string& key, const std::string& value) { return raw(key, '"' + value + '"'); }
  Line& add(const std::string& key, const char* value) { return add(key, std::string(value)); }
  Line& add(const std::string& key, bool value) { return raw(key, value ? "true" : "false"); }
  Line& add(const std::string& key, int64_t value) { return raw(key, std::to_string(value)); }
  Line& add(const std::string& key, int value) { return raw(key, std::to_string(value)); }
  Line& add(const std::string& key, double value) {
    std::ostringstream text;
    text.precision(6);
    text << value;
    return raw(key, std::isfinite(value) ? text.str() : "null");
  }
  void print() const {
    std::printf("{%s}\n", text_.c_str());
    std::fflush(stdout);
  }

 private:
  Line& raw(const std::string& key, const std::string& value) {
    text_ += (text_.empty() ? "\"" : ", \"") + key + "\": " + value;
    return *this;
  }
  std::string text_;
};

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}
void check(const Status& status) {
  if (status.error != nullptr) throw std::runtime_error(std::string(status.kernel) + ": " + status.error);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// --- The judge: the CPU operator, and for that a plain loop over all pairs
// --------------------------------------------
void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  const int64_t most = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t parts = std::clamp<int64_t>((end - begin) / std::max<int64_t>(1, grain), 1, most);
  std::vector<std::thread> threads;
  for (int64_t part = 1; part < parts; ++part) {
    threads.emplace_back(body, begin + (end - begin) * part / parts, begin + (end - begin) * (part + 1) / parts,
                         context);
  }
  body(begin, begin + (end - begin) / parts, context);
  for (std::thread& thread : threads) thread.join();
}

template <typename T>
struct Answer {
  std::vector<T> radius;
  std::vector<int64_t> count;
};

template <typename T>
Answer<T> solve_on_cpu(KnnProblem<T> problem) {
  Answer<T> answer;
  answer.radius.resize(problem.batch * problem.queries);
  answer.count.resize(problem.batch * problem.queries);
  problem.radius = answer.radius.data();
  problem.count = answer.count.data();
  problem.entropy = nullptr;
  qcse::cpu::knn(problem, {parallel_for, static_cast<int64_t>(std::max(1u, std::thread::hardware_concurrency()))});
  return answer;
}

template <typename T>
Answer<T> solve_by_brute_force(const KnnProblem<T>& p) {
  Answer<T> answer;
  const auto finite = [&](const T* state, T value) {
    bool all = std::isfinite(value);
    for (int64_t d = 0; d < p.dim; ++d) all &= std::isfinite(state[d]);
    return all;
  };
  for (int64_t row = 0; row < p.batch * p.queries; ++row) {
    const int64_t entry = row / p.queries;
    const int64_t self = p.self_join ? row % p.queries : p.self_index != nullptr ? p.self_index[row] : -1;
    std::vector<T> keys, gaps;
    for (int64_t j = 0; j < p.refs; ++j) {
      const T* const other = p.ref_states + (entry * p.refs + j) * p.dim;
      const T value = p.ref_values[entry * p.refs + j];
      if (j == self || !finite(other, value)) continue;
      T sum = 0;
      for (int64_t d = 0; d < p.dim; ++d) {
        const T difference = p.states[row * p.dim + d] - other[d];
        sum = std::fma(difference, difference, sum);
      }
      gaps.push_back(std::abs(p.values[row] - value));
      keys.push_back(std::max(std::sqrt(sum), gaps.back()));
    }
    const bool solvable = finite(p.states + row * p.dim, p.values[row]) && static_cast<int64_t>(keys.size()) >= p.k;
    T radius = std::numeric_limits<T>::quiet_NaN();
    int64_t count = -1;
    if (solvable) {
      std::nth_element(keys.begin(), keys.begin() + p.k - 1, keys.end());
      radius = keys[p.k - 1];
      count = std::count_if(gaps.begin(), gaps.end(), [&](T gap) { return gap < radius; });
    }
    answer.radius.push_back(radius);
    answer.count.push_back(count);
  }
  return answer;
}

template <typename T>
bool same_bits(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(T)) == 0;
}

// Whether `got` has the judge's bits in these rows.
template <typename T>
bool agrees(const Answer<T>& judge, const Answer<T>& got, const std::vector<int64_t>& rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!same_bits(judge.radius[i], got.radius[rows[i]]) || judge.count[i] != got.count[rows[i]]) return false;
  }
  return true;
}

// --- Problems on the GPU
// ---------------------------------------------------------------------------------------------- Device memory, freed
// at the end.
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
  // Overwrites the outputs, so that an answer that was never written is noticed.
  void forget() const {
    check(cudaMemset(radius_.template as<T>(), 0x7e, rows() * sizeof(T)), "cudaMemset");
    check(cudaMemset(count_.template as<int64_t>(), 0x7e, rows() * sizeof(int64_t)), "cudaMemset");
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
std::optional<Gpu> find_gpu() {
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

// --- Ceilings
// ----------------------------------------------------------------------------------------------------------- Eight
// chains of one difference and one fused multiply-add, as the exact kernels have them for each dimension of a pair.
__global__ void differences(float* out, int rounds) {
  float sum[8], x = static_cast<float>(threadIdx.x);
  for (int i = 0; i < 8; ++i) sum[i] = static_cast<float>(i);
#pragma unroll 4
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float difference = x - sum[i];
      sum[i] = __fmaf_rn(difference, 1e-3f, sum[i]);
    }
  }
  float total = 0;
  for (int i = 0; i < 8; ++i) total += sum[i];
  if (total == 12345.678f) *out = total;  // never, but the compiler can't know
}

// Four independent chains of 16 x 8 x 16 products of halves with single-precision sums.
__global__ void half_products(float* out, int rounds) {
  float sum[4][4] = {};
  unsigned a[4] = {threadIdx.x, threadIdx.x * 3, 0x3c003c00u, 0x3c003c00u}, b[2] = {0x3c003c00u, threadIdx.x};
#pragma unroll 4
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if __CUDA_ARCH__ >= 800
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
          "%2, "
          "%3};"
          : "+f"(sum[i][0]), "+f"(sum[i][1]), "+f"(sum[i][2]), "+f"(sum[i][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
    }
  }
  float total = 0;
  for (auto& row : sum) total += row[0] + row[1] + row[2] + row[3];
  if (total == 12345.678f) *out = total;
}

struct Ceilings {
  double copied_gb_s, differences_per_s, half_products_per_s;
};

Ceilings measure_ceilings(const Gpu& gpu) {
  const size_t bytes = size_t{1} << 30;
  const Memory from(bytes), to(bytes), out(sizeof(float));
  const int rounds = 1 << 14;
  const unsigned blocks = static_cast<unsigned>(gpu.device.multiprocessors) * 4;
  std::vector<double> copies, singles, halves;
  for (int run = 0; run < 7; ++run) {
    copies.push_back(timed(gpu, [&] {
      check(cudaMemcpyAsync(to.as<char>(), from.as<char>(), bytes, cudaMemcpyDeviceToDevice, gpu.stream), "copy");
    }));
    singles.push_back(timed(gpu, [&] { differences<<<blocks, 512, 0, gpu.stream>>>(out.as<float>(), rounds); }));
    halves.push_back(timed(gpu, [&] { half_products<<<blocks, 512, 0, gpu.stream>>>(out.as<float>(), rounds); }));
  }
  gpu.wait("ceilings");
  check(cudaGetLastError(), "ceilings");
  const double threads = 512.0 * blocks;
  return {2e-6 * static_cast<double>(bytes) / median(copies), 8e3 * threads * rounds / median(singles),
          4 * 4096e3 * threads / 32 * rounds / median(halves)};
}

// --- Measuring
// ------------------------------------------------------------------------------------------------------------
struct Shape {
  int64_t batch, queries, refs, dim;
  bool joined() const { return queries == refs; }
};

struct Options {
  std::string command;
  std::vector<Shape> sizes;
  std::vector<std::string> data;
  std::vector<int64_t> ks = {12};
  std::string folder;
  double budget = 1e9;
  int64_t problems = 40;
  uint64_t seed = 0;
  Clock::time_point start = Clock::now();

  bool over() const { return std::chrono::duration<double>(Clock::now() - start).count() > budget; }
};

// Points, the problem on them, and the judge's answer for some of its rows.
class Case {
 public:
  Case(const Shape& shape, const std::string& data, int64_t k) : shape_(shape), data_(data) {
    points_ = lab::points_of<float>(data, shape.batch * shape.refs, shape.dim, 1);
    problem_.batch = shape.batch;
    problem_.queries = shape.queries;
    problem_.refs = shape.refs;
    problem_.dim = shape.dim;
    problem_.k = k;
    problem_.ref_states = points_.states.data();
    problem_.ref_values = points_.values.data();
    problem_.self_join = shape.joined();
    if (problem_.self_join) {
      problem_.states = problem_.ref_states;
      problem_.values = problem_.ref_values;
    } else {
      own_ = lab::points_of<float>(data, shape.batch * shape.queries, shape.dim, 2);
      problem_.states = own_.states.data();
      problem_.values = own_.values.data();
    }
    // The judged rows, as many of each batch entry, as queries of a problem of their own.
    lab::Normal normal(3);
    const int64_t each = std::min(shape.queries, std::max<int64_t>(1, kJudged / shape.batch));
    std::vector<int64_t> selves;
    Points<float> asked;
    for (int64_t i = 0; i < shape.batch * each; ++i) {
      const int64_t query = each == shape.queries ? i % each : normal.below(shape.queries);
      const int64_t row = i / each * shape.queries + query;
      judged_.push_back(row);
      selves.push_back(shape.joined() ? query : -1);
      asked.states.insert(asked.states.end(), problem_.states + row * shape.dim,
                          problem_.states + (row + 1) * shape.dim);
      asked.values.push_back(problem_.values[row]);
    }
    KnnProblem<float> sample = problem_;
    sample.queries = each;
    sample.states = asked.states.data();
    sample.values = asked.values.data();
    sample.self_join = false;
    sample.self_index = selves.data();
    judge_ = solve_on_cpu(sample);
  }

  // A line with what is asked, for a result to be added.
  Line describe(const std::string& device) const {
    Line line;
    line.add("implementation", "qcse").add("device", device).add("data", data_).add("n", shape_.refs);
    line.add("batch", shape_.batch).add("queries", shape_.queries).add("dim", shape_.dim).add("k", problem_.k);
    double share = 0;
    for (const int64_t count : judge_.count) share += static_cast<double>(count) / static_cast<double>(shape_.refs);
    line.add("dtype", "float32").add("mean_count_share", share / static_cast<double>(judge_.count.size()));
    return line;
  }
  bool agrees_with(const Answer<float>& got) const { return agrees(judge_, got, judged_); }
  const KnnProblem<float>& problem() const { return problem_; }
  const Shape& shape() const { return shape_; }
  double pairs() const { return static_cast<double>(shape_.batch * shape_.queries) * static_cast<double>(shape_.refs); }

 private:
  Shape shape_;
  std::string data_;
  Points<float> points_, own_;
  KnnProblem<float> problem_;
  std::vector<int64_t> judged_;
  Answer<float> judge_;
};

std::string name_of(const Variant& v) {
  return std::to_string(v.warps) + "/" + std::to_string(v.blocks) + "/" + std::to_string(v.outer) + "/" +
         std::to_string(v.inner);
}

struct Effort {
  int runs;         // replays that are timed, at most
  double seconds;   // and for how long
  double hopeless;  // a first call that takes this many times `best` is not repeated
};

struct Measured {
  double ms;  // the median
  bool exact;
};

// Times one kernel on one case, warm or cold, and prints the record. `copies`: of the points, in `data`.
Measured measure(const Gpu& gpu, const Case& c, const OnDevice<float>& data, int copies, const std::string& kernel,
                 int variant, bool cold, const Effort& effort, double best, const Ceilings* ceilings) {
  Choice choice{kKernels.at(kernel), variant};
  const Memory workspace(qcse::cuda::workspace_bytes(c.problem(), gpu.device, choice));
  const auto call = [&](int i) {
    check(
        qcse::cuda::launch(data.problem(cold ? i : 0), gpu.device, workspace.as<unsigned char>(), gpu.stream, choice));
  };
  call(0);
  gpu.wait(kernel.c_str());
  std::vector<double> times = {timed(gpu, [&] { call(0); })};
  int calls = 1;
  std::string timing = "eager";
  data.forget();
  if (times[0] < effort.hopeless * best) {
    timing = "graph";
    calls = std::clamp(static_cast<int>(20 / std::max(times[0], 1e-3)), 1, cold ? copies : kMaxCalls);
    const Graph graph(gpu, calls, call);
    std::optional<Memory> flushed;
    if (cold) flushed.emplace(2 * gpu.cache_bytes);
    times.clear();
    graph.replay(gpu);
    const Clock::time_point start = Clock::now();
    const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
    while (static_cast<int>(times.size()) < effort.runs && (times.size() < 3 || seconds() < effort.seconds)) {
      if (cold) {
        check(cudaMemsetAsync(flushed->as<char>(), static_cast<int>(times.size() & 0xff), 2 * gpu.cache_bytes,
                              gpu.stream),
              "cudaMemsetAsync");
      }
      times.push_back(timed(gpu, [&] { graph.replay(gpu); }) / calls);
    }
  } else {
    call(0);
  }
  gpu.wait(kernel.c_str());
  const double ms = median(times);
  const Choice usual = qcse::cuda::choose(c.problem(), gpu.device);
  Line line = c.describe(gpu.name);
  const std::vector<Variant> held = qcse::cuda::variants(choice.path);
  line.add("kernel", kernel).add("variant", variant < 0 ? "rule" : name_of(held.at(variant)));
  line.add("chosen", usual.path == choice.path && usual.variant == variant);
  line.add("timing", timing).add("cache", cold ? "cold" : "warm").add("median_ms", ms);
  line.add("fastest_ms", *std::min_element(times.begin(), times.end())).add("runs", static_cast<int>(times.size()));
  const bool exact = c.agrees_with(data.answer());
  line.add("calls", calls).add("exact", exact).add("capability", gpu.device.capability);
  if (ceilings != nullptr) {
    // What the hardware needs at least where every pair is looked at.
    const double dims = c.pairs() * static_cast<double>(c.shape().dim);
    const double padded = c.pairs() * static_cast<double>((c.shape().dim + 15) / 16 * 16);
    line.add("all_pairs_exact_ms", 1e3 * dims / ceilings->differences_per_s);
    line.add("all_pairs_screen_ms", 1e3 * 2 * padded / ceilings->half_products_per_s);
  }
  line.print();
  return {ms, exact};
}

// Runs `body`, and prints what stopped it as a line of its own; false where the GPU is of no use any more.
template <typename F>
bool attempt(const std::string& what, const F& body) {
  try {
    body();
  } catch (const std::exception& error) {
    std::string text = error.what();
    for (char& letter : text) letter = letter == '"' || letter == '\\' || letter < ' ' ? ' ' : letter;
    Line().add("failed", what).add("error", text).print();
    cudaGetLastError();
    if (cudaDeviceSynchronize() != cudaSuccess) {
      std::printf("the GPU answers with errors from here on: nothing more is tried\n");
      return false;
    }
  }
  return true;
}

std::string title(const Shape& s, const std::string& data) {
  return data + " " + std::to_string(s.batch) + "x" + std::to_string(s.queries) + "x" + std::to_string(s.refs) + "x" +
         std::to_string(s.dim);
}

// --- Commands
// ---------------------------------------------------------------------------------------------------------------
int facts(const std::optional<Gpu>& gpu) {
  Line line;
  line.add("cpu_instruction_set", qcse::cpu::instruction_set());
  line.add("threads", static_cast<int>(std::thread::hardware_concurrency()));
  if (gpu) {
    int driver = 0, runtime = 0, clock = 0;
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    check(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0), "cudaDeviceGetAttribute");
    const Ceilings ceilings = measure_ceilings(*gpu);
    line.add("gpu", gpu->name).add("capability", gpu->device.capability);
    line.add("multiprocessors", gpu->device.multiprocessors).add("clock_mhz", clock / 1000);
    line.add("shared_bytes_per_block", static_cast<int64_t>(gpu->device.shared_bytes_per_block));
    line.add("cache_bytes", static_cast<int64_t>(gpu->cache_bytes)).add("driver", driver).add("runtime", runtime);
    line.add("copied_gb_per_s", ceilings.copied_gb_s).add("differences_per_s", ceilings.differences_per_s);
    line.add("half_product_flop_per_s", ceilings.half_products_per_s);
  }
  line.print();
  return 0;
}

// One random problem; owns what it points to.
template <typename T>
struct Drawn {
  Points<T> own, refs;
  std::vector<int64_t> self;
  KnnProblem<T> problem;
  std::string what;
};

template <typename T>
void draw(uint64_t seed, Drawn<T>& drawn) {
  lab::Normal normal(seed);
  constexpr int64_t kDims[] = {1, 2, 3, 5, 8, 11, 16, 17, 23, 24, 25, 29, 48, 61, 111};
  KnnProblem<T>& p = drawn.problem;
  p.batch = 1 + normal.below(3);
  p.dim = kDims[normal.below(15)];
  p.queries = 2 + normal.below(normal.uniform() < 0.3 ? 3000 : 300);
  p.self_join = normal.uniform() < 0.5;
  p.refs = p.self_join ? p.queries : 2 + normal.below(3000);
  const bool indexed = !p.self_join && normal.uniform() < 0.5;
  const int64_t candidates = p.refs - (p.self_join || indexed);
  p.k = 1 + normal.below(std::min<int64_t>(candidates, normal.uniform() < 0.5 ? 16 : 128));
  const char* const data = normal.uniform() < 0.5 ? "normal" : "trajectories";
  drawn.refs = lab::points_of<T>(data, p.batch * p.refs, p.dim, seed + 1);
  const bool rounded = normal.uniform() < 0.2, spoiled = normal.uniform() < 0.2;
  const auto spoil = [&](Points<T>& points) {
    for (T& x : points.states) x = rounded ? std::round(x) : x;
    for (T& x : points.values) x = rounded ? std::round(x) : x;
    if (!spoiled) return;
    for (size_t i = 0; i < points.values.size(); i += 7) points.values[i] = std::numeric_limits<T>::quiet_NaN();
    for (size_t i = 0; i < points.states.size(); i += 101) points.states[i] = std::numeric_limits<T>::infinity();
  };
  spoil(drawn.refs);
  p.ref_states = drawn.refs.states.data();
  p.ref_values = drawn.refs.values.data();
  p.states = p.ref_states;
  p.values = p.ref_values;
  if (!p.self_join) {
    drawn.own = lab::points_of<T>(data, p.batch * p.queries, p.dim, seed + 2);
    spoil(drawn.own);
    p.states = drawn.own.states.data();
    p.values = drawn.own.values.data();
  }
  if (indexed) {
    for (int64_t i = 0; i < p.batch * p.queries; ++i) drawn.self.push_back(i % 3 == 0 ? -1 : i % p.refs);
    p.self_index = drawn.self.data();
  }
  std::ostringstream what;
  what << "seed " << seed << ": " << data << (rounded ? ", rounded" : "") << (spoiled ? ", not all finite" : "")
       << (sizeof(T) == 4 ? ", float32" : ", float64") << ", batch " << p.batch << ", queries " << p.queries
       << ", references " << p.refs
       << (p.self_join ? " (themselves)"
           : indexed   ? " (indexed)"
                       : "")
       << ", dim " << p.dim << ", k " << p.k;
  drawn.what = what.str();
}

// Returns how many answers were wrong; `compared` counts them all.
template <typename T>
int check_one(const std::optional<Gpu>& gpu, uint64_t seed, int* compared) {
  Drawn<T> drawn;
  draw(seed, drawn);
  const KnnProblem<T>& p = drawn.problem;
  const Answer<T> judge = solve_on_cpu(p);
  std::vector<int64_t> rows(judge.count.size());
  std::iota(rows.begin(), rows.end(), 0);
  int wrong = 0;
  const auto compare = [&](const Answer<T>& got, const std::string& by) {
    ++*compared;
    if (agrees(judge, got, rows)) return;
    ++wrong;
    std::printf("WRONG %s: %s\n", by.c_str(), drawn.what.c_str());
  };
  if (!gpu) {
    compare(solve_by_brute_force(p), "the CPU operator against all pairs in a plain loop");
    return wrong;
  }
  const OnDevice<T> data(p, 1);
  for (const auto& [kernel, path] : kKernels) {
    std::vector<int> numbers = {-1};
    if (sizeof(T) == 4 && p.k <= 32) numbers.push_back(static_cast<int>(seed % qcse::cuda::variants(path).size()));
    for (const int number : numbers) {
      const Choice choice{path, number};
      const Memory workspace(qcse::cuda::workspace_bytes(p, gpu->device, choice));
      data.forget();
      check(qcse::cuda::launch(data.problem(0), gpu->device, workspace.as<unsigned char>(), gpu->stream, choice));
      gpu->wait(kernel.c_str());
      compare(data.answer(), kernel + (number < 0 ? "" : " " + name_of(qcse::cuda::variants(path)[number])));
    }
  }
  return wrong;
}

int check_all(const std::optional<Gpu>& gpu, const Options& options) {
  int wrong = 0, compared = 0;
  bool going = true;
  for (int64_t i = 0; going && i < options.problems && !options.over(); ++i) {
    const uint64_t seed = options.seed + static_cast<uint64_t>(i);
    const int before = wrong;
    going = attempt("problem " + std::to_string(seed), [&] {
      wrong += i % 4 == 3 ? check_one<double>(gpu, seed, &compared) : check_one<float>(gpu, seed, &compared);
    });
    if (!going) wrong = before + 1;
  }
  Line().add("compared", compared).add("wrong", wrong).add("judge", gpu ? "the CPU operator" : "a plain loop").print();
  return wrong == 0 && compared > 0 ? 0 : 1;
}

int search(const std::optional<Gpu>& gpu, const Options& options, bool tune) {
  bool exact = true, going = true;
  std::optional<Ceilings> ceilings;
  if (gpu && !tune) ceilings = measure_ceilings(*gpu);
  for (const Shape& shape : options.sizes) {
    for (const std::string& data : options.data) {
      for (const int64_t k : options.ks) {
        if (!going || options.over() || k >= shape.refs) continue;
        const std::string what = title(shape, data);
        if (!gpu) {
          if (shape.batch * shape.queries * shape.refs > (int64_t{1} << 26)) {
            std::printf("%s: left out without a GPU\n", what.c_str());
            continue;
          }
          const Case c(shape, data, k);
          std::vector<double> times;
          Answer<float> answer;
          for (int run = 0; run < 3; ++run) {
            const Clock::time_point start = Clock::now();
            answer = solve_on_cpu(c.problem());
            times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
          }
          Line line = c.describe("cpu");
          line.add("timing", "eager").add("cache", "warm").add("median_ms", median(times)).add("runs", 3);
          line.add("exact", c.agrees_with(answer)).print();
          exact = exact && c.agrees_with(answer);
          continue;
        }
        going = attempt(what,
                        [&] {
                          const Case c(shape, data, k);
                          const int64_t bytes = shape.batch * shape.refs * (shape.dim + 1) * 4;
                          const int copies =
                              static_cast<int>(std::clamp<int64_t>((int64_t{4} << 30) / bytes, 1, kMaxCalls));
                          const OnDevice<float> points(c.problem(), copies);
                          const Choice usual = qcse::cuda::choose(c.problem(), gpu->device);
                          double best = 1e9;
                          for (const auto& [kernel, path] : kKernels) {
                            if (path == Path::kSmall && shape.refs > qcse::cuda::kSmallMaxRefs) continue;
                            // In a search the variant that an ordinary call would get.
                            const int first = tune ? 0 : usual.path == path ? usual.variant : -1;
                            const int last = tune ? static_cast<int>(qcse::cuda::variants(path).size()) - 1 : first;
                            for (int variant = first; variant <= last && going && !options.over(); ++variant) {
                              const bool fine = attempt(what + " " + kernel + " " + std::to_string(variant), [&] {
                                for (const bool cold : {false, true}) {
                                  if (cold && (tune || options.over())) continue;
                                  // Everything is measured in earnest in a search; where variants compete, the slow are
                                  // not.
                                  const Effort effort = tune ? Effort{9, 0.06, 2.5} : Effort{21, 0.3, 1e9};
                                  const Measured measured = measure(*gpu, c, points, copies, kernel, variant, cold,
                                                                    effort, best, ceilings ? &*ceilings : nullptr);
                                  best = std::min(best, measured.ms);
                                  exact = exact && measured.exact;
                                }
                              });
                              going = going && fine;
                            }
                          }
                        }) &&
                going;
      }
    }
  }
  if (options.over()) std::printf("the budget of %.0f s is used up\n", options.budget);
  return exact && going ? 0 : 1;
}

int profile(const std::optional<Gpu>& gpu) {
  struct Target {
    const char* kernel;
    Shape shape;
  };
  const Target targets[] = {{"small", {1, 256, 256, 17}},
                            {"small", {1, 4096, 4096, 17}},
                            {"screened", {1, 65536, 65536, 17}},
                            {"screened", {1, 65536, 65536, 111}},
                            {"large", {1, 65536, 65536, 5}}};
  bool all = true;
  for (const Target& target : targets) {
    all &= attempt(title(target.shape, target.kernel), [&] {
      const Case c(target.shape, "normal", 12);
      if (!gpu) return;
      const OnDevice<float> data(c.problem(), 1);
      const Choice choice{kKernels.at(target.kernel), -1};
      const Memory workspace(qcse::cuda::workspace_bytes(c.problem(), gpu->device, choice));
      check(qcse::cuda::launch(data.problem(0), gpu->device, workspace.as<unsigned char>(), gpu->stream, choice));
      gpu->wait(target.kernel);
      Line()
          .add("profiled", target.kernel)
          .add("n", target.shape.refs)
          .add("dim", target.shape.dim)
          .add("exact", c.agrees_with(data.answer()))
          .print();
    });
  }
  return all ? 0 : 1;
}

template <typename T>
void write_file(const std::filesystem::path& path, const std::vector<T>& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
  if (!file) throw std::runtime_error("could not write " + path.string());
}

int dump(const Options& options) {
  const Shape& shape = options.sizes.at(0);
  const std::filesystem::path folder = options.folder;
  std::filesystem::create_directories(folder);
  const Points<float> points = lab::points_of<float>(options.data.at(0), shape.refs, shape.dim, 1);
  KnnProblem<float> p;
  p.batch = 1;
  p.queries = p.refs = shape.refs;
  p.dim = shape.dim;
  p.k = options.ks.at(0);
  p.states = p.ref_states = points.states.data();
  p.values = p.ref_values = points.values.data();
  p.self_join = true;
  const Answer<float> answer = solve_on_cpu(p);
  write_file(folder / "states.f32", points.states);
  write_file(folder / "values.f32", points.values);
  write_file(folder / "radius.f32", answer.radius);
  write_file(folder / "count.i64", answer.count);
  Line().add("dumped", title(shape, options.data.at(0))).add("k", p.k).print();
  return 0;
}

// --- The command line
// ------------------------------------------------------------------------------------------------------- "4096x17"
// (points x dimensions), or with more numbers: batch, queries, references, dimensions.
Shape parse_shape(const std::string& text) {
  std::vector<int64_t> numbers;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, 'x');) {
    size_t used = 0;
    int64_t number = 0;
    try {
      number = std::stoll(part, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used == 0 || used != part.size() || number < 1) numbers.clear(), part.clear();
    numbers.push_back(number);
  }
  if (numbers.size() == 2 && numbers[0] > 1) return {1, numbers[0], numbers[0], numbers[1]};
  if (numbers.size() == 4) return {numbers[0], numbers[1], numbers[2], numbers[3]};
  throw std::invalid_argument("--sizes: got '" + text +
                              "', expected POINTSxDIMENSIONS or BATCHxQUERIESxREFERENCESxDIMENSIONS");
}

Options parse(int count, char** words) {
  Options options;
  if (count < 2) throw std::invalid_argument("expected a command: facts, check, search, tune, profile or dump");
  options.command = words[1];
  std::map<std::string, std::vector<std::string>> given;
  std::string name;
  for (int i = 2; i < count; ++i) {
    if (std::strncmp(words[i], "--", 2) == 0) {
      name = words[i];
      given[name];
    } else {
      given[name].push_back(words[i]);
    }
  }
  const std::set<std::string> known = {"--sizes", "--data", "--k", "--folder", "--budget", "--problems", "--seed"};
  for (const auto& [key, values] : given) {
    if (known.count(key) == 0 || values.empty()) {
      throw std::invalid_argument("got '" + key + "'" + (values.empty() ? " without a value" : "") +
                                  ", expected --sizes, --data, --k, --folder, --budget, --problems or --seed");
    }
  }
  const bool tunes = options.command == "tune";
  std::vector<std::string> sizes = {"256x17", "1024x17", "4096x17", "65536x17", "65536x111", "262144x29"};
  if (tunes) {
    sizes = {"256x17",    "16x256x256x17", "4096x17", "65536x17", "65536x111",      "1024x17",
             "262144x29", "16384x17",      "65536x5", "4096x111", "1x256x65536x17", "1024x111"};
  }
  for (const std::string& text : given.count("--sizes") ? given["--sizes"] : sizes) {
    options.sizes.push_back(parse_shape(text));
  }
  options.data = given.count("--data") ? given["--data"]
                 : tunes               ? std::vector<std::string>{"trajectories"}
                                       : std::vector<std::string>{"normal", "trajectories"};
  if (given.count("--k")) {
    options.ks.clear();
    for (const std::string& k : given["--k"]) options.ks.push_back(std::stoll(k));
  }
  if (given.count("--folder")) options.folder = given["--folder"][0];
  if (given.count("--budget")) options.budget = std::stod(given["--budget"][0]);
  if (given.count("--problems")) options.problems = std::stoll(given["--problems"][0]);
  if (given.count("--seed")) options.seed = std::stoull(given["--seed"][0]);
  return options;
}

int run(const Options& options) {
  if (options.command == "dump") return dump(options);
  const std::optional<Gpu> gpu = find_gpu();
  if (options.command == "facts") return facts(gpu);
  if (options.command == "check") return check_all(gpu, options);
  if (options.command == "search") return search(gpu, options, false);
  if (options.command == "tune") return search(gpu, options, true);
  if (options.command == "profile") return profile(gpu);
  throw std::invalid_argument("got the command '" + options.command +
                              "', expected facts, check, search, tune, profile or dump");
}

}  // namespace

int main(int count, char** words) {
  try {
    return run(parse(count, words));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "qcse_lab: %s\n", error.what());
    return 2;
  }
}

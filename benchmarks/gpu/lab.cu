// The laboratory: the search's CUDA kernels without torch and without Python, for a machine whose minutes count. Built
// beforehand (make gpu-kit), carried as one file. The CPU operator is the judge: radius and count must have its bits.
//
//   qcse_lab facts    what the GPU is, and its three ceilings, measured: copies, differences and sums, tensor cores
//   qcse_lab check    random problems on every kernel, of at most `largest` rows
//                     [--problems 40] [--seed 0] [--largest 3000]
//   qcse_lab search   the published sizes on every kernel, warm and cold
//                     [--sizes 4096x17 ...] [--data normal trajectories] [--k 12 ...]
//   qcse_lab tune     every variant that csrc/knn/cuda/variants.h holds     [--sizes ...] [--data trajectories] [--k
//   12] qcse_lab profile  one launch of each kernel that a profiler is to look at qcse_lab dump     points and the
//   CPU's answer as raw files in a folder
//                     --folder F --sizes 500x17 --data normal [--k 12]
//
// One JSON object a line: results hold "implementation", facts do not. --budget S begins nothing new after S seconds.
// Times are of graph replays: as many calls in one graph as take some 20 ms, 20 at most, so that the start of the
// replay does not count. Warm: the calls read the same points. Cold: each reads a copy of its own, and the second-level
// cache has been overwritten before each replay. Without a GPU each command does its CPU half and says so, unless
// `--device cuda` insists on one.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

#include "isa/isa.h"
#include "lab_data.h"
#include "lab_gpu.h"
#include "lab_judge.h"

namespace lab {
namespace {

using qcse::cuda::Choice;
using qcse::cuda::Path;
using qcse::cuda::Variant;
using Clock = std::chrono::steady_clock;

constexpr int64_t kJudged = 512;  // rows of a problem that the CPU solves too
constexpr int kMaxCalls = 20;
// In the order in which they are measured: the slowest at large sizes comes last.
const std::pair<std::string, Path> kKernels[] = {
    {"screened", Path::kScreened}, {"small", Path::kSmall}, {"large", Path::kLarge}};

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

// --- Measuring ------------------------------------------------------------------------------------------------------
struct Shape {
  int64_t batch, queries, refs, dim;
  bool joined() const { return queries == refs; }
};

struct Options {
  std::string command;
  std::vector<Shape> sizes;
  std::vector<std::string> data;
  std::vector<int64_t> ks = {12};
  std::string folder, device = "auto";
  int64_t budget = 1000000;  // seconds
  int64_t problems = 40, largest = 3000;
  int64_t seed = 0;
  Clock::time_point start = Clock::now();

  bool over() const {
    return std::chrono::duration<double>(Clock::now() - start).count() > static_cast<double>(budget);
  }
};

// Points, the problem on them, and the judge's answer for some of its rows.
class Case {
 public:
  Case(const Shape& shape, const std::string& data, int64_t k) : shape_(shape), data_(data) {
    points_ = points_of<float>(data, shape.batch * shape.refs, shape.dim, 1);
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
      own_ = points_of<float>(data, shape.batch * shape.queries, shape.dim, 2);
      problem_.states = own_.states.data();
      problem_.values = own_.values.data();
    }
    // The judged rows, as many of each batch entry, as queries of a problem of their own.
    Normal normal(3);
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
  int runs;            // replays that are timed, at most
  double seconds;      // and for how long
  double hopeless_ms;  // a single call that takes longer is not captured and repeated
};

struct Measured {
  double single_ms;  // of one call by itself
  bool exact;
};

// How many copies of its points go into the GPU's memory for the cold runs.
int copies_of(const Case& c) {
  const int64_t bytes = c.shape().batch * (c.shape().refs + c.shape().queries) * (c.shape().dim + 1) * 4;
  return static_cast<int>(std::clamp<int64_t>((int64_t{4} << 30) / bytes, 1, kMaxCalls));
}

// Times one kernel on one case, warm or cold, and prints the record. `copies`: of the points, in `data`.
Measured measure(const Gpu& gpu, const Case& c, const OnDevice<float>& data, int copies, const std::string& kernel,
                 const Choice& choice, bool cold, const Effort& effort, const Ceilings* ceilings) {
  const Memory workspace(qcse::cuda::workspace_bytes(c.problem(), gpu.device, choice));
  const auto call = [&](int i) {
    check(
        qcse::cuda::launch(data.problem(cold ? i : 0), gpu.device, workspace.as<unsigned char>(), gpu.stream, choice));
  };
  call(0);
  gpu.wait(kernel.c_str());
  const double single = timed(gpu, [&] { call(0); });
  std::vector<double> times = {single};
  int calls = 1;
  std::string timing = "eager";
  data.forget();
  if (single <= effort.hopeless_ms) {
    timing = "graph";
    calls = std::clamp(static_cast<int>(20 / std::max(single, 1e-3)), 1, cold ? copies : kMaxCalls);
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
        gpu.wait("flush");  // warm or cold, the replay begins on an idle GPU
      }
      times.push_back(timed(gpu, [&] { graph.replay(gpu); }) / calls);
    }
  } else {
    call(0);
  }
  gpu.wait(kernel.c_str());
  const double ms = median(times);
  Line line = c.describe(gpu.name);
  const std::vector<Variant> held = qcse::cuda::variants(choice.path);
  line.add("kernel", kernel).add("variant", choice.variant < 0 ? "rule" : name_of(held.at(choice.variant)));
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
    line.add("chosen", qcse::cuda::choose(c.problem(), gpu.device).path == choice.path);
  }
  line.print();
  return {single, exact};
}

enum class Outcome { kFine, kFailed, kGpuLost };

// Runs `body`, and prints what stopped it as a line of its own.
template <typename F>
Outcome attempt(const std::string& what, const F& body) {
  try {
    body();
    return Outcome::kFine;
  } catch (const std::exception& error) {
    std::string text = error.what();
    for (char& letter : text) letter = letter == '"' || letter == '\\' || letter < ' ' ? ' ' : letter;
    Line().add("failed", what).add("error", text).print();
  }
  cudaGetLastError();
  if (cudaDeviceSynchronize() == cudaSuccess) return Outcome::kFailed;
  std::printf("the GPU answers with errors from here on: nothing more is tried\n");
  return Outcome::kGpuLost;
}

std::string title(const Shape& s, const std::string& data) {
  return data + " " + std::to_string(s.batch) + "x" + std::to_string(s.queries) + "x" + std::to_string(s.refs) + "x" +
         std::to_string(s.dim);
}

// --- Commands -------------------------------------------------------------------------------------------------------
int facts(const std::optional<Gpu>& gpu) {
  Line line;
  line.add("cpu_instruction_set", qcse::cpu::instruction_set());
  line.add("threads", static_cast<int>(std::thread::hardware_concurrency()));
  if (gpu) {
    int driver = 0, runtime = 0, clock = 0;
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    check(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0), "cudaDeviceGetAttribute");
    warm_up(*gpu);
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
void draw(uint64_t seed, int64_t largest, Drawn<T>& drawn) {
  Normal normal(seed);
  constexpr int64_t kDims[] = {1, 2, 3, 5, 8, 11, 16, 17, 23, 24, 25, 29, 48, 61, 111};
  KnnProblem<T>& p = drawn.problem;
  p.batch = 1 + normal.below(3);
  p.dim = kDims[normal.below(15)];
  p.queries = 2 + normal.below(normal.uniform() < 0.3 ? largest : largest / 10 + 1);
  p.self_join = normal.uniform() < 0.5;
  p.refs = p.self_join ? p.queries : 2 + normal.below(largest);
  const bool indexed = !p.self_join && normal.uniform() < 0.5;
  const int64_t candidates = p.refs - (p.self_join || indexed);
  p.k = 1 + normal.below(std::min<int64_t>(candidates, normal.uniform() < 0.5 ? 16 : 128));
  const char* const data = normal.uniform() < 0.5 ? "normal" : "trajectories";
  drawn.refs = points_of<T>(data, p.batch * p.refs, p.dim, seed + 1);
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
    drawn.own = points_of<T>(data, p.batch * p.queries, p.dim, seed + 2);
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
int check_one(const std::optional<Gpu>& gpu, uint64_t seed, int64_t largest, int* compared) {
  Drawn<T> drawn;
  draw(seed, largest, drawn);
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
  for (int64_t i = 0; i < options.problems && !options.over(); ++i) {
    const auto seed = static_cast<uint64_t>(options.seed + i);
    const Outcome outcome = attempt("problem " + std::to_string(seed), [&] {
      wrong += i % 4 == 3 ? check_one<double>(gpu, seed, options.largest, &compared)
                          : check_one<float>(gpu, seed, options.largest, &compared);
    });
    wrong += outcome != Outcome::kFine;
    if (outcome == Outcome::kGpuLost) break;
  }
  Line().add("compared", compared).add("wrong", wrong).add("judge", gpu ? "the CPU operator" : "a plain loop").print();
  return wrong == 0 && compared > 0 ? 0 : 1;
}

// The CPU operator's own time, so that a machine without a GPU has something to show; false where it was wrong.
bool search_on_cpu(const Case& c) {
  std::vector<double> times;
  Answer<float> answer;
  for (int run = 0; run < 3; ++run) {
    const Clock::time_point start = Clock::now();
    answer = solve_on_cpu(c.problem());
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  const bool exact = c.agrees_with(answer);
  Line line = c.describe("cpu");
  line.add("timing", "eager").add("cache", "warm").add("median_ms", median(times)).add("runs", 3);
  line.add("exact", exact).print();
  return exact;
}

// Every kernel on one case, warm and cold, in the variant that an ordinary call would get.
void search_on_gpu(const Gpu& gpu, const Case& c, const Ceilings& ceilings, const Options& options, bool* good) {
  const int copies = copies_of(c);
  const OnDevice<float> points(c.problem(), copies);
  const Choice usual = qcse::cuda::choose(c.problem(), gpu.device);
  for (const auto& [kernel, path] : kKernels) {
    if (path == Path::kSmall && c.shape().refs > qcse::cuda::kSmallMaxRefs) continue;
    for (const bool cold : {false, true}) {
      if (options.over()) return;
      if (cold && !c.shape().joined()) continue;  // there is one copy of separate references
      const Outcome outcome = attempt(kernel, [&] {
        const Choice choice{path, usual.path == path ? usual.variant : -1};
        *good &= measure(gpu, c, points, copies, kernel, choice, cold, Effort{21, 0.3, 1e9}, &ceilings).exact;
      });
      *good &= outcome == Outcome::kFine;
      if (outcome == Outcome::kGpuLost) throw std::runtime_error("the GPU was lost");
    }
  }
}

// Every variant of every kernel, warm. One that is far slower than another was is timed once.
void tune_on_gpu(const Gpu& gpu, const Case& c, const Options& options, bool* good) {
  const OnDevice<float> points(c.problem(), 1);
  double best_single = 1e9;
  for (const auto& [kernel, path] : kKernels) {
    if (path == Path::kSmall && c.shape().refs > qcse::cuda::kSmallMaxRefs) continue;
    const std::vector<Variant> held = qcse::cuda::variants(path);
    for (size_t variant = 0; variant < held.size() && !options.over(); ++variant) {
      // tuned.h repeats some of those that are tried.
      if (std::find(held.begin(), held.begin() + variant, held[variant]) != held.begin() + variant) continue;
      const Outcome outcome = attempt(kernel + " " + name_of(held[variant]), [&] {
        // Of a short call most is its launches, and says little.
        const Effort effort{9, 0.06, std::max(0.2, 2.5 * best_single)};
        const Choice choice{path, static_cast<int>(variant)};
        const Measured measured = measure(gpu, c, points, 1, kernel, choice, false, effort, nullptr);
        best_single = std::min(best_single, measured.single_ms);
        *good &= measured.exact;
      });
      if (outcome == Outcome::kGpuLost) throw std::runtime_error("the GPU was lost");
    }
  }
}

int search(const std::optional<Gpu>& gpu, const Options& options, bool tune) {
  bool good = true;
  std::optional<Ceilings> ceilings;
  if (gpu) warm_up(*gpu);
  if (gpu && !tune) ceilings = measure_ceilings(*gpu);
  for (const Shape& shape : options.sizes) {
    for (const std::string& data : options.data) {
      for (const int64_t k : options.ks) {
        const std::string what = title(shape, data);
        if (!gpu && shape.batch * shape.queries * shape.refs > (int64_t{1} << 26)) {
          std::printf("%s: left out without a GPU\n", what.c_str());
          continue;
        }
        if (options.over() || k >= shape.refs) continue;
        const Outcome outcome = attempt(what, [&] {
          const Case c(shape, data, k);
          if (!gpu) {
            good &= search_on_cpu(c);
          } else if (tune) {
            tune_on_gpu(*gpu, c, options, &good);
          } else {
            search_on_gpu(*gpu, c, *ceilings, options, &good);
          }
        });
        good &= outcome == Outcome::kFine;
        if (outcome == Outcome::kGpuLost) return 1;
      }
    }
  }
  if (options.over()) std::printf("the budget of %lld s is used up\n", static_cast<long long>(options.budget));
  return good ? 0 : 1;
}

int profile(const std::optional<Gpu>& gpu) {
  struct Target {
    const char* kernel;
    Path path;
    Shape shape;
  };
  const Target targets[] = {{"small", Path::kSmall, {1, 256, 256, 17}},
                            {"small", Path::kSmall, {1, 4096, 4096, 17}},
                            {"screened", Path::kScreened, {1, 65536, 65536, 17}},
                            {"large", Path::kLarge, {1, 65536, 65536, 5}},
                            {"screened", Path::kScreened, {1, 65536, 65536, 111}}};
  bool all = true;
  for (const Target& target : targets) {
    all &=
        Outcome::kFine == attempt(title(target.shape, target.kernel), [&] {
          const Case c(target.shape, "normal", 12);
          if (!gpu) return;
          const OnDevice<float> data(c.problem(), 1);
          const Choice choice{target.path};
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
  const Points<float> points = points_of<float>(options.data.at(0), shape.refs, shape.dim, 1);
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

// --- The command line -----------------------------------------------------------------------------------------------
// "4096x17" (points x dimensions), or with more numbers: batch, queries, references, dimensions.
Shape parse_shape(const std::string& text) {
  std::vector<int64_t> numbers;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, 'x');) {
    const bool digits = !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
    numbers.push_back(digits ? std::stoll(part) : 0);
  }
  const bool right =
      !numbers.empty() && *std::min_element(numbers.begin(), numbers.end()) > 0 && numbers.back() <= qcse::kMaxDim;
  if (right && numbers.size() == 2 && numbers[0] > 1) return {1, numbers[0], numbers[0], numbers[1]};
  if (right && numbers.size() == 4) return {numbers[0], numbers[1], numbers[2], numbers[3]};
  throw std::invalid_argument("--sizes: got '" + text +
                              "', expected POINTSxDIMENSIONS or BATCHxQUERIESxREFERENCESxDIMENSIONS");
}

// A whole number from `least` on.
int64_t parse_number(const std::string& name, const std::string& text, int64_t least, int64_t most) {
  size_t used = 0;
  int64_t number = 0;
  try {
    number = std::stoll(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used == 0 || used != text.size() || number < least || number > most) {
    throw std::invalid_argument(name + ": got '" + text + "', expected a whole number from " + std::to_string(least) +
                                " to " + std::to_string(most));
  }
  return number;
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
  const std::set<std::string> known = {"--sizes",    "--data",    "--k",    "--folder", "--budget",
                                       "--problems", "--largest", "--seed", "--device"};
  for (const auto& [key, values] : given) {
    if (known.count(key) == 0 || values.empty()) {
      throw std::invalid_argument(
          "got '" + key + "'" + (values.empty() ? " without a value" : "") +
          ", expected --sizes, --data, --k, --folder, --budget, --problems, --largest, --seed or --device");
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
    for (const std::string& text : given["--k"]) {
      options.ks.push_back(parse_number("--k", text, 1, qcse::kMaxNeighbours));
    }
  }
  if (given.count("--folder")) options.folder = given["--folder"][0];
  if (given.count("--device")) options.device = given["--device"][0];
  if (options.device != "auto" && options.device != "cuda") {
    throw std::invalid_argument("--device: got '" + options.device + "', expected auto or cuda");
  }
  const auto number = [&](const char* key, int64_t least, int64_t* into) {
    if (given.count(key)) *into = parse_number(key, given[key][0], least, int64_t{1} << 40);
  };
  number("--budget", 1, &options.budget);
  number("--problems", 1, &options.problems);
  number("--largest", 10, &options.largest);
  number("--seed", 0, &options.seed);
  return options;
}

int run(const Options& options) {
  if (options.command == "dump") return dump(options);
  const std::optional<Gpu> gpu = find_gpu();
  if (!gpu && options.device == "cuda") throw std::runtime_error("--device cuda, but there is no GPU");
  if (options.command == "facts") return facts(gpu);
  if (options.command == "check") return check_all(gpu, options);
  if (options.command == "search") return search(gpu, options, false);
  if (options.command == "tune") return search(gpu, options, true);
  if (options.command == "profile") return profile(gpu);
  throw std::invalid_argument("got the command '" + options.command +
                              "', expected facts, check, search, tune, profile or dump");
}

}  // namespace
}  // namespace lab

int main(int count, char** words) {
  try {
    return lab::run(lab::parse(count, words));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "qcse_lab: %s\n", error.what());
    return 2;
  }
}

// What Python calls through ctypes: the emulated bonus of a batch, and the CPU's kernel of it as its oracle.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "bonus/cpu/launch.h"
#include "bonus/cuda/batch_entropy.h"
#include "c_api.h"
#include "knn/cpu/launch.h"
#include "twin.h"

// The CPU's bonus is compiled into this library, its search is not: here brute force, which gives the same bits.
namespace qcse::cpu {
template <>
void knn(const KnnProblem<float>& problem, const Threads&) {
  emulator::brute_force(problem);
}
template <>
void knn(const KnnProblem<double>& problem, const Threads&) {
  emulator::brute_force(problem);
}
}  // namespace qcse::cpu

namespace {

using emulator::Buffer;

template <typename T>
qcse::BatchEntropy<T> batch_of(const int64_t* sizes, const double* options, const void* const* inputs,
                               void* const* outputs) {
  qcse::BatchEntropy<T> b;
  b.seeds = sizes[0];
  b.rows = sizes[1];
  b.dim = sizes[2];
  b.k = sizes[3];
  b.count_self = sizes[4] != 0;
  b.learn = sizes[5] != 0;
  b.horizon = options[0];
  b.divisor = options[1];
  b.offset = options[2];
  b.states = static_cast<const T*>(inputs[0]);
  b.values = static_cast<const T*>(inputs[1]);
  b.index = static_cast<const int64_t*>(inputs[2]);
  b.eligible = static_cast<const bool*>(inputs[3]);
  b.mean = static_cast<T*>(outputs[0]);
  b.variance = static_cast<T*>(outputs[1]);
  b.batches = static_cast<T*>(outputs[2]);
  b.entropy = static_cast<T*>(outputs[3]);
  b.covered = static_cast<bool*>(outputs[4]);
  b.statistics = static_cast<T*>(outputs[5]);
  return b;
}

template <typename T>
void run_emulated(const qcse::BatchEntropy<T>& b, qcse::cuda::Path path, int tables) {
  const auto rows = static_cast<size_t>(b.seeds * b.rows);
  const auto channels = static_cast<size_t>(b.seeds * (b.dim + 1));
  const auto seeds = static_cast<size_t>(b.seeds);
  const Buffer states(b.states, rows * static_cast<size_t>(b.dim) * sizeof(T)), values(b.values, rows * sizeof(T));
  const Buffer index(b.index, rows * sizeof(int64_t)), eligible(b.eligible, rows);
  const Buffer mean(b.mean, channels * sizeof(T)), variance(b.variance, channels * sizeof(T));
  const Buffer batches(b.batches, seeds * sizeof(T));
  const Buffer entropy(rows * sizeof(T)), covered(rows), statistics(3 * seeds * sizeof(T));
  qcse::BatchEntropy<T> device = b;
  device.states = states.as<T>();
  device.values = values.as<T>();
  device.index = index.as<int64_t>();
  device.eligible = eligible.as<bool>();
  device.mean = mean.as<T>();
  device.variance = variance.as<T>();
  device.batches = batches.as<T>();
  device.entropy = entropy.as<T>();
  device.covered = covered.as<bool>();
  device.statistics = statistics.as<T>();

  qcse::cuda::Device facts;
  const qcse::cuda::Status asked = qcse::cuda::select_device(0, &facts);
  if (asked.error != nullptr) throw std::runtime_error(asked.error);
  qcse::cuda::BatchPlan plan = qcse::cuda::plan(device, facts);
  if (path != qcse::cuda::Path::kAuto) plan.search = {path};
  if (tables >= 0) plan.rows_in_shared = tables == 0;
  const Buffer workspace(qcse::cuda::workspace_bytes(device, facts, plan));
  const qcse::cuda::Status status = qcse::cuda::launch(device, facts, workspace.as<void>(), nullptr, plan);
  if (status.error != nullptr) throw std::runtime_error(std::string(status.kernel) + ": " + status.error);
  mean.read(b.mean);
  variance.read(b.variance);
  batches.read(b.batches);
  entropy.read(b.entropy);
  covered.read(b.covered);
  statistics.read(b.statistics);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// path: 0 the CPU's kernel, 1 the search that the shape asks for, 2 the small one, 3 the large one, 4 the screened one.
// tables: of the rows, 0 in shared memory, 1 in the workspace, -1 as the shape asks. sizes: S, N, D, k, count_self,
// learn. options: horizon, divisor, offset. inputs: states, values, index, eligible. outputs: mean, variance, batches
// (changed in place), entropy, covered, statistics. Returns 0, or 1 and leaves a message.
int emulator_batch_entropy(int is_double, int path, int tables, const int64_t* sizes, const double* options,
                           const void* const* inputs, void* const* outputs) {
  return emulator::guarded([&] {
    constexpr qcse::cuda::Path kPaths[] = {qcse::cuda::Path::kAuto, qcse::cuda::Path::kAuto, qcse::cuda::Path::kSmall,
                                           qcse::cuda::Path::kLarge, qcse::cuda::Path::kScreened};
    const auto run = [&]<typename T>(const qcse::BatchEntropy<T>& batch) {
      path != 0 ? run_emulated(batch, kPaths[path], tables) : qcse::cpu::batch_entropy(batch, qcse::cpu::kThisThread);
    };
    is_double != 0 ? run(batch_of<double>(sizes, options, inputs, outputs))
                   : run(batch_of<float>(sizes, options, inputs, outputs));
  });
}

}  // extern "C"
#pragma GCC visibility pop

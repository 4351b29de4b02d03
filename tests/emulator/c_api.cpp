// What Python calls through ctypes: the emulated search, its oracle, the emulator's own kernels, and settings. Other
// operators have a file c_api_NAME.cpp of their own.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "knn/cuda/launch.h"
#include "knn/cuda/screened.h"
#include "c_api.h"
#include "self_kernels.h"
#include "twin.h"

namespace emulator {

LastError& last_error() {
  static LastError error;
  return error;
}

}  // namespace emulator

namespace {

using emulator::Buffer;
using emulator::guarded;

template <typename T>
void run_emulated(qcse::KnnProblem<T> p, qcse::cuda::Choice choice) {
  const auto rows = static_cast<size_t>(p.batch * p.queries);
  const auto ref_rows = static_cast<size_t>(p.batch * p.refs);
  const auto dim = static_cast<size_t>(p.dim);
  const Buffer states(p.states, rows * dim * sizeof(T)), values(p.values, rows * sizeof(T));
  const size_t own = p.self_join ? 0 : ref_rows;
  const Buffer ref_states(p.ref_states, own * dim * sizeof(T)), ref_values(p.ref_values, own * sizeof(T));
  const Buffer self_index(p.self_index, p.self_index != nullptr ? rows * sizeof(int64_t) : 0);
  const Buffer radius(p.radius != nullptr ? rows * sizeof(T) : 0);
  const Buffer count(p.count != nullptr ? rows * sizeof(int64_t) : 0);
  const Buffer entropy(p.entropy != nullptr ? rows * sizeof(T) : 0);
  qcse::KnnProblem<T> device = p;
  device.states = states.as<T>();
  device.values = values.as<T>();
  device.ref_states = p.self_join ? device.states : ref_states.as<T>();
  device.ref_values = p.self_join ? device.values : ref_values.as<T>();
  device.self_index = self_index.as<int64_t>();
  device.radius = radius.as<T>();
  device.count = count.as<int64_t>();
  device.entropy = entropy.as<T>();

  qcse::cuda::Device facts;
  const qcse::cuda::Status asked = qcse::cuda::select_device(0, &facts);
  if (asked.error != nullptr) throw std::runtime_error(asked.error);
  const Buffer workspace(qcse::cuda::workspace_bytes(device, facts, choice));
  const qcse::cuda::Status status = qcse::cuda::launch(device, facts, workspace.as<void>(), nullptr, choice);
  if (status.error != nullptr) throw std::runtime_error(std::string(status.kernel) + ": " + status.error);
  radius.read(p.radius);
  count.read(p.count);
  entropy.read(p.entropy);
}

template <typename T>
qcse::KnnProblem<T> problem_of(const int64_t* sizes, const void* const* inputs, void* const* outputs, double offset) {
  qcse::KnnProblem<T> p;
  p.batch = sizes[0];
  p.queries = sizes[1];
  p.refs = sizes[2];
  p.dim = sizes[3];
  p.k = sizes[4];
  p.states = static_cast<const T*>(inputs[0]);
  p.values = static_cast<const T*>(inputs[1]);
  p.self_join = inputs[2] == nullptr;
  p.ref_states = p.self_join ? p.states : static_cast<const T*>(inputs[2]);
  p.ref_values = p.self_join ? p.values : static_cast<const T*>(inputs[3]);
  p.self_index = static_cast<const int64_t*>(inputs[4]);
  p.radius = static_cast<T*>(outputs[0]);
  p.count = static_cast<int64_t*>(outputs[1]);
  p.entropy = static_cast<T*>(outputs[2]);
  p.offset = offset;
  return p;
}

constexpr qcse::cuda::Path kPaths[] = {qcse::cuda::Path::kAuto, qcse::cuda::Path::kAuto, qcse::cuda::Path::kSmall,
                                       qcse::cuda::Path::kLarge, qcse::cuda::Path::kScreened};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char* emulator_error() { return emulator::last_error().message.c_str(); }
const char* emulator_error_kind() {
  const int kind = emulator::last_error().kind;
  return kind < 0 ? "launch" : emulator::name_of(static_cast<emulator::Kind>(kind));
}

void emulator_configure(uint64_t seed, int checks, int multiprocessors, uint64_t shared_bytes) {
  emulator::Config& c = emulator::config();
  c.seed = seed;
  c.checks = checks != 0;
  c.multiprocessors = multiprocessors;
  if (c.shared_bytes != shared_bytes) emulator::forget_shared_limits();
  c.shared_bytes = shared_bytes;
}

// path: 0 brute force, 1 the kernel that the shape asks for, 2 the small one, 3 the large one, 4 the screened one.
// sizes: batch, queries, refs, dim, k. inputs: states, values, ref_states, ref_values, self_index (the last three may
// be null). outputs: radius, count, entropy (each may be null). variant: a number in csrc/knn/cuda/variants.h, or -1.
// Returns 0, or 1 and leaves a message.
int emulator_knn(int is_double, int path, int variant, const int64_t* sizes, const void* const* inputs,
                 void* const* outputs, double offset) {
  return guarded([&] {
    const qcse::cuda::Choice choice{kPaths[path], variant};
    if (is_double != 0) {
      const auto p = problem_of<double>(sizes, inputs, outputs, offset);
      path != 0 ? run_emulated(p, choice) : emulator::brute_force(p);
    } else {
      const auto p = problem_of<float>(sizes, inputs, outputs, offset);
      path != 0 ? run_emulated(p, choice) : emulator::brute_force(p);
    }
  });
}

// What a call with these sizes gets: the path's number as above, and the variant's number and four figures (-1 for a
// choice that is left to the kernel's rule).
void emulator_choice(int is_double, const int64_t* sizes, int refs_are_queries, int64_t* answer) {
  qcse::cuda::Device device;
  qcse::cuda::select_device(0, &device);
  const void* const inputs[5] = {sizes, sizes, refs_are_queries != 0 ? nullptr : sizes, sizes, nullptr};
  void* const outputs[3] = {};
  const qcse::cuda::Choice choice = is_double != 0
                                        ? qcse::cuda::choose(problem_of<double>(sizes, inputs, outputs, 0), device)
                                        : qcse::cuda::choose(problem_of<float>(sizes, inputs, outputs, 0), device);
  answer[0] = std::find(std::begin(kPaths) + 2, std::end(kPaths), choice.path) - std::begin(kPaths);
  answer[1] = choice.variant;
  if (choice.variant < 0) return;
  const qcse::cuda::Variant v = qcse::cuda::variants(choice.path)[static_cast<size_t>(choice.variant)];
  answer[2] = v.warps;
  answer[3] = v.blocks;
  answer[4] = v.outer;
  answer[5] = v.inner;
}

// How many variants of this path there are.
int emulator_variants(int path) { return static_cast<int>(qcse::cuda::variants(kPaths[path]).size()); }

// How the screened kernel's rule divides a block of a device of this capability: warps, stages, blocks that share a
// multiprocessor, and bytes of shared memory.
void emulator_screen_division(int is_double, const int64_t* sizes, int capability, int64_t* answer) {
  qcse::cuda::Device device;
  qcse::cuda::select_device(0, &device);
  device.capability = capability;
  const void* const inputs[5] = {};
  void* const outputs[3] = {};
  const qcse::cuda::ScreenDivision division =
      is_double != 0 ? qcse::cuda::screen_division(problem_of<double>(sizes, inputs, outputs, 0), device, -1)
                     : qcse::cuda::screen_division(problem_of<float>(sizes, inputs, outputs, 0), device, -1);
  answer[0] = division.warps;
  answer[1] = division.stages;
  answer[2] = division.blocks;
  answer[3] = static_cast<int64_t>(division.bytes);
}

uint64_t emulator_accesses() { return emulator::accesses_so_far(); }
uint64_t emulator_launches() { return emulator::launches_so_far(); }

int emulator_run_self_kernel(const char* name, int32_t* answer, int elements) {
  return guarded([&] {
    const Buffer out(static_cast<size_t>(elements) * sizeof(int32_t));
    if (!emulator::run_self_kernel(name, out.as<int>(), elements)) {
      throw std::runtime_error(std::string("there is no kernel named ") + name);
    }
    out.read(answer);
  });
}

}  // extern "C"
#pragma GCC visibility pop

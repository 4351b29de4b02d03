#include "launch.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iterator>
#include <stdexcept>

#include "base/cuda/device.h"
#include "large.h"
#include "screened.h"
#include "small.h"
#include "variants.h"

namespace qcse::cuda {

namespace {

std::atomic<Path> chosen_path = Path::kAuto;

// Up to here the small kernel by rule. An estimate: one launch against several.
constexpr int64_t kSmallByRule = 4096;

struct Tuned {
  int capability;
  double queries, refs, dim;
  Path path;
  Variant variant;
};
#define QCSE_TUNED(capability, queries, refs, dim, path, ...) \
  Tuned{capability, queries, refs, dim, Path::path, Variant{__VA_ARGS__}},
constexpr Tuned kTuned[] = {Tuned{-1, 1, 1, 1, Path::kAuto, {}},  // of no GPU; the list may be empty
                            QCSE_TUNED_CHOICES(QCSE_TUNED)};
#undef QCSE_TUNED

// Measured shapes that are farther away than this say nothing: factors of 2, summed over queries, references and
// dimensions.
constexpr double kNear = 3;

template <typename T>
bool fits(const KnnProblem<T>& problem, const Device& device, const Choice& choice) {
  switch (choice.path) {
    case Path::kSmall: return small_fits(problem, device, choice.variant);
    case Path::kLarge: return large_fits(problem, device, choice.variant);
    case Path::kScreened: return screened_fits(problem, device, choice.variant);
    default: return false;
  }
}

// kAuto where no measured shape is near.
template <typename T>
Choice choose_tuned(const KnnProblem<T>& problem, const Device& device) {
  Choice best;
  if (sizeof(T) != sizeof(float) || problem.k > 32) return best;
  double nearest = kNear;
  for (const Tuned& row : kTuned) {
    if (row.capability != device.capability) continue;
    const double distance = std::abs(std::log2(static_cast<double>(problem.batch * problem.queries) / row.queries)) +
                            std::abs(std::log2(static_cast<double>(problem.refs) / row.refs)) +
                            std::abs(std::log2(static_cast<double>(problem.dim) / row.dim));
    if (distance >= nearest) continue;
    const std::vector<Variant> held = variants(row.path);
    const auto place = std::find(held.begin(), held.end(), row.variant) - held.begin();
    const Choice choice{row.path, static_cast<int>(place)};
    if (!fits(problem, device, choice)) continue;
    nearest = distance;
    best = choice;
  }
  return best;
}

}  // namespace

std::vector<Variant> variants(Path path) {
  if (path == Path::kScreened) return {std::begin(kScreenedVariants), std::end(kScreenedVariants)};
  return {std::begin(kExactVariants), std::end(kExactVariants)};
}

template <typename T>
Choice choose(const KnnProblem<T>& problem, const Device& device, Choice choice) {
  if (choice.path == Path::kAuto) choice.path = chosen_path;
  if (choice.path != Path::kAuto) return choice;
  choice = choose_tuned(problem, device);
  if (choice.path != Path::kAuto) return choice;
  if (problem.refs <= kSmallByRule && small_fits(problem, device, -1)) return {Path::kSmall};
  return {screen_suits(problem, device) ? Path::kScreened : Path::kLarge};
}

void set_path(const std::string& name) {
  if (name == "auto") {
    chosen_path = Path::kAuto;
  } else if (name == "small") {
    chosen_path = Path::kSmall;
  } else if (name == "large") {
    chosen_path = Path::kLarge;
  } else if (name == "screened") {
    chosen_path = Path::kScreened;
  } else {
    throw std::invalid_argument("CUDA path must be 'auto', 'small', 'large' or 'screened', got '" + name + "'");
  }
}

namespace {

bool exists(const Choice& choice) { return choice.variant < static_cast<int>(variants(choice.path).size()); }

}  // namespace

template <typename T>
size_t workspace_bytes(const KnnProblem<T>& problem, const Device& device, Choice choice) {
  const CaptureRelaxed relaxed;  // CUB looks at one of its kernels to tell what its sort needs
  choice = choose(problem, device, choice);
  if (!exists(choice)) return 0;  // `launch` says so
  switch (choice.path) {
    case Path::kScreened: return screened_workspace_bytes(problem, choice.variant);
    case Path::kLarge: return large_workspace_bytes(problem, device, choice.variant);
    default: return 0;
  }
}

template <typename T>
Status launch(const KnnProblem<T>& problem, const Device& device, void* workspace, void* stream, Choice choice) {
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  choice = choose(problem, device, choice);
  if (!exists(choice)) return {"launch", kNoSuchVariant};
  switch (choice.path) {
    case Path::kScreened: return launch_screened(problem, device, workspace, on, choice.variant);
    case Path::kLarge: return launch_large(problem, device, workspace, on, choice.variant);
    default: break;
  }
  if (problem.refs > kSmallMaxRefs) return {"knn_small_kernel", "it is made for at most 16384 references"};
  return launch_small(problem, device, on, choice.variant);
}

template Choice choose(const KnnProblem<float>&, const Device&, Choice);
template Choice choose(const KnnProblem<double>&, const Device&, Choice);
template size_t workspace_bytes(const KnnProblem<float>&, const Device&, Choice);
template size_t workspace_bytes(const KnnProblem<double>&, const Device&, Choice);
template Status launch(const KnnProblem<float>&, const Device&, void*, void*, Choice);
template Status launch(const KnnProblem<double>&, const Device&, void*, void*, Choice);

}  // namespace qcse::cuda

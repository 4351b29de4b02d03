#include "knn/cpu/launch.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "isa/isa.h"
#include "knn/cpu/search.h"

namespace qcse::cpu {
namespace {

std::atomic<Path> chosen_path = Path::kAuto;

// Arithmetic (pairs times dimensions, and some for the rest of a pair) that makes a further thread worth its start:
// about 150 microseconds of one core. Waking a thread takes some ten, and far more on a busy machine.
constexpr int64_t kWorkPerThread = int64_t{1} << 22;
std::atomic<int64_t> work_per_thread = kWorkPerThread;

}  // namespace

template <typename T>
void knn(const KnnProblem<T>& problem, const Threads& threads) {
  // Read once: another thread may change them.
  const Kernels<T>& kernels = kernels_of<T>(*chosen_set().search);
  const Path path = chosen_path;
  const int64_t enough = work_per_thread;
  const auto worth = [&](int64_t work) { return std::clamp<int64_t>(work / enough, 1, threads.count); };
  const auto search = [&](int64_t entry, int64_t count) {
    Search<T>(problem, entry, kernels, {threads.parallel_for, count}).run(path);
  };
  const int64_t work = problem.queries * problem.refs * (problem.dim + 8);
  // Many small problems are shared out whole, large ones are shared inside.
  if (problem.batch >= 2 * threads.count || worth(work) == 1) {
    for_each({threads.parallel_for, worth(work * problem.batch)}, problem.batch,
             [&](int64_t entry) { search(entry, 1); });
  } else {
    for (int64_t entry = 0; entry < problem.batch; ++entry) search(entry, worth(work));
  }
}

template void knn<float>(const KnnProblem<float>&, const Threads&);
template void knn<double>(const KnnProblem<double>&, const Threads&);

void set_work_per_thread(int64_t work) { work_per_thread = work > 0 ? work : kWorkPerThread; }

void set_search_path(const std::string& name) {
  if (name == "auto") {
    chosen_path = Path::kAuto;
  } else if (name == "all") {
    chosen_path = Path::kAll;
  } else if (name == "boxes") {
    chosen_path = Path::kBoxes;
  } else if (name == "screen") {
    chosen_path = Path::kScreen;
  } else {
    throw std::invalid_argument("search path must be 'auto', 'all', 'boxes' or 'screen', got '" + name + "'");
  }
}

}  // namespace qcse::cpu

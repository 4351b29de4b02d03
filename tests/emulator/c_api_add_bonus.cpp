// The emulated kernel of csrc/bonus/cuda/add_bonus.cu, called by Python.
#include <stdexcept>
#include <vector>

#include "bonus/cuda/add_bonus.h"
#include "c_api.h"

namespace {

using emulator::Buffer;

template <typename T>
void run(int64_t seeds, int64_t rows, int64_t stride, bool squash, const void* const* inputs, void* const* outputs) {
  const auto count = static_cast<size_t>(seeds * rows);
  const size_t reward_bytes = static_cast<size_t>((seeds - 1) * stride + rows) * sizeof(T);
  const Buffer novelty(inputs[0], count * sizeof(T)), weight(inputs[3], sizeof(T)), rewards(outputs[0], reward_bytes);
  const Buffer covered(inputs[1], count), eligible(inputs[2], count);
  const Buffer statistics(static_cast<size_t>(qcse::kBonusStatistics * seeds) * sizeof(T));
  qcse::AddBonus<T> b;
  b.seeds = seeds, b.rows = rows, b.reward_stride = stride, b.squash = squash;
  b.novelty = novelty.as<T>(), b.covered = covered.as<bool>(), b.eligible = eligible.as<bool>();
  b.weight = weight.as<T>(), b.rewards = rewards.as<T>(), b.statistics = statistics.as<T>();
  const qcse::cuda::Status status = qcse::cuda::add_bonus(b, nullptr);
  if (status.error != nullptr) throw std::runtime_error(std::string(status.kernel) + ": " + status.error);
  rewards.read(outputs[0]);
  statistics.read(outputs[1]);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// sizes: seeds, rows, stride of the rewards. inputs: novelty, covered, eligible, weight. outputs: rewards (read, too),
// statistics. Returns 0, or 1 and leaves a message.
int emulator_add_bonus(int is_double, int squash, const int64_t* sizes, const void* const* inputs,
                       void* const* outputs) {
  return emulator::guarded(
      [&] { (is_double != 0 ? run<double> : run<float>)(sizes[0], sizes[1], sizes[2], squash != 0, inputs, outputs); });
}

}  // extern "C"
#pragma GCC visibility pop

// The CUDA registration of adding the bonus of a training batch.
#include <torch/csrc/stable/accelerator.h>

#include <string>

#include "base/op.h"
#include "base/op_cuda.h"
#include "bonus/cuda/add_bonus.h"

namespace qcse {
namespace {

Tensor add_bonus_cuda(Tensor rewards, const Tensor& novelty, const Tensor& covered, const Tensor& eligible,
                      const Tensor& weight, bool squash) {
  const char* op = "qcse::add_bonus";
  const torch::stable::accelerator::DeviceGuard guard(rewards.get_device_index());
  expect_float(op, "rewards", rewards);
  if (rewards.dim() != 2 || rewards.size(0) < 1 || rewards.size(1) < 1) {
    fail(op, ": rewards must have shape [S, N] and not be empty, got " + shape_of(rewards));
  }
  const int64_t seeds = rewards.size(0), rows = rewards.size(1);
  if (rewards.stride(1) != 1) fail(op, ": rewards is changed in place, and each seed's must be contiguous");
  expect(op, "novelty", novelty, rewards, {seeds, rows}, std::nullopt, "rewards");
  expect(op, "covered", covered, rewards, {seeds, rows}, ScalarType::Bool, "rewards");
  expect(op, "eligible", eligible, rewards, {seeds, rows}, ScalarType::Bool, "rewards");
  expect(op, "weight", weight, rewards, {}, std::nullopt, "rewards");
  const Tensor dense_novelty = torch::stable::contiguous(novelty);
  const Tensor dense_covered = torch::stable::contiguous(covered), dense_eligible = torch::stable::contiguous(eligible);
  Tensor statistics = torch::stable::new_empty(rewards, {kBonusStatistics, seeds});
  const auto run = [&]<typename T>(T) {
    AddBonus<T> b;
    b.seeds = seeds, b.rows = rows, b.reward_stride = rewards.stride(0), b.squash = squash;
    b.novelty = dense_novelty.const_data_ptr<T>();
    b.covered = dense_covered.const_data_ptr<bool>(), b.eligible = dense_eligible.const_data_ptr<bool>();
    b.weight = weight.const_data_ptr<T>();
    b.rewards = rewards.mutable_data_ptr<T>();
    b.statistics = statistics.mutable_data_ptr<T>();
    const int32_t index = rewards.get_device_index();
    cuda::Device device;
    expect_launched(op, cuda::select_device(index, &device), shape_of(rewards));
    expect_launched(op, cuda::add_bonus(b, current_cuda_stream(index)), shape_of(rewards));
  };
  rewards.scalar_type() == ScalarType::Double ? run(double()) : run(float());
  return statistics;
}

}  // namespace
}  // namespace qcse

STABLE_TORCH_LIBRARY_IMPL(qcse, CUDA, m) { m.impl("add_bonus", TORCH_BOX(&qcse::add_bonus_cuda)); }

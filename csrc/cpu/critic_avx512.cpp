#include "critic_kernel.h"

namespace qcse::cpu {
namespace {

constexpr int kBytes = 64;
constexpr int kRows = 12;
constexpr int kFeatures = 8;

#include "critic_impl.h"

}  // namespace

const CriticKernelSet kAvx512Critic = {"avx512", make_critic_kernels<Plain<float>>(),
                                       make_critic_kernels<Plain<double>>()};

}  // namespace qcse::cpu

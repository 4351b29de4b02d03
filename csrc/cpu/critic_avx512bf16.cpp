#include <immintrin.h>

#include "critic_kernel.h"

namespace qcse::cpu {
namespace {

constexpr int kBytes = 64;
constexpr int kRows = 12;
constexpr int kFeatures = 8;

#include "critic_impl.h"
//
#include "critic_bf16.h"

}  // namespace

const CriticKernels<float> kBfloat16Critic = make_critic_kernels<Bfloat16>();

}  // namespace qcse::cpu

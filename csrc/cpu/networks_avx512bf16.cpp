#include <immintrin.h>

#include "network_kernels.h"

namespace qcse::cpu {
namespace {

constexpr int kBytes = 64;
constexpr int kRows = 12;
constexpr int kFeatures = 8;

#include "layers_impl.h"
//
#include "layers_bf16.h"
//
#include "critic_impl.h"

}  // namespace

const CriticKernels<float> kBfloat16Critic = make_critic_kernels<Bfloat16>();

}  // namespace qcse::cpu

#include <immintrin.h>

#include "network_kernels.h"

namespace qcse::cpu {
namespace {

constexpr int kBytes = 64;
constexpr int kRows = 8;
constexpr int kFeatures = 8;

#include "layers_impl.h"
//
#include "critic_impl.h"

}  // namespace

const CriticKernelSet kAvx512Critic = {"avx512", make_critic_kernels<Sparse<float>>(),
                                       make_critic_kernels<Sparse<double>>()};

}  // namespace qcse::cpu

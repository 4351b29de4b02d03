#include <immintrin.h>

#include "network_kernels.h"

namespace qcse::cpu {
namespace {

constexpr int kBytes = 32;
constexpr int kRows = 6;
constexpr int kFeatures = 4;

#include "layers_impl.h"
//
#include "critic_impl.h"

}  // namespace

const CriticKernelSet kAvx2Critic = {"avx2", make_critic_kernels<Sparse<float>>(),
                                     make_critic_kernels<Sparse<double>>()};

}  // namespace qcse::cpu

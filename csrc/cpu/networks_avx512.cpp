#include <immintrin.h>

#include "network_kernels.h"

#define QCSE_VECTOR_BYTES 64

namespace qcse::cpu {
namespace {

constexpr int kRows = 8;
constexpr int kFeatures = 8;

#include "networks_impl.h"

}  // namespace

const NetworkKernelSet kAvx512Networks = {"avx512", make_kernels<Sparse<float>>(), make_kernels<Sparse<double>>()};

}  // namespace qcse::cpu

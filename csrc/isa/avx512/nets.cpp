#include <immintrin.h>

#include "nets/cpu/kernels.h"

#define QCSE_VECTOR_BYTES 64

namespace qcse::cpu {
namespace {

constexpr int kRows = 8;
constexpr int kFeatures = 8;

#include "nets/cpu/kernels_impl.h"

}  // namespace

namespace avx512 {
extern const NetworkKernelSet kNetworks = {make_kernels<Sparse<float>>(), make_kernels<Sparse<double>>()};
}  // namespace avx512

}  // namespace qcse::cpu

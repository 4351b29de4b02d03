#include <immintrin.h>

#include "nets/cpu/kernels.h"

#define QCSE_VECTOR_BYTES 32

namespace qcse::cpu {
namespace {

constexpr int kRows = 6;
constexpr int kFeatures = 4;

#include "nets/cpu/kernels_impl.h"

}  // namespace

namespace avx2 {
extern const NetworkKernelSet kNetworks = {make_kernels<Sparse<float>>(), make_kernels<Sparse<double>>()};
}  // namespace avx2

}  // namespace qcse::cpu

#include <immintrin.h>

#include "nets/cpu/kernels.h"

#define QCSE_VECTOR_BYTES 64

namespace qcse::cpu {
namespace {

constexpr int kRows = 12;
constexpr int kFeatures = 8;

#include "nets/cpu/kernels_impl.h"
//
#include "layers_bf16.h"

}  // namespace

namespace avx512bf16 {
extern const NetworkKernels<float> kBfloat16Networks = make_kernels<Bfloat16>();
}  // namespace avx512bf16

}  // namespace qcse::cpu

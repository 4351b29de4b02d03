// AVX-512 (F, BW, DQ, VL): compiled with those instructions on, called only where the machine has them.
#include "knn/cpu/kernels.h"

#include <immintrin.h>

namespace qcse::cpu {
namespace {

#include "isa/avx512/vectors.h"

#include "knn/cpu/kernels_impl.h"

}  // namespace

namespace avx512 {
extern const KernelSet kSearch = {make_kernels<Float, 8, 1>(), make_kernels<Double, 8, 1>()};
}  // namespace avx512

}  // namespace qcse::cpu

#include "nets/cpu/kernels.h"

#define QCSE_VECTOR_BYTES 16

namespace qcse::cpu {
namespace {

constexpr int kRows = 6;
constexpr int kFeatures = 4;

#include "nets/cpu/kernels_impl.h"

}  // namespace

namespace portable {
extern const NetworkKernelSet kNetworks = {make_kernels<Sparse<float>>(), make_kernels<Sparse<double>>()};
}  // namespace portable

}  // namespace qcse::cpu

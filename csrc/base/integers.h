// Arithmetic on sizes. Files of an instruction set include it too: these functions are always inlined, so that no copy
// of them, compiled with instructions that the machine may not have, can replace another (see knn/cpu/kernels.h).
#pragma once
#include <cstdint>

namespace qcse {

[[gnu::always_inline]] constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
[[gnu::always_inline]] constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace qcse

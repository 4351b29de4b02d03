// How a block divides its work: the variants of the kernels' tiles, and which of them a build holds. The rules choose
// among the first few; those that tuned.h names were fastest somewhere; a build with QCSE_TUNING holds all that the
// laboratory measures, those that tuned.h names among them.
#pragma once
#include <utility>

#include "launch.h"
#include "tuned.h"

namespace qcse::cuda {

// clang-format off
// X(warps of a block, blocks that share a multiprocessor, queries a warp, candidates a lane)
#define QCSE_RULED_EXACT(X) X(8, 2, 4, 4) X(16, 1, 4, 4) X(16, 1, 4, 1) X(16, 1, 1, 1)
#ifdef QCSE_TUNING
#define QCSE_MORE_EXACT(X)                                              \
  X(16, 1, 4, 2) X(16, 1, 2, 4) X(16, 1, 2, 2) X(16, 1, 2, 1)           \
  X(8, 1, 8, 4) X(8, 2, 4, 2) X(8, 2, 4, 1) X(8, 2, 2, 4)               \
  X(8, 2, 2, 2) X(8, 2, 2, 1) X(8, 2, 1, 1) X(4, 4, 4, 4)
#else
#define QCSE_MORE_EXACT(X) QCSE_TUNED_EXACT(X)
#endif

// X(warps of a block at most, blocks that share a multiprocessor, candidates staged at a time, candidates that a warp
// compares with its 32 queries at a time). Blocks of 0: registers for two where shared memory has room for two and the
// compiler needs no spills, on sm_80 and sm_90 for up to 32 dimensions and neighbours in float32; for one elsewhere.
#define QCSE_RULED_SCREENED(X) X(8, 0, 128, 64)
#ifdef QCSE_TUNING
#define QCSE_MORE_SCREENED(X)                                            \
  X(8, 1, 128, 64) X(8, 2, 128, 32) X(8, 1, 256, 64) X(8, 2, 64, 64)     \
  X(4, 2, 128, 64) X(4, 3, 128, 32) X(4, 3, 64, 32) X(16, 1, 128, 32)
#else
#define QCSE_MORE_SCREENED(X) QCSE_TUNED_SCREENED(X)
#endif
// clang-format on

#define QCSE_VARIANT(...) Variant{__VA_ARGS__},
inline constexpr Variant kExactVariants[] = {QCSE_RULED_EXACT(QCSE_VARIANT) QCSE_MORE_EXACT(QCSE_VARIANT)};
inline constexpr Variant kScreenedVariants[] = {QCSE_RULED_SCREENED(QCSE_VARIANT) QCSE_MORE_SCREENED(QCSE_VARIANT)};
#undef QCSE_VARIANT

inline constexpr int kExact = static_cast<int>(sizeof(kExactVariants) / sizeof(Variant));
inline constexpr int kScreened = static_cast<int>(sizeof(kScreenedVariants) / sizeof(Variant));
inline constexpr int kRuledExact = 4;
inline constexpr int kRuledScreened = 1;

inline constexpr const char* kNoSuchVariant = "there is no such variant of this kernel for this dtype and k";

// Calls f.operator()<number>() for the variant of this number, among the first `kCount`; without one, does nothing.
template <int kCount, typename F>
void with_variant(int number, const F& f) {
  [&]<int... kNumbers>(std::integer_sequence<int, kNumbers...>) {
    static_cast<void>(((number == kNumbers && (f.template operator()<kNumbers>(), true)) || ...));
  }(std::make_integer_sequence<int, kCount>());
}

}  // namespace qcse::cuda

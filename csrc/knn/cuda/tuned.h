// Written by benchmarks/gpu/tune.py from what the laboratory measured; do not edit. Measured on:
//   NVIDIA H200, commit a7df61145b1b2c1646dc981e2e2ac4483cf03b9a
#pragma once
// clang-format off

// Variants beyond those of the rules that are fastest somewhere; see variants.h: X(warps, blocks, outer, inner)
#define QCSE_TUNED_EXACT(X) \
  X(16, 1, 2, 2)
#define QCSE_TUNED_SCREENED(X) \
  X(8, 1, 256, 64)

// The fastest kernel and variant at each measured shape (float32, k = 12): X(compute capability, queries of all batch
// entries, references, dimensions, path, warps, blocks, outer, inner)
#define QCSE_TUNED_CHOICES(X) \
  X(90, 256, 256, 17, kSmall, 16, 1, 1, 1) \
  X(90, 256, 65536, 17, kLarge, 8, 2, 4, 4) \
  X(90, 1024, 1024, 17, kSmall, 16, 1, 2, 2) \
  X(90, 1024, 1024, 111, kLarge, 8, 2, 4, 4) \
  X(90, 4096, 256, 17, kSmall, 16, 1, 4, 4) \
  X(90, 4096, 4096, 17, kSmall, 16, 1, 4, 4) \
  X(90, 4096, 4096, 111, kLarge, 16, 1, 4, 4) \
  X(90, 16384, 16384, 17, kScreened, 8, 1, 256, 64) \
  X(90, 65536, 65536, 5, kScreened, 8, 0, 128, 64) \
  X(90, 65536, 65536, 17, kScreened, 8, 0, 128, 64) \
  X(90, 65536, 65536, 111, kScreened, 8, 1, 256, 64) \
  X(90, 262144, 262144, 29, kScreened, 8, 0, 128, 64)

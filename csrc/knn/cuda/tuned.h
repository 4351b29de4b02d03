// Written by benchmarks/gpu/tune.py from what the laboratory measured; do not edit. No GPU has been measured yet: every
// choice goes by the rules in launch.cu, small.cu, large.cu and screened.cu.
#pragma once
// clang-format off

// Variants beyond those of the rules that are fastest somewhere; see variants.h: X(warps, blocks, outer, inner)
#define QCSE_TUNED_EXACT(X)
#define QCSE_TUNED_SCREENED(X)

// The fastest kernel and variant at each measured shape (float32, k = 12): X(compute capability, queries of all batch
// entries, references, dimensions, path, warps, blocks, outer, inner)
#define QCSE_TUNED_CHOICES(X)

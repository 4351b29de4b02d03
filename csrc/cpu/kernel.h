// What the per-instruction-set kernels offer to knn_cpu.cpp: plain structs and a table of functions.
//
// A kernel_<set>.cpp file is compiled with instructions that the machine may not have. It must therefore contain no
// function that the linker could merge with one of another file: everything in it has internal linkage, and no
// template or inline function of the standard library is used there.
#pragma once
#include <cstdint>

namespace qcse::cpu {

// Candidates are packed in tiles of 64, structure of arrays: states[tile][d][64]. The last tile is padded with
// infinite states, whose distance is never below a bound.
inline constexpr int64_t kTile = 64;

template <typename T>
struct Candidates {
  const T* states = nullptr;  // [tiles, dim, kTile]
  const T* values = nullptr;  // [tiles, kTile]
  int64_t tiles = 0;
  int64_t dim = 0;
};

// A block of queries that one thread works on. `lists` holds the k smallest keys so far, ascending, padded with
// infinity to a multiple of the vector width; the threshold is element k - 1.
template <typename T>
struct QueryBlock {
  const T* packed = nullptr;      // [groups, dim, group width]: the layout of scan_all
  const T* values = nullptr;      // [queries]
  const int32_t* self = nullptr;  // [queries]: packed position of the candidate that is the query itself, or -1
  T* lists = nullptr;             // [queries, list_stride]
  T* bounds = nullptr;            // [queries]: a pair whose squared distance is not below it can't matter
  int64_t queries = 0;            // a multiple of the group width; spare queries have a negative bound
  int64_t list_stride = 0;
  int64_t k = 0;
};

template <typename T>
struct Kernels {
  int64_t group;  // queries that share a register tile
  int64_t width;  // lanes of a vector
  // Every query of the block against the candidates of tiles [begin, end).
  void (*scan_all)(const Candidates<T>&, int64_t begin, int64_t end, const QueryBlock<T>&);
};

struct KernelSet {
  const char* name;
  Kernels<float> single;
  Kernels<double> twofold;
};

extern const KernelSet kPortableKernels;
#ifdef QCSE_X86_KERNELS
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
#endif

}  // namespace qcse::cpu

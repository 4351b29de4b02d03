// The CUDA launchers of the contract in knn.h. No CUDA and no torch header is needed to call them.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "base/cuda/launch.h"
#include "knn/knn.h"

namespace qcse::cuda {

// All kernels give the same bits. The small one is made for up to kSmallMaxRefs references, as far as they fit into
// shared memory, and refuses more; it is one launch. The others sort by value first; the screened one lets tensor cores
// rule pairs out. kAuto, the default everywhere, goes by the shape and the device; tests and benchmarks name one.
enum class Path { kAuto, kSmall, kLarge, kScreened };
inline constexpr int64_t kSmallMaxRefs = 16384;

// How a block divides its work; variants.h says what `outer` and `inner` mean for which kernel.
struct Variant {
  int warps, blocks, outer, inner;
  bool operator==(const Variant&) const = default;
};

// A kernel, and the number of one of its variants; -1 leaves that to the kernel's rule. Numbers other than -1 are for
// float32 and lists of up to 32.
struct Choice {
  Path path = Path::kAuto;
  int variant = -1;
};

// The variants that this build holds of a kernel.
std::vector<Variant> variants(Path path);

// What kAuto means from now on, for tests and benchmarks: "small", "large", "screened", or "auto" for the choice by
// shape.
void set_path(const std::string& name);

// What kAuto stands for at this shape on this device: the fastest at the nearest shape that was measured on this
// generation of GPUs (tuned.h), or what the rules say.
template <typename T>
Choice choose(const KnnProblem<T>& problem, const Device& device, Choice choice = {});

// Bytes of device memory, aligned to 256, that `launch` needs for this shape; may be 0. What it holds beforehand
// does not matter.
template <typename T>
size_t workspace_bytes(const KnnProblem<T>& problem, const Device& device, Choice choice = {});

// Enqueues the whole operator on `stream` (a cudaStream_t) of the current device and returns at once: no allocation,
// no synchronisation, nothing on another stream, so a stream capture may contain it, a first call too. The problem must
// not be empty.
template <typename T>
Status launch(const KnnProblem<T>& problem, const Device& device, void* workspace, void* stream, Choice choice = {});

}  // namespace qcse::cuda

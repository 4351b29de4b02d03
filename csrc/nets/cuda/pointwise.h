// The CUDA launchers of the contract in nets/pointwise.h; each is one launch, the conservative head's two. No CUDA and
// no torch header is needed to call them. They enqueue on `stream` (a cudaStream_t) of the current device and return at
// once: no allocation, no synchronisation, no memory that outlives the call, so a stream capture may contain them, a
// first call too. No size may be 0; rows of a network, and a layer's width, are at most kMostRows and kWidest.
#pragma once
#include <cstdint>

#include "base/cuda/launch.h"
#include "nets/pointwise.h"

namespace qcse::cuda {

inline constexpr int64_t kMostRows = INT32_MAX / 2;
inline constexpr int64_t kWidest = int64_t{1} << 21;

template <typename T>
Status launch(const BiasRelu<T>& problem, void* stream);
template <typename T>
Status launch(const ActionRelu<T>& problem, void* stream);
template <typename T>
Status launch(const ReluDot<T>& problem, void* stream);
template <typename T>
Status launch(const ReluGradient<T>& problem, void* stream);
template <typename T>
Status launch(const ActionReluGradient<T>& problem, void* stream);
template <typename T>
Status launch(const OuterReluGradient<T>& problem, void* stream);
template <typename T>
Status launch(const ConservativeHead<T>& problem, void* stream);

}  // namespace qcse::cuda

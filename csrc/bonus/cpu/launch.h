// The CPU backend of a batch's bonus (batch_entropy.h). No torch header: the caller lends its thread pool.
#pragma once
#include "base/threads.h"
#include "bonus/batch_entropy.h"

namespace qcse::cpu {

// Same bits for every thread count.
template <typename T>
void batch_entropy(const BatchEntropy<T>& batch, const Threads& threads);

}  // namespace qcse::cpu

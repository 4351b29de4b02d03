// The CPU backend of gathering transitions (buffer/gather.h). No torch header: the caller lends its thread pool.
#pragma once
#include "base/threads.h"
#include "buffer/gather.h"

namespace qcse::cpu {

// False where a row number is out of range: the output is then of no use.
bool gather(const Gather& g, const Threads& threads);

}  // namespace qcse::cpu

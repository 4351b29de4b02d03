// The CPU backend of the random operators (random.h). No torch header: the caller lends its thread pool.
#pragma once
#include "base/threads.h"
#include "random/random.h"

namespace qcse::cpu {

// Same bits for every thread count.
void random_numbers(const RandomNumbers& draw, const Threads& threads);
void random_rows(const RandomRows& draw, const Threads& threads);

}  // namespace qcse::cpu

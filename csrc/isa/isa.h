// The instruction sets that this build holds, and the one in use.
#pragma once
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace qcse::cpu {

struct KernelSet;         // knn/cpu/kernels.h
struct NetworkKernelSet;  // nets/cpu/kernels.h
template <typename T>
struct NetworkKernels;

// A row of the table in isa.cpp. The kernels may be those of an earlier set.
struct InstructionSet {
  const char* name;
  bool (*runs_here)();
  // Both, or neither where the set is no choice of its own but adds to the others.
  const KernelSet* search;
  const NetworkKernelSet* networks;
  const NetworkKernels<float>* bf16_networks;  // with products in bfloat16; null where the set has none
};

// The one in use: the best one, unless QCSE_CPU_ISA or set_instruction_set names another.
const InstructionSet& chosen_set();

// The names of all that can be chosen, best last: portable, avx2, avx512, avx512vnni as far as this machine runs them.
std::vector<const char*> instruction_sets();
const char* instruction_set();
void set_instruction_set(const std::string& name);

// The kernels of a set for numbers of this type.
template <typename T, class Set>
const auto& kernels_of(const Set& set) {
  if constexpr (std::is_same_v<T, float>) {
    return set.single;
  } else {
    return set.twofold;
  }
}

// What networks keep for the way back is laid out in an order of their own: a number says whose it is.
int64_t number_of(const NetworkKernelSet& networks);

// Null where this machine runs no networks of that number.
const NetworkKernelSet* networks_of_number(double number);

// The networks for `bf16`, whatever set is in use; null where this machine lacks the instructions.
const NetworkKernels<float>* bf16_networks();
inline bool has_bf16() { return bf16_networks() != nullptr; }

}  // namespace qcse::cpu

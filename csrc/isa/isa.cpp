#include "isa/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "knn/cpu/kernels.h"
#include "nets/cpu/kernels.h"

namespace qcse::cpu {
namespace {

#ifdef QCSE_X86_KERNELS
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

}  // namespace

// To add an instruction set: a folder beside this file, and a row here, where the last one that runs is the best. The
// folder holds PROCESSOR.flags, what to compile it with, and knn.cpp or nets.cpp or both, which define kSearch,
// kNetworks or kBfloat16Networks in a namespace of the folder's name. The row's columns: the folder, which is the set's
// name; does this machine run it; whose search, networks and networks with bfloat16 it takes.
// clang-format off
#define QCSE_EVERYWHERE(SET) \
  SET(portable, true, &portable::kSearch, &portable::kNetworks, nullptr)
#define QCSE_X86(SET) \
  SET(avx2, has_avx2(), &avx2::kSearch, &avx2::kNetworks, nullptr) \
  SET(avx512, has_avx512(), &avx512::kSearch, &avx512::kNetworks, nullptr) \
  SET(avx512vnni, has_avx512() && __builtin_cpu_supports("avx512vnni"), \
      &avx512vnni::kSearch, &avx512::kNetworks, nullptr) \
  SET(avx512bf16, has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi2"), \
      nullptr, nullptr, &avx512bf16::kBfloat16Networks)
// clang-format on

#ifdef QCSE_X86_KERNELS
#define QCSE_SETS(SET) QCSE_EVERYWHERE(SET) QCSE_X86(SET)
#else
#define QCSE_SETS(SET) QCSE_EVERYWHERE(SET)
#endif

// Whatever a folder may define; what it does not is never asked for.
#define QCSE_DECLARE(set, ...)                          \
  namespace set {                                       \
  extern const KernelSet kSearch;                       \
  extern const NetworkKernelSet kNetworks;              \
  extern const NetworkKernels<float> kBfloat16Networks; \
  }
QCSE_SETS(QCSE_DECLARE)

namespace {

#define QCSE_ROW(set, runs_here, ...) InstructionSet{#set, [] { return bool(runs_here); }, __VA_ARGS__},
constexpr InstructionSet kSets[] = {QCSE_SETS(QCSE_ROW)};

std::vector<const InstructionSet*> choices() {
  std::vector<const InstructionSet*> sets;
  for (const InstructionSet& set : kSets) {
    if (set.search != nullptr && set.runs_here()) sets.push_back(&set);
  }
  return sets;
}

const InstructionSet* find_set(const std::string& name) {
  const std::vector<const InstructionSet*> sets = choices();
  if (name.empty()) return sets.back();
  std::string known;
  for (const InstructionSet* set : sets) {
    if (name == set->name) return set;
    known += (known.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available here; expected one of: " + known +
                              " (it is named by QCSE_CPU_ISA or set_instruction_set)");
}

std::atomic<const InstructionSet*>& chosen() {
  static std::atomic<const InstructionSet*> set = [] {
    const char* name = std::getenv("QCSE_CPU_ISA");
    return find_set(name == nullptr ? "" : name);
  }();
  return set;
}

}  // namespace

const InstructionSet& chosen_set() { return *chosen().load(std::memory_order_relaxed); }

std::vector<const char*> instruction_sets() {
  std::vector<const char*> names;
  for (const InstructionSet* set : choices()) names.push_back(set->name);
  return names;
}

const char* instruction_set() { return chosen().load()->name; }

void set_instruction_set(const std::string& name) { chosen().store(find_set(name)); }

int64_t number_of(const NetworkKernelSet& networks) {
  int64_t number = 0;  // of the first row that has them
  while (kSets[number].networks != &networks) ++number;
  return number;
}

const NetworkKernelSet* networks_of_number(double number) {
  for (const InstructionSet* set : choices()) {
    if (static_cast<double>(number_of(*set->networks)) == number) return set->networks;
  }
  return nullptr;
}

const NetworkKernels<float>* bf16_networks() {
  const NetworkKernels<float>* best = nullptr;
  for (const InstructionSet& set : kSets) {
    if (set.bf16_networks != nullptr && set.runs_here()) best = set.bf16_networks;
  }
  return best;
}

}  // namespace qcse::cpu

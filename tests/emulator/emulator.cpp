// The scheduler: fibers, barriers, votes, shuffles, asynchronous copies, launches. Never instrumented.
#include <algorithm>
#include <map>

#include "emulator_internal.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch_stack
.type emulator_switch_stack, @function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stack, .-emulator_switch_stack
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_switch_stack
.type emulator_switch_stack, %function
emulator_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch_stack, .-emulator_switch_stack
)");
#endif

namespace emulator {

Thread* current = nullptr;
char* arenas = nullptr;
uint32_t launch_number = 0;
uint64_t accesses = 0;

namespace {

enum class Order { kForward, kNewestFirst, kRandom, kPriority };

Config g_config;
std::map<const void*, size_t> g_shared_limits;
const std::function<void()>* g_thread = nullptr;
std::vector<std::unique_ptr<Thread>> g_pool[kMaxResident];
Block g_blocks[kMaxResident];
std::vector<Thread*> g_ready;
size_t g_first_ready = 0;  // g_ready before this is done with
Order g_order;
uint64_t g_random = 1;
Kind g_failure = Kind::kNone;
std::string g_failure_message;

const char* name_of_vote(Vote vote) {
  constexpr const char* kNames[] = {"__syncwarp",        "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",
                                    "__shfl_xor_sync",   "__ballot_sync",     "__all_sync",        "__any_sync",
                                    "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_or_sync",
                                    "mma.sync"};
  return kNames[static_cast<int>(vote)];
}
std::string hex(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}
bool same(const Site& a, const Site& b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }
void report(Kind kind, const std::string& message) {
  if (g_failure != Kind::kNone) return;
  g_failure = kind;
  g_failure_message = message;
}

bool lower_priority(const Thread* a, const Thread* b) { return a->priority < b->priority; }
bool nobody_ready() { return g_first_ready == g_ready.size(); }
Thread* next_thread() {
  switch (g_order) {
    case Order::kForward: {
      Thread* const t = g_ready[g_first_ready++];
      if (nobody_ready() || g_first_ready > 8192) {
        g_ready.erase(g_ready.begin(), g_ready.begin() + static_cast<std::ptrdiff_t>(g_first_ready));
        g_first_ready = 0;
      }
      return t;
    }
    case Order::kNewestFirst: break;
    case Order::kRandom: std::swap(g_ready[random_number() % g_ready.size()], g_ready.back()); break;
    case Order::kPriority: std::pop_heap(g_ready.begin(), g_ready.end(), lower_priority); break;
  }
  Thread* const t = g_ready.back();
  g_ready.pop_back();
  return t;
}

void fiber_main() {
  (*g_thread)();
  current->in_kernel = false;
  if (!current->copies.empty()) copies_wait(0);
  current->state = Thread::State::kDone;
  current->fiber.suspend();
  __builtin_unreachable();
}

void start_block(Block& b, unsigned slot, uint64_t number, size_t shared_bytes) {
  b.slot = slot;
  b.number = number;
  b.index = {static_cast<unsigned>(number % gridDim.x), static_cast<unsigned>(number / gridDim.x % gridDim.y),
             static_cast<unsigned>(number / gridDim.x / gridDim.y)};
  b.arena = arenas + slot * kArena;
  b.shared_bytes = shared_bytes;
  b.arrays.clear();
  b.gates.clear();
  b.counters.clear();
  b.flights.clear();
  b.at_barrier = 0;
  b.alive = blockDim.x * blockDim.y * blockDim.z;
  // Poison: a float that is NaN, a large integer.
  for (size_t i = 0; i + 4 <= kArena && i < shared_bytes + 256; i += 4) {
    const uint32_t poison = 0x7fbadbad;
    std::memcpy(b.arena + i, &poison, 4);
  }
  checker::block_begins(b);
  b.threads.clear();
  auto& pool = g_pool[slot];
  while (pool.size() < b.alive) pool.push_back(std::make_unique<Thread>());
  for (unsigned i = 0; i < b.alive; ++i) {
    Thread* const t = pool[i].get();
    t->block = &b;
    t->number = i;
    t->warp = i / 32;
    t->lane = i % 32;
    t->index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    t->priority = random_number();
    t->in_kernel = false;
    t->copies.clear();
    t->copy_group = 0;
    t->copies_sent = 0;
    t->clock = 1;
    t->knowledge = {};
    t->fenced = false;
    t->past = nullptr;
    t->fiber.restart(fiber_main);
    b.threads.push_back(t);
    make_ready(t);
  }
}

// --- Barriers -------------------------------------------------------------------------------------------------------
void try_barrier(Block& b) {
  if (b.at_barrier == 0 || b.at_barrier != b.alive) return;
  const Thread* const first = *std::find_if(b.threads.begin(), b.threads.end(),
                                            [](const Thread* t) { return t->state == Thread::State::kAtBarrier; });
  if (b.alive != b.threads.size()) {
    report(Kind::kBarrierDivergence, "block " + std::to_string(b.number) + ": " + std::to_string(b.alive) + " of " +
                                         std::to_string(b.threads.size()) + " threads reached the barrier at " +
                                         describe(first->site) + ", the others have returned");
    return;
  }
  int count = 0;
  for (const Thread* t : b.threads) {
    if (!same(t->site, first->site)) {
      report(Kind::kBarrierDivergence, "block " + std::to_string(b.number) + ": thread " +
                                           std::to_string(first->number) + " is at the barrier at " +
                                           describe(first->site) + ", thread " + std::to_string(t->number) + " at " +
                                           describe(t->site));
      return;
    }
    count += t->operand != 0;
  }
  b.at_barrier = 0;
  Past together;
  for (const Thread* t : b.threads) together = joined(together, t->past);
  for (Thread* t : b.threads) {
    t->past = together;
    switch (t->barrier) {
      case Barrier::kPlain:
      case Barrier::kCount: t->result = static_cast<uint64_t>(count); break;
      case Barrier::kAnd: t->result = count == static_cast<int>(b.threads.size()); break;
      case Barrier::kOr: t->result = count != 0; break;
    }
    ++t->knowledge.epoch;
    make_ready(t);
  }
}

// --- Tensor cores ---------------------------------------------------------------------------------------------------
// How far a result may be from the exact one, relative to the sum of the addends' magnitudes; the rounding of the
// result to single precision takes the rest of 2^-18.
constexpr double kMatrixError = 0x1p-18 * (31.0 / 32.0);

void multiply_matrices(Thread* const (&lane)[32]) {
  const auto of = [&](unsigned l) { return reinterpret_cast<const MatrixLane*>(lane[l]->value); };
  float a[16][16], b[16][8];
  for (unsigned l = 0; l < 32; ++l) {
    const unsigned g = l / 4, t = l % 4;
    for (unsigned half = 0; half < 2; ++half) {
      const auto part = [&](unsigned word) { return half_value(word >> (16 * half) & 0xffffu); };
      for (unsigned pair = 0; pair < 2; ++pair) {
        const unsigned k = 8 * pair + 2 * t + half;
        a[g][k] = part(of(l)->a[2 * pair]);
        a[g + 8][k] = part(of(l)->a[2 * pair + 1]);
        b[k][g] = part(of(l)->b[pair]);
      }
    }
  }
  for (unsigned l = 0; l < 32; ++l) {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
      float& result = of(l)->sum[i];
      double sum = result, size = std::fabs(result);
      for (unsigned k = 0; k < 16; ++k) {
        const double product = static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
        sum += product;
        size += std::fabs(product);
      }
      if (std::isfinite(size)) {
        constexpr double kParts = 1 << 20;
        const uint64_t style = g_config.seed % 3;
        const double part = style == 0   ? 1
                            : style == 1 ? -1
                                         : 2 * static_cast<double>(random_number() % (1 << 20)) / kParts - 1;
        sum += part * kMatrixError * size;
      }
      result = static_cast<float>(sum);
    }
  }
}

// --- Votes and shuffles ---------------------------------------------------------------------------------------------
void complete_vote(Block& b, unsigned mask, Thread* any) {
  Thread* lane[32] = {};
  for (unsigned l = 0; l < 32; ++l) {
    if (mask >> l & 1) lane[l] = b.threads[any->warp * 32 + l];
  }
  uint64_t ballot = 0;
  uint32_t bits = 0;
  int32_t sum = 0, least = INT32_MAX, most = INT32_MIN;
  Knowledge together;
  Past past;
  for (unsigned l = 0; l < 32; ++l) {
    if (lane[l] == nullptr) continue;
    if (lane[l]->value != 0) ballot |= uint64_t{1} << l;
    const auto value = static_cast<int32_t>(lane[l]->value);
    sum = static_cast<int32_t>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(value));
    least = std::min(least, value);
    most = std::max(most, value);
    bits |= static_cast<uint32_t>(value);
    if (any->vote == Vote::kSync) past = joined(past, lane[l]->past);
    together.known[l] = std::max(together.known[l], lane[l]->clock);
    for (unsigned o = 0; o < 32; ++o) {
      together.known[o] = std::max(together.known[o], lane[l]->knowledge.known[o]);
    }
  }
  if (any->vote == Vote::kMatrix) multiply_matrices(lane);
  for (unsigned l = 0; l < 32; ++l) {
    Thread* const t = lane[l];
    if (t == nullptr) continue;
    int source = static_cast<int>(l);
    switch (t->vote) {
      case Vote::kSync:  // the only one that orders memory
        t->knowledge.known = together.known;
        t->past = past;
        ++t->clock;
        break;
      case Vote::kShuffle: source = t->operand & 31; break;
      case Vote::kShuffleUp: source = static_cast<int>(l) - t->operand; break;
      case Vote::kShuffleDown: source = static_cast<int>(l) + t->operand; break;
      case Vote::kShuffleXor: source = static_cast<int>(l) ^ t->operand; break;
      case Vote::kBallot: t->result = ballot; break;
      case Vote::kAll: t->result = ballot == mask; break;
      case Vote::kAny: t->result = ballot != 0; break;
      case Vote::kAdd: t->result = static_cast<uint32_t>(sum); break;
      case Vote::kMin: t->result = static_cast<uint32_t>(least); break;
      case Vote::kMax: t->result = static_cast<uint32_t>(most); break;
      case Vote::kOr: t->result = bits; break;
      case Vote::kMatrix: break;
    }
    if (t->vote >= Vote::kShuffle && t->vote <= Vote::kShuffleXor) {
      if (source < 0 || source > 31) source = static_cast<int>(l);  // out of the warp: a lane keeps its own value
      if (lane[source] == nullptr) {
        report(Kind::kBadMask, std::string(name_of_vote(t->vote)) + " at " + describe(t->site) + ": lane " +
                                   std::to_string(l) + " reads lane " + std::to_string(source) +
                                   ", which is not in the mask " + hex(mask));
        return;
      }
      t->result = lane[source]->value;
    }
  }
  for (Thread* t : lane) {
    if (t != nullptr) make_ready(t);
  }
}

void try_vote(Block& b, Thread* t) {
  for (unsigned l = 0; l < 32; ++l) {
    if ((t->mask >> l & 1) == 0) continue;
    const size_t number = t->warp * 32 + l;
    const Thread* const other = number < b.threads.size() ? b.threads[number] : nullptr;
    if (other == nullptr || other->state == Thread::State::kDone) {
      report(Kind::kBadMask, std::string(name_of_vote(t->vote)) + " at " + describe(t->site) + " in block " +
                                 std::to_string(b.number) + ": the mask " + hex(t->mask) + " names lane " +
                                 std::to_string(l) + ", which has returned or does not exist");
      return;
    }
    if (other->state != Thread::State::kAtVote) return;  // not here yet
    if (other->vote != t->vote || other->mask != t->mask || !same(other->site, t->site)) {
      report(Kind::kWarpDivergence, std::string(name_of_vote(t->vote)) + " with mask " + hex(t->mask) + " at " +
                                        describe(t->site) + " in block " + std::to_string(b.number) + ": lane " +
                                        std::to_string(l) + " is in " + name_of_vote(other->vote) + " with mask " +
                                        hex(other->mask) + " at " + describe(other->site));
      return;
    }
  }
  complete_vote(b, t->mask, t);
}

void report_deadlock() {
  std::string message = "no thread can go on";
  for (const Block& b : g_blocks) {
    if (b.alive == 0) continue;
    std::map<std::string, int> groups;
    for (const Thread* t : b.threads) {
      if (t->state == Thread::State::kDone) ++groups["returned"];
      if (t->state == Thread::State::kAtBarrier) ++groups["at the barrier at " + describe(t->site)];
      if (t->state == Thread::State::kAtGate) ++groups["at the gate at " + describe(t->site)];
      if (t->state == Thread::State::kAtVote) {
        ++groups["in " + std::string(name_of_vote(t->vote)) + " at " + describe(t->site)];
      }
    }
    for (const auto& [where, count] : groups) {
      message += "; block " + std::to_string(b.number) + ": " + std::to_string(count) + " threads " + where;
    }
  }
  report(Kind::kDeadlock, message);
}

// Copies land at any time: as late as can be, at once, or at random by the seed. False where none is on its way.
bool land_some() {
  Block* flying[kMaxResident];
  size_t count = 0;
  for (Block& b : g_blocks) {
    if (b.alive != 0 && !b.flights.empty()) flying[count++] = &b;
  }
  if (count == 0) return false;
  const bool now =
      nobody_ready() || g_order == Order::kNewestFirst || (g_order != Order::kForward && random_number() % 64 == 0);
  return !now || land_copies(*flying[random_number() % count]);
}

// Runs until a block is finished, nobody can go on, or something failed.
void run_threads() {
  while (g_failure == Kind::kNone) {
    const bool flying = land_some();
    if (nobody_ready()) {
      if (!flying) return;
      continue;
    }
    Thread* const t = next_thread();
    Block& b = *t->block;
    current = t;
    threadIdx = t->index;
    blockIdx = b.index;
    t->fiber.resume();
    current = nullptr;
    if (g_failure != Kind::kNone) return;
    switch (t->state) {
      case Thread::State::kReady: make_ready(t); break;
      case Thread::State::kAtBarrier:
        ++b.at_barrier;
        try_barrier(b);
        break;
      case Thread::State::kAtVote: try_vote(b, t); break;
      case Thread::State::kAtGate: break;
      case Thread::State::kDone:
        --b.alive;
        if (b.alive == 0) return;
        try_barrier(b);
        for (unsigned l = 0; l < 32; ++l) {  // somebody may be waiting for this lane in vain
          const size_t number = t->warp * 32 + l;
          if (number >= b.threads.size()) break;
          Thread* const other = b.threads[number];
          if (other->state == Thread::State::kAtVote && (other->mask >> t->lane & 1)) {
            try_vote(b, other);
            break;
          }
        }
        break;
    }
  }
}

}  // namespace

void make_ready(Thread* t) {
  t->state = Thread::State::kReady;
  g_ready.push_back(t);
  if (g_order == Order::kPriority) {
    if (random_number() % 64 == 0) t->priority = random_number();  // now and then a thread's luck changes
    std::push_heap(g_ready.begin(), g_ready.end(), lower_priority);
  }
}
void wait_as(Thread::State state) {
  current->state = state;
  current->fiber.suspend();
}

Config& config() { return g_config; }
uint64_t accesses_so_far() { return accesses; }
uint64_t launches_so_far() { return launch_number; }
void library_call() { ++launch_number; }

const char* name_of(Kind kind) {
  constexpr const char* kNames[] = {"none",          "barrier divergence", "warp divergence",
                                    "bad mask",      "deadlock",           "data race",
                                    "out of bounds", "uninitialised read", "read of a pending copy",
                                    "host memory",   "misaligned access",  "shared memory"};
  return kNames[static_cast<int>(kind)];
}
std::string describe(const Site& site) {
  const char* const slash = std::strrchr(site.file, '/');
  return std::string(slash != nullptr ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}
uint64_t random_number() {  // splitmix64
  g_random += 0x9e3779b97f4a7c15u;
  uint64_t z = g_random;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// From a fiber: the launch is over, and the fiber is never resumed.
void fail(Kind kind, const std::string& message) {
  if (current == nullptr) throw Error(kind, message);
  report(kind, message + " [block " + std::to_string(current->block->number) + ", warp " +
                   std::to_string(current->warp) + ", lane " + std::to_string(current->lane) + "]");
  current->fiber.suspend();
  __builtin_unreachable();
}

void kernel_begins() { current->in_kernel = true; }

uint64_t vote(Vote vote, unsigned mask, uint64_t value, int operand, Site site) {
  Thread* const t = current;
  if ((mask >> t->lane & 1) == 0) {
    fail(Kind::kBadMask, std::string(name_of_vote(vote)) + " at " + describe(site) +
                             ": the calling lane is not in its own mask " + hex(mask));
  }
  t->vote = vote;
  t->mask = mask;
  t->value = value;
  t->operand = operand;
  t->site = site;
  wait_as(Thread::State::kAtVote);
  return t->result;
}

int barrier(Barrier kind, int predicate, Site site) {
  Thread* const t = current;
  t->barrier = kind;
  t->operand = predicate;
  t->site = site;
  wait_as(Thread::State::kAtBarrier);
  return static_cast<int>(t->result);
}

void* shared_array(size_t offset, size_t bytes) {
  Block& b = *current->block;
  if (b.arrays.insert({offset, bytes}).second) {
    if (offset + bytes > b.shared_bytes) {
      fail(Kind::kSharedMemory, "an array of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                                    " does not fit into the launch's " + std::to_string(b.shared_bytes));
    }
    checker::shared_array_named(b, offset, bytes);
  }
  return b.arena + offset;
}

// The compiler may split a vector access, which would hide that a GPU's vector instruction would have failed.
void require_alignment(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    fail(Kind::kMisaligned, "a vector access to an address that is not a multiple of " + std::to_string(bytes));
  }
}

// Round to nearest even, for magnitudes that half precision holds.
unsigned half_bits(float a) {
  const unsigned sign = std::signbit(a) ? 0x8000u : 0u;
  const float size = std::fabs(a);
  if (size < 0x1p-14f) return sign | static_cast<unsigned>(std::nearbyint(size * 0x1p24f));  // the largest: 2^-14
  const int exponent = std::ilogb(size);
  const auto fraction = static_cast<unsigned>(std::nearbyint(std::ldexp(size, 10 - exponent)));  // 1024 .. 2048
  return sign | ((static_cast<unsigned>(exponent + 15) << 10) + (fraction - 1024));
}
float half_value(unsigned bits) {
  const unsigned exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                   : std::ldexp(static_cast<float>(1024 + fraction), static_cast<int>(exponent) - 25);
  return (bits & 0x8000u) != 0 ? -size : size;
}
void multiply_halves(float* sum, const unsigned* a, const unsigned* b, Site site) {
  const MatrixLane mine{a, b, sum};
  vote(Vote::kMatrix, 0xffffffffu, reinterpret_cast<uint64_t>(&mine), 0, site);
}

void fence() { checker::fence_passed(); }

void before_atomic(void* pointer, size_t bytes) {
  if (random_number() % 8 == 0) wait_as(Thread::State::kReady);  // others may come first
  checker::access(pointer, bytes, true, true, __builtin_return_address(0));
}

void copy_async(void* shared, const void* global, size_t bytes, Site site) {
  Thread* const t = current;
  const auto* const to = static_cast<char*>(shared);
  if (bytes != 4 && bytes != 8 && bytes != 16) {
    fail(Kind::kMisaligned, "an asynchronous copy of " + std::to_string(bytes) + " bytes at " + describe(site));
  }
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 || reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    fail(Kind::kMisaligned, "an asynchronous copy of " + std::to_string(bytes) + " bytes at " + describe(site) +
                                " between addresses that are not multiples of it");
  }
  if (to < t->block->arena || to >= t->block->arena + kArena) {
    fail(Kind::kOutOfBounds, "an asynchronous copy at " + describe(site) + " to what is not shared memory");
  }
  void* const pc = __builtin_return_address(0);
  checker::access(global, bytes, false, false, pc);
  checker::access(shared, bytes, true, false, pc);
  checker::set_pending(shared, bytes, true);
  const bool early = random_number() % 2 == 0;
  if (early) std::memcpy(shared, global, bytes);
  t->copies.push_back({shared, global, bytes, t->copy_group, early});
}
void copies_commit() { ++current->copy_group; }
void copies_wait(unsigned but_newest) {
  Thread* const t = current;
  size_t done = 0;
  for (; done < t->copies.size() && t->copies[done].group + but_newest < t->copy_group; ++done) {
    const PendingCopy& c = t->copies[done];
    if (!c.landed) std::memcpy(c.shared, c.global, c.bytes);
    checker::set_pending(c.shared, c.bytes, false);
    checker::access(c.shared, c.bytes, true, false, __builtin_return_address(0));
  }
  t->copies.erase(t->copies.begin(), t->copies.begin() + static_cast<std::ptrdiff_t>(done));
}

size_t shared_limit(const void* kernel) {
  const auto found = g_shared_limits.find(kernel);
  return found == g_shared_limits.end() ? 48 * 1024 : found->second;
}
void set_shared_limit(const void* kernel, size_t bytes) {
  size_t& limit = g_shared_limits[kernel];
  if (bytes < limit) throw Error(Kind::kSharedMemory, "a kernel's limit is lowered");
  limit = bytes;
}
void forget_shared_limits() { g_shared_limits.clear(); }

void* allocate(size_t bytes) { return checker::allocate(bytes); }
void release(void* pointer) { checker::release(pointer); }
void write(void* device, const void* host, size_t bytes) {
  std::memcpy(device, host, bytes);
  checker::written_by_host(device, bytes);
}

void run(const char*, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  if (arenas == nullptr) {
    void* const memory = mmap(nullptr, kArena * kMaxResident, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    arenas = static_cast<char*>(memory);
  }
  ++launch_number;
  gridDim = grid;
  blockDim = block;
  g_thread = &thread;
  g_failure = Kind::kNone;
  g_ready.clear();
  g_first_ready = 0;
  const uint64_t seed = g_config.seed;
  g_random = seed * 0x2545f4914f6cdd1du + 1;
  g_order = seed == 0   ? Order::kForward
            : seed == 1 ? Order::kNewestFirst
            : seed % 2  ? Order::kPriority
                        : Order::kRandom;
  const unsigned resident = seed < 2 ? 1 : 1 + static_cast<unsigned>(seed % 3);
  checker::launch_begins();

  std::vector<uint64_t> numbers(uint64_t{grid.x} * grid.y * grid.z);
  for (uint64_t i = 0; i < numbers.size(); ++i) numbers[i] = i;
  if (seed == 1) std::reverse(numbers.begin(), numbers.end());
  if (seed > 1) {
    for (size_t i = numbers.size(); i > 1; --i) std::swap(numbers[i - 1], numbers[random_number() % i]);
  }
  for (Block& b : g_blocks) b.alive = 0;
  size_t next = 0;
  for (;;) {
    bool busy = false;
    for (unsigned slot = 0; slot < resident; ++slot) {
      Block& b = g_blocks[slot];
      if (b.alive == 0 && next < numbers.size()) start_block(b, slot, numbers[next++], shared_bytes);
      busy |= b.alive != 0;
    }
    if (!busy) return;
    const bool could_run = !nobody_ready() || land_some();
    run_threads();
    if (g_failure == Kind::kNone && !could_run) report_deadlock();
    if (g_failure != Kind::kNone) {
      for (Block& b : g_blocks) b.alive = 0;
      throw Error(g_failure, g_failure_message);
    }
  }
}

}  // namespace emulator

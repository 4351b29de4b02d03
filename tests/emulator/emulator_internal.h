// What the scheduler and the checker share.
#pragma once
#include <array>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cuda_emulator.h"
#include "fiber.h"

namespace emulator {

inline constexpr size_t kArena = 320 * 1024;  // shared memory of one resident block, with room for its red zones
inline constexpr unsigned kMaxResident = 4;

struct Block;

struct PendingCopy {
  void* shared;
  const void* global;
  size_t bytes;
  unsigned group;
  bool landed;  // the bytes are there already, which the kernel must not know
};

// One thread's order before others: `known[l]` is the latest clock of lane l that happened before now.
struct Knowledge {
  uint32_t epoch = 1;  // barriers passed
  std::array<uint32_t, 32> known{};
};

// Of each thread of a block, and after them of each thread's copies: up to which clock they happened before now, as far
// as gates and counters order them. Never changed once it is made, so that threads share it; null: nothing is ordered.
inline constexpr unsigned kThreads = 1024;
using Clocks = std::array<uint32_t, 2 * kThreads>;
using Past = std::shared_ptr<const Clocks>;

struct Thread {
  enum class State { kReady, kAtBarrier, kAtVote, kAtGate, kDone };
  Block* block = nullptr;
  uint3 index{};
  unsigned number = 0, warp = 0, lane = 0;
  State state = State::kDone;
  uint64_t priority = 0;
  bool in_kernel = false;
  // What it waits for, and the answer.
  Vote vote{};
  Barrier barrier{};
  unsigned mask = 0;
  uint64_t value = 0, result = 0;
  int operand = 0;
  Site site{};
  // Asynchronous copies
  std::vector<PendingCopy> copies;
  unsigned copy_group = 0;
  uint32_t copies_sent = 0;  // arrivals after copies so far
  // Order, for the checker
  uint32_t clock = 1;
  Knowledge knowledge;
  Knowledge at_fence;  // as it was at the last fence
  bool fenced = false;
  Past past;
  const uint64_t* gate = nullptr;  // at which it waits
  Fiber fiber;
};

struct GateState {
  unsigned arrivals = 0, missing = 0;
  uint64_t openings = 0;
  uint32_t preparer = 0, epoch = 0, clock = 0;  // who prepared it when
  Past gathered, opened;                        // by the arrivals since the last opening; by those before it
};

// An arrival that comes with the thread's copies.
struct Flight {
  Thread* thread;
  std::vector<PendingCopy> copies;
  const uint64_t* gate;
  uint32_t number;
};

struct Block {
  unsigned slot = 0;
  uint64_t number = 0;
  uint3 index{};
  std::vector<Thread*> threads;
  unsigned alive = 0, at_barrier = 0;
  char* arena = nullptr;
  size_t shared_bytes = 0;
  std::set<std::pair<size_t, size_t>> arrays;  // offset and bytes of the shared arrays that were named so far
  std::map<const uint64_t*, GateState> gates;
  std::map<const unsigned*, Past> counters;  // what the additions so far tell
  std::vector<Flight> flights;
};

extern Thread* current;  // null while the host runs
extern char* arenas;     // kMaxResident of them
extern uint32_t launch_number;
extern uint64_t accesses;  // of kernels to device memory, since the beginning

[[noreturn]] void fail(Kind kind, const std::string& message);
std::string describe(const Site& site);
uint64_t random_number();
void make_ready(Thread* thread);
void wait_as(Thread::State state);  // from a fiber

// gates.cpp
Past joined(const Past& a, const Past& b);
bool land_copies(Block& block);  // of one arrival; false where none is on its way

// checker.cpp
namespace checker {
void launch_begins();
void block_begins(Block& block);
void shared_array_named(Block& block, size_t offset, size_t bytes);
void access(const void* pointer, size_t bytes, bool write, bool atomic, const void* pc);
void set_pending(const void* shared, size_t bytes, bool pending);
void fence_passed();
void copy_landed(const Thread& by, const PendingCopy& copy, uint32_t number);
bool last_write_was_atomic(const void* shared);
// Did something that thread `thread` of the same block did at (epoch, clock) happen before what t does now?
bool happened_before(uint32_t thread, uint32_t epoch, uint32_t clock, const Thread& t);
void* allocate(size_t bytes);
void release(void* pointer);
void written_by_host(void* pointer, size_t bytes);
}  // namespace checker

}  // namespace emulator

// Memory rules. Kernels are compiled with -fsanitize=thread, by which the compiler calls __tsan_read4 and its like
// before each load and store; this file stands in for the sanitizer's run-time library. For each 4 bytes of device
// memory it remembers whether they are allocated, initialised, the target of a pending copy, and who wrote and read
// them last. Never instrumented itself.
//
// What orders two accesses of one launch: the same thread; a block barrier between them; a __syncwarp between lanes of
// one warp; within a block, a gate that the first arrives at and the second passes, or a counter that both add to in
// order; between blocks, a fence and an atomic after the first, an atomic on the same address and a fence before the
// second. Shuffles and votes order nothing.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "emulator_internal.h"

namespace emulator::checker {
namespace {

struct Access {
  uint32_t launch = 0, epoch = 0, clock = 0;
  uint16_t thread = 0;
  uint8_t bytes = 0;  // which of the word's four
  bool atomic = false;
  uint64_t block = 0;
  const void* pc = nullptr;
};

struct Word {
  Access write;
  Access read;           // the latest
  uint32_t readers = 0;  // others since the last write, where there are several: an index into g_readers
  uint8_t allocated = 0, initialised = 0, pending = 0;
};

// What a thread made visible to other blocks: its own past, and what it knew to have happened in its block.
struct Release {
  uint64_t block;
  uint32_t thread, clock;
  Knowledge knowledge;
};
struct Acquired {
  Release release;
  uint32_t thread, epoch, clock;  // by whom and when
};

constexpr size_t kHeap = size_t{1} << 28;
constexpr size_t kRedZone = 512;
char* g_heap = nullptr;
Word* g_heap_words = nullptr;
Word* g_arena_words = nullptr;
size_t g_heap_end = 0;
size_t g_arena_used[kMaxResident] = {};  // bytes whose words the block before may have touched
std::map<char*, size_t> g_allocations;
std::vector<std::vector<Access>> g_readers(1);
std::vector<uint32_t> g_free_readers;
std::map<const void*, std::vector<Release>> g_released;        // by address of the atomic
std::map<const Thread*, std::vector<Release>> g_read_atomics;  // seen by a thread, not yet fenced
std::map<uint64_t, std::vector<Acquired>> g_acquired;          // by block
const char* g_image_begin = nullptr;  // the shared object that holds the kernels: its constants may be read
const char* g_image_end = nullptr;

void* reserve(size_t bytes) {
  void* const p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return p;
}
void initialise() {
  if (g_heap != nullptr) return;
  g_heap = static_cast<char*>(reserve(kHeap));
  g_heap_words = static_cast<Word*>(reserve(kHeap / 4 * sizeof(Word)));
  g_arena_words = static_cast<Word*>(reserve(kArena * kMaxResident / 4 * sizeof(Word)));
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) {
        const char *begin = nullptr, *end = nullptr;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
          const auto* const b = reinterpret_cast<const char*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
          if (begin == nullptr || b < begin) begin = b;
          end = std::max(end, b + info->dlpi_phdr[i].p_memsz);
        }
        const auto* const here = reinterpret_cast<const char*>(&launch_number);
        if (here < begin || here >= end) return 0;
        g_image_begin = begin;
        g_image_end = end;
        return 1;
      },
      nullptr);
}

bool in_heap(const char* p) { return p >= g_heap && p < g_heap + kHeap; }
bool in_arenas(const char* p) { return p >= arenas && p < arenas + kArena * kMaxResident; }

std::string source_line(const void* pc) {
  Dl_info info;
  if (dladdr(pc, &info) == 0) return "an unknown place";
  char command[1024];
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                static_cast<size_t>(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase)) - 1);
  std::string lines;
  if (FILE* const pipe = popen(command, "r")) {
    char text[512];
    while (std::fgets(text, sizeof text, pipe) != nullptr) {
      std::string line = text;
      line = line.substr(0, line.find_first_of(" \n"));
      line = line.substr(line.rfind('/') + 1);
      lines += (lines.empty() ? "" : " < ") + line;
    }
    pclose(pipe);
  }
  return lines.empty() ? "an unknown place" : lines;
}
std::string place_of(const char* p) {
  if (in_arenas(p)) {
    const Block& b = *current->block;
    if (static_cast<size_t>(p - arenas) / kArena != b.slot) return "another block's shared memory";
    const auto offset = static_cast<size_t>(p - b.arena);
    std::string nearest = "shared memory before the first array";
    for (const auto& [at, bytes] : b.arrays) {
      if (at > offset) break;
      nearest = "byte " + std::to_string(offset - at) + " of the shared array of " + std::to_string(bytes) + " bytes";
    }
    return nearest;
  }
  if (in_heap(p)) {
    auto after = g_allocations.upper_bound(const_cast<char*>(p));
    if (after == g_allocations.begin()) return "device memory before the first allocation";
    const auto& [begin, bytes] = *std::prev(after);
    return "byte " + std::to_string(p - begin) + " of a device allocation of " + std::to_string(bytes) + " bytes";
  }
  return "an address that is not the device's";
}
std::string who(const Access& a) {
  const std::string thread = a.thread < kThreads ? "thread " + std::to_string(a.thread)
                                                 : "a copy of thread " + std::to_string(a.thread - kThreads);
  return "block " + std::to_string(a.block) + ", " + thread + " at " + source_line(a.pc);
}
[[noreturn]] void bad_access(Kind kind, const char* p, size_t bytes, bool write, const void* pc,
                             const std::string& more = "") {
  fail(kind, std::string(write ? "write" : "read") + " of " + std::to_string(bytes) + " bytes at " + source_line(pc) +
                 ", " + place_of(p) + more);
}

bool ordered(const Access& a, const Thread& t) {
  if (a.launch != launch_number) return true;
  if (a.block == t.block->number) return happened_before(a.thread, a.epoch, a.clock, t);
  const auto found = g_acquired.find(t.block->number);
  if (found == g_acquired.end()) return false;
  for (const Acquired& q : found->second) {
    const Release& r = q.release;
    if (r.block != a.block || !happened_before(q.thread, q.epoch, q.clock, t)) continue;
    if (a.thread == r.thread ? a.clock <= r.clock && a.epoch <= r.knowledge.epoch
                             : a.epoch < r.knowledge.epoch ||
                                   (a.thread / 32u == r.thread / 32u && a.clock <= r.knowledge.known[a.thread % 32])) {
      return true;
    }
  }
  return false;
}

void forget_readers(Word& w) {
  if (w.readers != 0) {
    g_readers[w.readers].clear();
    g_free_readers.push_back(w.readers);
    w.readers = 0;
  }
  w.read = {};
}
void remember_read(Word& w, const Access& now) {
  if (w.read.bytes == 0 || w.read.launch != now.launch) {
    forget_readers(w);
    w.read = now;
    return;
  }
  if (w.read.block == now.block && w.read.thread == now.thread) {  // its later read stands for the earlier
    const uint8_t bytes = w.read.bytes | now.bytes;
    w.read = now;
    w.read.bytes = bytes;
    return;
  }
  if (w.readers == 0) {
    if (g_free_readers.empty()) {
      g_free_readers.push_back(static_cast<uint32_t>(g_readers.size()));
      g_readers.emplace_back();
    }
    w.readers = g_free_readers.back();
    g_free_readers.pop_back();
  }
  std::vector<Access>& others = g_readers[w.readers];
  // A read that a barrier separates from now is ordered before any write that is ordered after now.
  if (w.read.block == now.block && w.read.epoch < now.epoch) {
    others.erase(std::remove_if(others.begin(), others.end(),
                                [&](const Access& a) { return a.block == now.block && a.epoch < now.epoch; }),
                 others.end());
  } else {
    const auto again = std::find_if(others.begin(), others.end(),
                                    [&](const Access& a) { return a.block == now.block && a.thread == now.thread; });
    if (again != others.end()) others.erase(again);
    others.push_back(w.read);
  }
  w.read = now;
}

void word_access(Word& w, uint8_t bytes, bool write, bool atomic, const void* pc, const char* p, size_t total) {
  Thread& t = *current;
  if ((w.allocated & bytes) != bytes) bad_access(Kind::kOutOfBounds, p, total, write, pc);
  if ((w.pending & bytes) != 0) {
    bad_access(write ? Kind::kRace : Kind::kCopyPending, p, total, write, pc,
               ", which an asynchronous copy is filling");
  }
  if ((!write || atomic) && (w.initialised & bytes) != bytes) bad_access(Kind::kUninitialised, p, total, write, pc);
  if ((w.write.bytes & bytes) != 0 && !(atomic && w.write.atomic) && !ordered(w.write, t)) {
    bad_access(Kind::kRace, p, total, write, pc, ", not ordered after the write by " + who(w.write));
  }
  const Access now{launch_number, t.knowledge.epoch, t.clock, static_cast<uint16_t>(t.number), bytes,
                   atomic,        t.block->number,   pc};
  if (!write) {
    remember_read(w, now);
    return;
  }
  const auto clash = [&](const Access& read) {
    return (read.bytes & bytes) != 0 && read.launch == launch_number && !ordered(read, t);
  };
  if (clash(w.read)) {
    bad_access(Kind::kRace, p, total, write, pc, ", not ordered after the read by " + who(w.read));
  }
  if (w.readers != 0) {
    for (const Access& read : g_readers[w.readers]) {
      if (clash(read)) bad_access(Kind::kRace, p, total, write, pc, ", not ordered after the read by " + who(read));
    }
  }
  forget_readers(w);
  const bool again = w.write.launch == now.launch && w.write.block == now.block && w.write.thread == now.thread;
  const uint8_t before = again ? w.write.bytes : 0;
  w.write = now;
  w.write.bytes |= before;
  w.initialised |= bytes;
}

template <typename Visit>
void each_word(Word* words, size_t offset, size_t bytes, const Visit& visit) {
  while (bytes != 0) {
    const size_t in_word = std::min<size_t>(4 - offset % 4, bytes);
    visit(words[offset / 4], static_cast<uint8_t>(((1u << in_word) - 1) << (offset % 4)));
    offset += in_word;
    bytes -= in_word;
  }
}

}  // namespace

bool happened_before(uint32_t thread, uint32_t epoch, uint32_t clock, const Thread& t) {
  if (thread == t.number || epoch < t.knowledge.epoch) return true;
  if (t.past != nullptr && clock <= (*t.past)[thread]) return true;
  return thread / 32 == t.warp && clock <= t.knowledge.known[thread % 32];
}

void access(const void* pointer, size_t bytes, bool write, bool atomic, const void* pc) {
  Thread* const t = current;
  if (t == nullptr || !t->in_kernel || !config().checks || t->fiber.on_stack(pointer)) return;
  ++accesses;
  const auto* const p = static_cast<const char*>(pointer);
  if ((bytes & (bytes - 1)) == 0 && bytes <= 16 && reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    bad_access(Kind::kMisaligned, p, bytes, write, pc);
  }
  Word* words;
  size_t offset;
  if (in_arenas(p)) {
    if (static_cast<size_t>(p - arenas) / kArena != t->block->slot) bad_access(Kind::kOutOfBounds, p, bytes, write, pc);
    words = g_arena_words;
    offset = static_cast<size_t>(p - arenas);
  } else if (in_heap(p)) {
    words = g_heap_words;
    offset = static_cast<size_t>(p - g_heap);
  } else if (!write && p >= g_image_begin && p < g_image_end) {
    return;
  } else {
    bad_access(Kind::kHostAccess, p, bytes, write, pc);
  }
  each_word(words, offset, bytes, [&](Word& w, uint8_t mask) { word_access(w, mask, write, atomic, pc, p, bytes); });
  if (!atomic) return;
  std::vector<Release>& released = g_released[pointer];
  if (!released.empty()) g_read_atomics[t] = released;
  if (t->fenced) {
    released.push_back({t->block->number, t->number, t->at_fence.known[t->lane], t->at_fence});
    for (const Acquired& a : g_acquired[t->block->number]) {  // what it learnt from others goes on with it
      if (happened_before(a.thread, a.epoch, a.clock, *t)) released.push_back(a.release);
    }
  }
}

void fence_passed() {
  Thread* const t = current;
  t->fenced = true;
  t->at_fence = t->knowledge;
  t->at_fence.known[t->lane] = t->clock;
  ++t->clock;  // what comes later is not covered by this fence
  const auto found = g_read_atomics.find(t);
  if (found == g_read_atomics.end()) return;
  for (const Release& r : found->second) {
    g_acquired[t->block->number].push_back({r, t->number, t->knowledge.epoch, t->clock});
  }
  g_read_atomics.erase(found);
}

// From now on the copied bytes count as written by the thread's copies, which no barrier of the block waits for.
void copy_landed(const Thread& by, const PendingCopy& copy, uint32_t number) {
  set_pending(copy.shared, copy.bytes, false);
  if (!config().checks) return;
  each_word(g_arena_words, static_cast<size_t>(static_cast<char*>(copy.shared) - arenas), copy.bytes,
            [&](Word& w, uint8_t) {
              w.write.thread = static_cast<uint16_t>(kThreads + by.number);
              w.write.epoch = UINT32_MAX;
              w.write.clock = number;
            });
}

bool last_write_was_atomic(const void* shared) {
  return g_arena_words[static_cast<size_t>(static_cast<const char*>(shared) - arenas) / 4].write.atomic;
}

void launch_begins() {
  initialise();
  g_released.clear();
  g_read_atomics.clear();
  g_acquired.clear();
}

void block_begins(Block& b) {
  for (const Thread* t : b.threads) g_read_atomics.erase(t);
  Word* const words = g_arena_words + b.slot * kArena / 4;
  for (size_t i = 0; i < g_arena_used[b.slot] / 4; ++i) {
    forget_readers(words[i]);
    words[i] = Word{};
  }
  g_arena_used[b.slot] = (b.shared_bytes + 3) / 4 * 4;
}

void shared_array_named(Block& b, size_t offset, size_t bytes) {
  each_word(g_arena_words + b.slot * kArena / 4, offset, bytes, [](Word& w, uint8_t mask) { w.allocated |= mask; });
}

void set_pending(const void* shared, size_t bytes, bool pending) {
  each_word(
      g_arena_words, static_cast<size_t>(static_cast<const char*>(shared) - arenas), bytes,
      [=](Word& w, uint8_t mask) { w.pending = static_cast<uint8_t>(pending ? w.pending | mask : w.pending & ~mask); });
}

void* allocate(size_t bytes) {
  initialise();
  char* const p = g_heap + g_heap_end + kRedZone;
  const size_t end = g_heap_end + kRedZone + (bytes + 255) / 256 * 256 + kRedZone;
  if (end > kHeap) throw std::bad_alloc();
  g_heap_end = end;
  g_allocations[p] = bytes;
  for (size_t i = 0; i < bytes; ++i)
    p[i] = static_cast<char>(i % 4 == 0 ? 0xad : i % 4 == 1 ? 0xdb : i % 4 == 2 ? 0xba : 0x7f);
  each_word(g_heap_words, static_cast<size_t>(p - g_heap), bytes, [](Word& w, uint8_t mask) { w.allocated |= mask; });
  return p;
}
void release(void* pointer) {
  auto* const p = static_cast<char*>(pointer);
  const auto found = g_allocations.find(p);
  if (found == g_allocations.end()) return;
  each_word(g_heap_words, static_cast<size_t>(p - g_heap), found->second, [](Word& w, uint8_t) {
    forget_readers(w);
    w = Word{};
  });
  g_allocations.erase(found);
  if (g_allocations.empty()) g_heap_end = 0;
}
void written_by_host(void* pointer, size_t bytes) {
  each_word(g_heap_words, static_cast<size_t>(static_cast<char*>(pointer) - g_heap), bytes,
            [](Word& w, uint8_t mask) { w.initialised |= mask; });
}

}  // namespace emulator::checker

// --- The compiler's hooks -------------------------------------------------------------------------------------------
#define CALLER __builtin_return_address(0)
#define HOOKS(bytes)                                                                                        \
  void __tsan_read##bytes(void* p) { emulator::checker::access(p, bytes, false, false, CALLER); }           \
  void __tsan_write##bytes(void* p) { emulator::checker::access(p, bytes, true, false, CALLER); }           \
  void __tsan_unaligned_read##bytes(void* p) { emulator::checker::access(p, bytes, false, false, CALLER); } \
  void __tsan_unaligned_write##bytes(void* p) { emulator::checker::access(p, bytes, true, false, CALLER); }
extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { emulator::checker::access(p, bytes, false, false, CALLER); }
void __tsan_write_range(void* p, size_t bytes) { emulator::checker::access(p, bytes, true, false, CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}

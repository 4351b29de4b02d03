// Stackful coroutines for one host thread: a stack with a guard page, and a switch that saves what the platform's
// calling convention asks a function to preserve. x86-64 and aarch64, System V.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

// Saves the present context's stack pointer in *from and continues where `to` was saved.
extern "C" void emulator_switch_stack(void** from, void* to);

namespace emulator {

class Fiber {
 public:
  Fiber() {
    void* memory =
        mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuard, PROT_NONE);
    stack_ = static_cast<char*>(memory) + kGuard;
  }
  ~Fiber() { munmap(stack_ - kGuard, kGuard + kStack); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls entry(), which must never return. Whatever the fiber was doing is forgotten.
  void restart(void (*entry)()) {
    auto* top = reinterpret_cast<uint64_t*>(stack_ + kStack);
#if defined(__x86_64__)
    top -= 8;  // six registers, the return address, and one more, which aligns the stack for entry()
    top[6] = reinterpret_cast<uint64_t>(entry);
    top[7] = 0;
#elif defined(__aarch64__)
    top -= 20;                                    // x19 to x30, d8 to d15
    top[11] = reinterpret_cast<uint64_t>(entry);  // x30, the link register
#else
#error "the emulator's fibers are written for x86-64 and aarch64"
#endif
    saved_ = top;
  }
  void resume() { emulator_switch_stack(&resumer_, saved_); }
  void suspend() { emulator_switch_stack(&saved_, resumer_); }
  bool on_stack(const void* p) const { return p >= stack_ && p < stack_ + kStack; }

 private:
  static constexpr size_t kGuard = 4096 * 16;
  static constexpr size_t kStack = 256 * 1024;
  char* stack_ = nullptr;
  void* saved_ = nullptr;
  void* resumer_ = nullptr;
};

}  // namespace emulator

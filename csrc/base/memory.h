// Uninitialised memory for arrays of numbers.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace qcse::cpu {

// On cache-line boundaries; where there is much of it in large pages, if the system has them: a million rows would take
// longer to be mapped in small ones than to be packed.
inline void* allocate(size_t bytes) {
  constexpr size_t kLine = 64, kLargePage = size_t{2} << 20;
  const size_t alignment = bytes >= 2 * kLargePage ? kLargePage : kLine;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded);
  if (memory == nullptr) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == kLargePage) madvise(memory, rounded, MADV_HUGEPAGE);  // a wish; refused without harm
#endif
  return memory;
}

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count = 0)
      : data_(count == 0 ? nullptr : static_cast<T*>(allocate(static_cast<size_t>(count) * sizeof(T)))) {}
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace qcse::cpu

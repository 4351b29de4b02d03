// What the entry points that Python calls share: device memory for the length of a call, and errors.
#pragma once
#include <cstddef>
#include <cstring>
#include <exception>
#include <string>

#include "cuda_emulator.h"

namespace emulator {

struct LastError {
  std::string message;
  int kind = 0;  // a Kind, or -1 for an error that is no broken rule
};
LastError& last_error();

// Device memory for the length of a call.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes), at_(bytes != 0 ? allocate(bytes) : nullptr) {}
  Buffer(const void* host, size_t bytes) : Buffer(bytes) {
    if (bytes != 0) write(at_, host, bytes);
  }
  ~Buffer() {
    if (at_ != nullptr) release(at_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void read(void* host) const {
    if (bytes_ != 0) std::memcpy(host, at_, bytes_);
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(at_);
  }

 private:
  size_t bytes_;
  void* at_;
};

// Calls body(); returns 0, or 1 and leaves a message where it throws.
template <typename Body>
int guarded(const Body& body) {
  LastError& error = last_error();
  error = {};
  try {
    body();
    return 0;
  } catch (const Error& e) {
    error.message = e.what();
    error.kind = static_cast<int>(e.kind);
  } catch (const std::exception& e) {
    error.message = e.what();
    error.kind = -1;
  }
  return 1;
}

}  // namespace emulator

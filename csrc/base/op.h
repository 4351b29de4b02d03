// What all operators share: argument checks, errors, torch's threads.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/threads.h"

namespace qcse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws std::runtime_error, which torch turns into RuntimeError, with the parts written one after the other.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

std::vector<int64_t> sizes_of(const Tensor& t);

// "[3, 4]"
std::string shape_of(const Tensor& t);

// "float32"
std::string type_name(ScalarType type);

// torch's own thread pool.
cpu::Threads cpu_threads();

// Throws std::runtime_error unless t is float32 or float64.
void expect_float(const char* op, const char* name, const Tensor& t);

// Throws std::runtime_error unless t is on the device of `like`, which the message calls by its name.
void expect_device(const char* op, const std::string& name, const Tensor& t, const std::string& like_name,
                   const Tensor& like);

// Throws std::runtime_error unless t has this shape, and the device of `like` and its dtype (or `type`); the message
// calls `like` by its name.
void expect(const char* op, const std::string& name, const Tensor& t, const Tensor& like,
            const std::vector<int64_t>& shape, std::optional<ScalarType> type = std::nullopt,
            const std::string& like_name = "states");

}  // namespace qcse

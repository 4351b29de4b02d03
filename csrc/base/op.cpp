#include "base/op.h"

namespace qcse {
namespace {

std::string device_name(const Tensor& t) {
  const auto device = t.device();
  std::string name;
  switch (device.type()) {
    case torch::headeronly::DeviceType::CPU: name = "cpu"; break;
    case torch::headeronly::DeviceType::CUDA: name = "cuda"; break;
    case torch::headeronly::DeviceType::Meta: name = "meta"; break;
    default: name = "device type " + std::to_string(static_cast<int>(device.type()));
  }
  return device.index() < 0 ? name : name + ":" + std::to_string(static_cast<int>(device.index()));
}

// Seen through a plain function pointer.
void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  torch::stable::parallel_for(begin, end, grain, [=](int64_t b, int64_t e) { body(b, e, context); });
}

}  // namespace

std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(t.size(d));
  return sizes;
}

std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << '[';
  for (int64_t d = 0; d < t.dim(); ++d) out << (d ? ", " : "") << t.size(d);
  out << ']';
  return out.str();
}

std::string type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Bool: return "bool";
    default: return "scalar type " + std::to_string(static_cast<int>(type));
  }
}

cpu::Threads cpu_threads() { return {parallel_for, static_cast<int64_t>(torch::stable::get_num_threads())}; }

void expect_float(const char* op, const char* name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double) fail(op, ": ", name, " must be float32 or float64");
}

void expect_device(const char* op, const std::string& name, const Tensor& t, const std::string& like_name,
                   const Tensor& like) {
  if (t.device() == like.device()) return;
  fail(op, ": ", name, " must be on the device of ", like_name, " (", device_name(like), "), got ", device_name(t),
       ". Move one of them with .to(device)");
}

void expect(const char* op, const std::string& name, const Tensor& t, const Tensor& like,
            const std::vector<int64_t>& shape, std::optional<ScalarType> type, const std::string& like_name) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == shape[static_cast<size_t>(d)];
  std::ostringstream wanted;
  for (size_t d = 0; d < shape.size(); ++d) wanted << (d ? ", " : "") << shape[d];
  if (!same) fail(op, ": ", name, " must have shape [", wanted.str(), "], got ", shape_of(t));
  if (type && t.scalar_type() != *type) {
    fail(op, ": ", name, " must be ", type_name(*type), ", got ", type_name(t.scalar_type()));
  }
  if (!type && t.scalar_type() != like.scalar_type()) {
    fail(op, ": ", name, " must have the dtype of ", like_name, " (", type_name(like.scalar_type()), "), got ",
         type_name(t.scalar_type()));
  }
  expect_device(op, name, t, like_name, like);
}

}  // namespace qcse

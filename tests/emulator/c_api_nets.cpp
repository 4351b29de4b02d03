// What Python calls for the kernels of csrc/nets/cuda.
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "nets/cuda/pointwise.h"
#include "c_api.h"

namespace {

using emulator::Buffer;

// The arrays of one call in device memory. Each begins `shift` elements behind an aligned address.
template <typename T>
class Arrays {
 public:
  // roles: a letter for each array, r(ead), w(ritten) or b(oth). A null pointer stays one.
  Arrays(const char* roles, void* const* hosts, const int64_t* counts, int64_t shift) : roles_(roles), shift_(shift) {
    for (size_t i = 0; roles_[i] != 0; ++i) {
      hosts_.push_back(static_cast<T*>(hosts[i]));
      counts_.push_back(static_cast<size_t>(counts[i]));
      const size_t bytes = (counts_[i] + static_cast<size_t>(shift)) * sizeof(T);
      buffers_.push_back(hosts[i] == nullptr ? nullptr : std::make_unique<Buffer>(bytes));
      if (hosts[i] != nullptr && roles_[i] != 'w') emulator::write(at(i), hosts[i], counts_[i] * sizeof(T));
    }
  }
  T* at(size_t i) const { return buffers_[i] == nullptr ? nullptr : buffers_[i]->template as<T>() + shift_; }
  void read_back() const {
    for (size_t i = 0; i < hosts_.size(); ++i) {
      if (hosts_[i] != nullptr && roles_[i] != 'r') std::memcpy(hosts_[i], at(i), counts_[i] * sizeof(T));
    }
  }

 private:
  std::string roles_;
  int64_t shift_;
  std::vector<T*> hosts_;
  std::vector<size_t> counts_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

template <typename T>
qcse::cuda::Status launch(const std::string& name, const int64_t* n, const Arrays<T>& a, const double* settings) {
  if (name == "bias_relu") {
    return qcse::cuda::launch(qcse::BiasRelu<T>{n[0], n[1], n[2], a.at(0), a.at(1)}, nullptr);
  }
  if (name == "action_relu") {
    return qcse::cuda::launch(
        qcse::ActionRelu<T>{n[0], n[1], n[2], n[3], n[4], n[5], n[6], a.at(0), a.at(1), a.at(2), a.at(3), a.at(4)},
        nullptr);
  }
  if (name == "relu_dot") {
    return qcse::cuda::launch(qcse::ReluDot<T>{n[0], n[1], n[2], a.at(0), a.at(1), a.at(2), a.at(3), a.at(4)}, nullptr);
  }
  if (name == "relu_gradient") {
    return qcse::cuda::launch(qcse::ReluGradient<T>{n[0], n[1], n[2], a.at(0), a.at(1), a.at(2)}, nullptr);
  }
  if (name == "action_relu_gradient") {
    return qcse::cuda::launch(qcse::ActionReluGradient<T>{n[0], n[1], n[2], n[3], n[4], n[5], n[6], a.at(0), a.at(1),
                                                          a.at(2), a.at(3), a.at(4), a.at(5)},
                              nullptr);
  }
  if (name == "outer_relu_gradient") {
    return qcse::cuda::launch(qcse::OuterReluGradient<T>{n[0], n[1], n[2], n[3], n[4], a.at(0), a.at(1), a.at(2),
                                                         a.at(3), a.at(4), a.at(5), a.at(6), a.at(7), a.at(8)},
                              nullptr);
  }
  if (name == "conservative_head") {
    return qcse::cuda::launch(
        qcse::ConservativeHead<T>{n[0], n[1], n[2], n[3], a.at(0), a.at(1), a.at(2), a.at(3), a.at(4),
                                  static_cast<T>(settings[0]), static_cast<T>(settings[1]), settings[2] != 0, a.at(5),
                                  a.at(6), a.at(7), a.at(8)},
        nullptr);
  }
  throw std::runtime_error("there is no kernel named " + name);
}

template <typename T>
void run(const std::string& name, const int64_t* sizes, const Arrays<T>& arrays, const double* settings) {
  const qcse::cuda::Status status = launch(name, sizes, arrays, settings);
  if (status.error != nullptr) throw std::runtime_error(std::string(status.kernel) + ": " + status.error);
  arrays.read_back();
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// name: a contract of csrc/nets/pointwise.h; sizes, arrays and settings in the order of its fields. Returns 0, or 1 and
// leaves a message.
int emulator_nets(const char* name, int is_double, const int64_t* sizes, const char* roles, void* const* arrays,
                  const int64_t* counts, int64_t shift, const double* settings) {
  return emulator::guarded([&] {
    if (is_double != 0) {
      run(name, sizes, Arrays<double>(roles, arrays, counts, shift), settings);
    } else {
      run(name, sizes, Arrays<float>(roles, arrays, counts, shift), settings);
    }
  });
}

}  // extern "C"
#pragma GCC visibility pop

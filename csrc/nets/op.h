// What the operators on fully connected networks share: the checked parameters, and pointers to them.
#pragma once
#include <string>
#include <vector>

#include "nets/cpu/launch.h"
#include "base/op.h"
#include "isa/isa.h"

namespace qcse {

struct LayerArguments {
  std::vector<Tensor> weights, biases;  // dense
  std::vector<int64_t> widths;
  int64_t nets = 0;

  // Throws unless weights[l] is [nets, inputs, outputs] and biases[l] is [nets, 1, outputs], for 2 to 16 layers, the
  // first of which has `inputs`; with the dtype and device of `like`, which is the argument `name`. How many networks
  // there are the first weight tells.
  LayerArguments(const char* op, const std::vector<Tensor>& weights_, const std::vector<Tensor>& biases_,
                 const std::string& name, const Tensor& like, int64_t inputs, bool bf16) {
    constexpr int64_t kWidest = int64_t(1) << 21;  // the kernels count a chunk's bytes in 32 bits
    if (bf16 && like.scalar_type() != ScalarType::Float) fail(op, ": ", name, " must be float32 where bf16 is true");
    if (bf16 && !cpu::has_bf16()) {
      fail(op, ": bf16 is true, but this CPU lacks AVX512-BF16 or AVX512-VBMI2; expected false");
    }
    const size_t layers = weights_.size();
    if (layers < 2 || layers > static_cast<size_t>(kMaxLayers) || biases_.size() != layers) {
      fail(op, ": weights and biases must be as many, 2 to " + std::to_string(kMaxLayers) + ", got " +
                   std::to_string(layers) + " and " + std::to_string(biases_.size()));
    }
    nets = weights_[0].dim() == 3 ? weights_[0].size(0) : 0;
    for (size_t l = 0; l < layers; ++l) {
      const Tensor& w = weights_[l];
      const int64_t outputs = w.dim() == 3 ? w.size(2) : 0;
      if (outputs < 1 || outputs > kWidest || nets < 1) {
        fail(op, ": weights must have shape [networks, inputs, outputs], outputs at most " + std::to_string(kWidest) +
                     ", got " + shape_of(w));
      }
      const std::string index = std::to_string(l) + "]";
      expect(op, "weights[" + index, w, like, {nets, inputs, outputs}, std::nullopt, name);
      weights.push_back(torch::stable::contiguous(w));
      expect(op, "biases[" + index, biases_[l], like, {nets, 1, outputs}, std::nullopt, name);
      biases.push_back(torch::stable::contiguous(biases_[l]));
      widths.push_back(outputs);
      inputs = outputs;
    }
  }
};

template <typename T>
std::vector<const T*> read(const std::vector<Tensor>& tensors) {
  std::vector<const T*> pointers;
  for (const Tensor& t : tensors) pointers.push_back(t.const_data_ptr<T>());
  return pointers;
}

template <typename T>
std::vector<T*> written(const std::vector<Tensor>& tensors) {
  std::vector<T*> pointers;
  for (const Tensor& t : tensors) pointers.push_back(t.mutable_data_ptr<T>());
  return pointers;
}

inline std::vector<Tensor> empty_like(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> made;
  for (const Tensor& t : tensors) made.push_back(torch::stable::empty_like(t));
  return made;
}

}  // namespace qcse

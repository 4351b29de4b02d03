#include "nets/cpu/launch.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "base/memory.h"
#include "isa/isa.h"
#include "nets/cpu/kernels.h"

namespace qcse::cpu {
namespace {

template <typename T>
const NetworkKernels<T>& kernels(bool bf16, const NetworkKernelSet& set = *chosen_set().networks) {
  if constexpr (std::is_same_v<T, float>) {
    if (bf16) return *bf16_networks();
  }
  return kernels_of<T>(set);
}

// Where mlp_forward leaves the number of its networks: behind the first chunk of what it keeps.
template <typename T>
int64_t number_position(const Mlp<T>& m) {
  return kMlpChunk * m.kept - 1;
}

// The networks that mlp_forward ran on. Another thread may have chosen another set since.
template <typename T>
const NetworkKernelSet& networks_of(const MlpGradient<T>& gradient) {
  const NetworkKernelSet* set = networks_of_number(static_cast<double>(gradient.hidden[number_position(gradient.mlp)]));
  if (set == nullptr) {
    throw std::invalid_argument("qcse::mlp_backward: hidden is not what mlp_forward kept on this machine");
  }
  return *set;
}

// Every network's units of work (states, chunks of rows) in equal parts, as few as give each thread the same number of
// them.
struct Parts {
  int64_t nets, units, splits;

  Parts(int64_t nets_, int64_t units_, int64_t threads)
      : nets(nets_), units(units_), splits(std::min(threads / std::gcd(nets, threads), units)) {}
  int64_t count() const { return nets * splits; }
  int64_t net(int64_t part) const { return part / splits; }
  int64_t begin(int64_t part) const { return units * (part % splits) / splits; }
  int64_t end(int64_t part) const { return units * (part % splits + 1) / splits; }
};

// body(part, workspace) for every part.
template <typename T, typename Body>
void for_parts(const Threads& threads, const Parts& parts, int64_t scalars, const Body& body) {
  for_ranges(threads, parts.count(), [&](int64_t begin, int64_t end) {
    const Buffer<T> space(scalars);
    for (int64_t part = begin; part < end; ++part) body(part, space.get());
  });
}

// Where the parts of a network put their gradients: the first into the result itself, the others into copies that are
// added afterwards, in order.
template <typename T>
class Gradients {
 public:
  Gradients(const Parts& parts, int64_t inputs, const int64_t* widths, int64_t layers, T* const* weights,
            T* const* biases)
      : parts_(parts), weights_(weights), biases_(biases), layers_(static_cast<size_t>(layers)) {
    for (size_t l = 0; l < layers_.size(); ++l) {
      layers_[l] = {inputs * widths[l], widths[l]};
      parameters_ += layers_[l].weights + layers_[l].biases;
      inputs = widths[l];
    }
    copies_ = Buffer<T>(parts.nets * (parts.splits - 1) * parameters_);
  }

  struct Pointers {
    T *weights[kMaxLayers], *biases[kMaxLayers];
  };
  Pointers of(int64_t part) const {
    const int64_t net = parts_.net(part), split = part % parts_.splits;
    T* copy = split == 0 ? nullptr : copies_.get() + (net * (parts_.splits - 1) + split - 1) * parameters_;
    Pointers to;
    for (size_t l = 0; l < layers_.size(); ++l) {
      to.weights[l] = copy == nullptr ? weights_[l] + net * layers_[l].weights : copy;
      to.biases[l] = copy == nullptr ? biases_[l] + net * layers_[l].biases : copy + layers_[l].weights;
      if (copy != nullptr) copy += layers_[l].weights + layers_[l].biases;
    }
    return to;
  }

  void add() const {
    for (int64_t part = 0; part < parts_.count(); ++part) {
      const int64_t first = parts_.net(part) * parts_.splits;
      if (part == first) continue;
      const Pointers sum = of(first), more = of(part);
      for (size_t l = 0; l < layers_.size(); ++l) {
        for (int64_t i = 0; i < layers_[l].weights; ++i) sum.weights[l][i] += more.weights[l][i];
        for (int64_t j = 0; j < layers_[l].biases; ++j) sum.biases[l][j] += more.biases[l][j];
      }
    }
  }

 private:
  struct Layer {
    int64_t weights, biases;  // how many
  };
  const Parts& parts_;
  T* const* weights_;
  T* const* biases_;
  std::vector<Layer> layers_;
  int64_t parameters_ = 0;
  Buffer<T> copies_;
};

template <typename T>
Parts parts_of(const Critics<T>& c, const Threads& threads) {
  return {c.seeds * c.members, c.batch, threads.count};
}

template <typename T>
CriticRange range_of(const Critics<T>& c, const Parts& parts, int64_t part) {
  return {parts.net(part) / c.members, parts.net(part) % c.members, parts.begin(part), parts.end(part)};
}

template <typename T>
Parts parts_of(const Mlp<T>& m, const Threads& threads) {
  return {m.nets, m.chunks, threads.count};
}

template <typename T>
MlpRange range_of(const Mlp<T>& m, const Parts& parts, int64_t part) {
  return {parts.net(part), parts.begin(part) * kMlpChunk, std::min(parts.end(part) * kMlpChunk, m.rows)};
}

}  // namespace

template <typename T>
void critic_values(const Critics<T>& c, T* out, const Threads& threads) {
  const CriticKernels<T>& k = kernels<T>(c.bf16).critic;
  const Parts parts = parts_of(c, threads);
  for_parts<T>(threads, parts, k.workspace(c, false),
               [&](int64_t part, T* space) { k.values(c, range_of(c, parts, part), space, out); });
}

template <typename T>
void conservative_loss(const ConservativeLoss<T>& loss, const Threads& threads) {
  const Critics<T>& c = loss.critics;
  const CriticKernels<T>& k = kernels<T>(c.bf16).critic;
  const Parts parts = parts_of(c, threads);
  const Gradients<T> gradients(parts, c.state_dim + c.action_dim, c.widths, c.layers, loss.weight_grads,
                               loss.bias_grads);
  std::vector<LossSums<T>> sums(static_cast<size_t>(parts.count()));
  for_parts<T>(threads, parts, k.workspace(c, true), [&](int64_t part, T* space) {
    const auto to = gradients.of(part);
    sums[static_cast<size_t>(part)] = k.conservative(loss, range_of(c, parts, part), space, to.weights, to.biases);
  });
  gradients.add();

  const T states = static_cast<T>(c.batch), n = static_cast<T>(loss.sampled);
  for (int64_t net = 0; net < parts.nets; ++net) {
    LossSums<T> total;
    for (int64_t part = net * parts.splits; part < (net + 1) * parts.splits; ++part) {
      const LossSums<T>& more = sums[static_cast<size_t>(part)];
      total.error += more.error, total.gap += more.gap, total.q_data += more.q_data;
      total.q_uniform += more.q_uniform, total.q_policy += more.q_policy, total.bound += more.bound;
    }
    loss.error[net] = total.error / states;
    loss.gap[net] = total.gap / states;
    loss.q_data[net] = total.q_data / states;
    loss.q_uniform[net] = total.q_uniform / (states * n);
    loss.q_policy[net] = total.q_policy / (2 * states * n);
    loss.bound_share[net] = total.bound / (2 * states * n);
  }
}

template <typename T>
void mlp_forward(const Mlp<T>& m, T* hidden, T* y, const Threads& threads) {
  const NetworkKernelSet& set = *chosen_set().networks;
  const MlpKernels<T>& k = kernels<T>(m.bf16, set).mlp;
  const Parts parts = parts_of(m, threads);
  for_parts<T>(threads, parts, k.workspace(m, false),
               [&](int64_t part, T* space) { k.forward(m, range_of(m, parts, part), space, hidden, y); });
  if (hidden != nullptr) hidden[number_position(m)] = static_cast<T>(number_of(set));
}

template <typename T>
void mlp_backward(const MlpGradient<T>& gradient, const Threads& threads) {
  const Mlp<T>& m = gradient.mlp;
  const MlpKernels<T>& k = kernels<T>(m.bf16, networks_of(gradient)).mlp;
  const Parts parts = parts_of(m, threads);
  const bool parameters = gradient.weight_grads != nullptr;
  // Without layers it holds nothing and adds nothing.
  const Gradients<T> gradients(parts, m.inputs, m.widths, parameters ? m.layers : 0, gradient.weight_grads,
                               gradient.bias_grads);
  for_parts<T>(threads, parts, k.workspace(m, true), [&](int64_t part, T* space) {
    const auto to = gradients.of(part);
    k.backward(gradient, range_of(m, parts, part), space, parameters ? to.weights : nullptr,
               parameters ? to.biases : nullptr);
  });
  gradients.add();
}

namespace {

// body(begin, end, workspace) over the states; few of them are not worth a second thread.
template <typename T, typename Body>
void for_states(const TanhGaussian<T>& g, const Threads& threads, const Body& body) {
  const TanhGaussianKernels<T>& k = kernels<T>(false).tanh_gaussian;
  const int64_t scalars = k.workspace(g), grain = std::max(int64_t(1), (int64_t(1) << 16) / (g.samples * g.dim));
  const auto run = [&](int64_t begin, int64_t end) {
    const Buffer<T> space(scalars);
    body(k, begin, end, space.get());
  };
  for_ranges(threads, g.states, run, grain);
}

}  // namespace

template <typename T>
void tanh_gaussian(const TanhGaussian<T>& g, T* actions, T* log_prob, const Threads& threads) {
  for_states(g, threads, [&](const TanhGaussianKernels<T>& k, int64_t begin, int64_t end, T* space) {
    k.sample(g, begin, end, space, actions, log_prob);
  });
}

template <typename T>
void tanh_gaussian_backward(const TanhGaussianGradient<T>& gradient, const Threads& threads) {
  for_states(gradient.forward, threads, [&](const TanhGaussianKernels<T>& k, int64_t begin, int64_t end, T* space) {
    k.backward(gradient, begin, end, space);
  });
}

template void critic_values(const Critics<float>&, float*, const Threads&);
template void critic_values(const Critics<double>&, double*, const Threads&);
template void conservative_loss(const ConservativeLoss<float>&, const Threads&);
template void conservative_loss(const ConservativeLoss<double>&, const Threads&);
template void mlp_forward(const Mlp<float>&, float*, float*, const Threads&);
template void mlp_forward(const Mlp<double>&, double*, double*, const Threads&);
template void mlp_backward(const MlpGradient<float>&, const Threads&);
template void mlp_backward(const MlpGradient<double>&, const Threads&);
template void tanh_gaussian(const TanhGaussian<float>&, float*, float*, const Threads&);
template void tanh_gaussian(const TanhGaussian<double>&, double*, double*, const Threads&);
template void tanh_gaussian_backward(const TanhGaussianGradient<float>&, const Threads&);
template void tanh_gaussian_backward(const TanhGaussianGradient<double>&, const Threads&);

}  // namespace qcse::cpu

#include "networks_cpu.h"

#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "network_kernels.h"

namespace qcse::cpu {
namespace {

const CriticKernelSet& kernel_set() {
#ifdef QCSE_X86_KERNELS
  const char* name = instruction_set();
  // Further sets of the neighbour search, such as avx512vnni, extend this one.
  if (std::strncmp(name, kAvx512Critic.name, std::strlen(kAvx512Critic.name)) == 0) return kAvx512Critic;
  if (std::strcmp(name, kAvx2Critic.name) == 0) return kAvx2Critic;
#endif
  return kPortableCritic;
}

template <typename T>
const CriticKernels<T>& kernels(const Critics<T>& c) {
  if constexpr (sizeof(T) == sizeof(float)) {
#ifdef QCSE_X86_KERNELS
    if (c.bf16) return kBfloat16Critic;
#endif
    return kernel_set().single;
  } else {
    (void)c;
    return kernel_set().twofold;
  }
}

constexpr std::align_val_t kCacheLine{64};

template <typename T>
struct Freed {
  void operator()(T* p) const { ::operator delete[](p, kCacheLine); }
};

// Left uninitialised: the kernels write before they read.
template <typename T>
std::unique_ptr<T[], Freed<T>> scratch(int64_t scalars) {
  void* p = ::operator new[](static_cast<size_t>(scalars) * sizeof(T), kCacheLine);
  return std::unique_ptr<T[], Freed<T>>(static_cast<T*>(p));
}

// Every critic's states in equal parts, as few as give each thread the same number of them.
template <typename T>
struct Parts {
  const Critics<T>& c;
  int64_t splits;

  Parts(const Critics<T>& critics, int64_t threads) : c(critics) {
    const int64_t nets = c.seeds * c.members;
    splits = threads / std::gcd(nets, threads);
    if (splits > c.batch) splits = c.batch;
  }
  int64_t count() const { return c.seeds * c.members * splits; }
  CriticRange range(int64_t part) const {
    const int64_t net = part / splits, split = part % splits;
    return {net / c.members, net % c.members, c.batch * split / splits, c.batch * (split + 1) / splits};
  }
};

template <typename Body>
void for_each(const Threads& threads, int64_t count, Body body) {
  threads.parallel_for(
      0, count, 1, [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

template <typename T>
int64_t inputs(const Critics<T>& c, int64_t layer) {
  return layer == 0 ? c.state_dim + c.action_dim : c.widths[layer - 1];
}

}  // namespace

bool has_bf16() {
#ifdef QCSE_X86_KERNELS
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi2");
#else
  return false;
#endif
}

template <typename T>
void critic_values(const Critics<T>& c, T* out, const Threads& threads) {
  const CriticKernels<T>& k = kernels<T>(c);
  const Parts<T> parts(c, threads.count);
  const int64_t scalars = k.workspace(c, false);
  for_each(threads, parts.count(), [&](int64_t begin, int64_t end) {
    const auto space = scratch<T>(scalars);
    for (int64_t part = begin; part < end; ++part) k.values(c, parts.range(part), space.get(), out);
  });
}

template <typename T>
void conservative_loss(const ConservativeLoss<T>& loss, const Threads& threads) {
  const Critics<T>& c = loss.critics;
  const CriticKernels<T>& k = kernels<T>(c);
  const Parts<T> parts(c, threads.count);
  const int64_t scalars = k.workspace(c, true), nets = c.seeds * c.members;
  // The first part of a critic writes to the result itself, the others to copies that are added afterwards.
  int64_t parameters = 0;
  for (int64_t l = 0; l < c.layers; ++l) parameters += (inputs(c, l) + 1) * c.widths[l];
  const auto copies = scratch<T>(nets * (parts.splits - 1) * parameters);
  std::vector<LossSums<T>> sums(static_cast<size_t>(parts.count()));

  auto gradients = [&](int64_t part, T** weights, T** biases) {
    const int64_t net = part / parts.splits, split = part % parts.splits;
    T* copy = split == 0 ? nullptr : copies.get() + (net * (parts.splits - 1) + split - 1) * parameters;
    for (int64_t l = 0; l < c.layers; ++l) {
      const int64_t in = inputs(c, l), out = c.widths[l];
      weights[l] = copy == nullptr ? loss.weight_grads[l] + net * in * out : copy;
      biases[l] = copy == nullptr ? loss.bias_grads[l] + net * out : copy + in * out;
      if (copy != nullptr) copy += (in + 1) * out;
    }
  };

  for_each(threads, parts.count(), [&](int64_t begin, int64_t end) {
    const auto space = scratch<T>(scalars);
    T *weights[kMaxCriticLayers], *biases[kMaxCriticLayers];
    for (int64_t part = begin; part < end; ++part) {
      gradients(part, weights, biases);
      sums[static_cast<size_t>(part)] = k.conservative(loss, parts.range(part), space.get(), weights, biases);
    }
  });

  const T states = static_cast<T>(c.batch), n = static_cast<T>(loss.sampled);
  for (int64_t net = 0; net < nets; ++net) {
    T *weights[kMaxCriticLayers], *biases[kMaxCriticLayers], *more_weights[kMaxCriticLayers],
        *more_biases[kMaxCriticLayers];
    gradients(net * parts.splits, weights, biases);
    LossSums<T> total = sums[static_cast<size_t>(net * parts.splits)];
    for (int64_t split = 1; split < parts.splits; ++split) {
      const int64_t part = net * parts.splits + split;
      gradients(part, more_weights, more_biases);
      for (int64_t l = 0; l < c.layers; ++l) {
        for (int64_t i = 0; i < inputs(c, l) * c.widths[l]; ++i) weights[l][i] += more_weights[l][i];
        for (int64_t j = 0; j < c.widths[l]; ++j) biases[l][j] += more_biases[l][j];
      }
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

template void critic_values(const Critics<float>&, float*, const Threads&);
template void critic_values(const Critics<double>&, double*, const Threads&);
template void conservative_loss(const ConservativeLoss<float>&, const Threads&);
template void conservative_loss(const ConservativeLoss<double>&, const Threads&);

}  // namespace qcse::cpu

// The CPU core as several callers at once use it, while another thread changes the instruction set, the search path and
// how much work is worth a thread: for a sanitizer to watch. What is computed is compared with what one thread computed
// before: bit by bit where the contract says so, else closely. Exit status 1 where it differs.
//
//   driver [ROUNDS]      how often each caller computes everything (default 3)
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "bonus/batch_entropy.h"
#include "bonus/cpu/launch.h"
#include "isa/isa.h"
#include "knn/cpu/launch.h"
#include "nets/cpu/launch.h"

namespace {

using namespace qcse;

// As torch's pool shares a range out: equal parts, one of them on the calling thread.
template <int64_t kCount>
void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  const int64_t parts = std::min(kCount, (end - begin + grain - 1) / grain);
  if (parts <= 1) return begin < end ? body(begin, end, context) : void();
  const auto edge = [=](int64_t part) { return begin + (end - begin) * part / parts; };
  std::vector<std::thread> threads;
  for (int64_t part = 1; part < parts; ++part) threads.emplace_back(body, edge(part), edge(part + 1), context);
  body(edge(0), edge(1), context);
  for (std::thread& t : threads) t.join();
}

const cpu::Threads kThreads[] = {{parallel_for<1>, 1}, {parallel_for<2>, 2}, {parallel_for<3>, 3}};

// Numbers in [-1, 1] that depend on the seed alone.
template <typename T>
std::vector<T> numbers(int64_t count, uint64_t seed) {
  std::vector<T> made(static_cast<size_t>(count));
  for (T& x : made) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    x = static_cast<T>(static_cast<double>(seed >> 11) * 0x1p-52 - 1);
  }
  return made;
}

// One computation: its inputs, and a run that returns all its results one after the other.
template <typename T>
struct Task {
  std::string name;
  bool exact;  // same bits for every number of threads and instruction set
  std::vector<T> (*run)(const Task&, const cpu::Threads&);
  int64_t queries = 0, refs = 0, dim = 0, k = 0;  // refs 0: among themselves
};

template <typename T>
std::vector<T> run_knn(const Task<T>& task, const cpu::Threads& threads) {
  const bool self_join = task.refs == 0;
  std::vector<T> states = numbers<T>(task.queries * task.dim, 1), values = numbers<T>(task.queries, 2);
  const std::vector<T> ref_states = numbers<T>(task.refs * task.dim, 3), ref_values = numbers<T>(task.refs, 4);
  std::vector<int64_t> self(values.size(), -1), count(values.size());
  for (size_t i = 0; i < self.size(); i += 3) self[i] = static_cast<int64_t>(i) % std::max<int64_t>(task.refs, 1);
  states[0] = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> results(2 * values.size());
  KnnProblem<T> p;
  p.batch = 1, p.queries = task.queries, p.refs = self_join ? task.queries : task.refs, p.dim = task.dim, p.k = task.k;
  p.states = states.data(), p.values = values.data();
  p.ref_states = self_join ? p.states : ref_states.data(), p.ref_values = self_join ? p.values : ref_values.data();
  p.self_join = self_join, p.self_index = self_join ? nullptr : self.data();
  p.radius = results.data(), p.entropy = results.data() + values.size(), p.count = count.data();
  cpu::knn(p, threads);
  for (const int64_t c : count) results.push_back(static_cast<T>(c));
  return results;
}

template <typename T>
std::vector<T> run_batch_entropy(const Task<T>& task, const cpu::Threads& threads) {
  const int64_t seeds = 3, rows = task.queries, channels = task.dim + 1;
  const std::vector<T> states = numbers<T>(seeds * rows * task.dim, 5), values = numbers<T>(seeds * rows, 6);
  std::vector<T> mean(static_cast<size_t>(seeds * channels)), variance(mean.size(), T(1)), batches(size_t(seeds), T(1));
  std::vector<T> entropy(values.size()), statistics(size_t(3 * seeds));
  std::vector<int64_t> index(values.size());
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int64_t>(i * i % 97);
  const std::vector<uint8_t> eligible(values.size(), 1);
  std::vector<uint8_t> covered(values.size());
  BatchEntropy<T> b;
  b.seeds = seeds, b.rows = rows, b.dim = task.dim, b.k = task.k;
  b.learn = b.count_self = true, b.horizon = 10, b.divisor = 2;
  b.states = states.data(), b.values = values.data(), b.index = index.data();
  b.eligible = reinterpret_cast<const bool*>(eligible.data()), b.covered = reinterpret_cast<bool*>(covered.data());
  b.mean = mean.data(), b.variance = variance.data(), b.batches = batches.data();
  b.entropy = entropy.data(), b.statistics = statistics.data();
  cpu::batch_entropy(b, threads);
  std::vector<T> results = entropy;
  for (const auto* part : {&mean, &variance, &batches, &statistics}) {
    results.insert(results.end(), part->begin(), part->end());
  }
  return results;
}

// Parameters of `nets` networks, and room for their gradients.
template <typename T>
struct Parameters {
  std::vector<std::vector<T>> values, gradients;
  std::vector<const T*> weights, biases;
  std::vector<T*> weight_grads, bias_grads;

  Parameters(int64_t nets, int64_t inputs, const std::vector<int64_t>& widths) {
    for (const int64_t width : widths) {
      for (const int64_t count : {nets * inputs * width, nets * width}) {
        values.push_back(numbers<T>(count, 7 + values.size()));
        gradients.emplace_back(values.back().size());
      }
      inputs = width;
    }
    for (size_t i = 0; i < values.size(); i += 2) {
      weights.push_back(values[i].data()), biases.push_back(values[i + 1].data());
      weight_grads.push_back(gradients[i].data()), bias_grads.push_back(gradients[i + 1].data());
    }
  }
};

template <typename T>
std::vector<T> run_mlp(const Task<T>& task, const cpu::Threads& threads) {
  const std::vector<int64_t> widths = {40, 33, 3};
  const Parameters<T> p(2, task.dim, widths);
  const std::vector<T> x = numbers<T>(2 * task.queries * task.dim, 20), y_grad = numbers<T>(2 * task.queries * 3, 21);
  MlpGradient<T> g;
  g.mlp.nets = 2, g.mlp.rows = task.queries, g.mlp.inputs = task.dim, g.mlp.layers = 3, g.mlp.widths = widths.data();
  g.mlp.weights = p.weights.data(), g.mlp.biases = p.biases.data(), g.mlp.x = x.data();
  g.mlp.chunks = (task.queries + kMlpChunk - 1) / kMlpChunk, g.mlp.kept = 1 + 64 + 64;
  std::vector<T> hidden(static_cast<size_t>(2 * g.mlp.chunks * kMlpChunk * g.mlp.kept));
  std::vector<T> results(y_grad.size() + x.size());
  cpu::mlp_forward(g.mlp, hidden.data(), results.data(), threads);
  g.hidden = hidden.data(), g.y_grad = y_grad.data(), g.x_grad = results.data() + y_grad.size();
  g.weight_grads = p.weight_grads.data(), g.bias_grads = p.bias_grads.data();
  cpu::mlp_backward(g, threads);
  for (const auto& gradient : p.gradients) results.insert(results.end(), gradient.begin(), gradient.end());
  return results;
}

template <typename T>
std::vector<T> run_critic(const Task<T>& task, const cpu::Threads& threads) {
  const int64_t seeds = 2, members = 2, nets = seeds * members, n = 2, batch = task.queries, action_dim = 2;
  const std::vector<int64_t> widths = {40, 33, 1};
  const Parameters<T> p(nets, task.dim + action_dim, widths);
  const std::vector<T> states = numbers<T>(seeds * batch * task.dim, 30), target = numbers<T>(seeds * batch, 32);
  const std::vector<T> actions = numbers<T>(seeds * batch * (1 + 3 * n) * action_dim, 31);
  const std::vector<T> offsets = numbers<T>(seeds * batch * 3 * n, 33), weight = numbers<T>(seeds, 34);
  const std::vector<T> bound(target.size(), -std::numeric_limits<T>::infinity());
  std::vector<T> results(static_cast<size_t>(6 * nets + nets * batch * (1 + 3 * n)));
  ConservativeLoss<T> loss;
  Critics<T>& c = loss.critics;
  c.seeds = seeds, c.members = members, c.batch = batch, c.actions = 1 + 3 * n;
  c.state_dim = task.dim, c.action_dim = action_dim, c.layers = 3, c.widths = widths.data();
  c.weights = p.weights.data(), c.biases = p.biases.data(), c.states = states.data(), c.action_rows = actions.data();
  loss.sampled = n, loss.floor = -std::numeric_limits<T>::infinity();
  loss.target = target.data(), loss.offsets = offsets.data(), loss.bound = bound.data(), loss.weight = weight.data();
  T* out = results.data();
  for (T** to : {&loss.error, &loss.gap, &loss.q_data, &loss.q_uniform, &loss.q_policy, &loss.bound_share}) {
    *to = out;
    out += nets;
  }
  loss.weight_grads = p.weight_grads.data(), loss.bias_grads = p.bias_grads.data();
  cpu::conservative_loss(loss, threads);
  cpu::critic_values(c, out, threads);
  for (const auto& gradient : p.gradients) results.insert(results.end(), gradient.begin(), gradient.end());
  return results;
}

template <typename T>
std::vector<T> run_tanh_gaussian(const Task<T>& task, const cpu::Threads& threads) {
  const int64_t samples = 200, states = task.queries, dim = task.dim;  // worth several threads
  const std::vector<T> mean = numbers<T>(states * dim, 40), log_std = numbers<T>(states * dim, 41);
  const std::vector<T> noise = numbers<T>(states * samples * dim, 42);
  std::vector<T> actions(noise.size()), log_prob(static_cast<size_t>(states * samples)), grads(2 * mean.size());
  TanhGaussianGradient<T> g;
  g.forward.states = states, g.forward.samples = samples, g.forward.dim = dim;
  g.forward.mean = mean.data(), g.forward.log_std = log_std.data(), g.forward.noise = noise.data();
  cpu::tanh_gaussian(g.forward, actions.data(), log_prob.data(), threads);
  g.actions = actions.data(), g.action_grad = noise.data(), g.log_prob_grad = log_prob.data();
  g.mean_grad = grads.data(), g.log_std_grad = grads.data() + mean.size();
  cpu::tanh_gaussian_backward(g, threads);
  grads.insert(grads.end(), log_prob.begin(), log_prob.end());
  return grads;
}

template <typename T>
std::vector<Task<T>> tasks() {
  const std::string type = sizeof(T) == 4 ? " float32" : " float64";
  return {
      {"knn, small" + type, true, run_knn<T>, 50, 0, 5, 3},
      {"knn, worth a tree" + type, true, run_knn<T>, 2500, 0, 4, 5},
      {"knn, queries against references" + type, true, run_knn<T>, 300, 2100, 3, 128},
      {"knn, references packed tile by tile" + type, true, run_knn<T>, 5, 6000, 50, 7},
      {"batch entropy" + type, true, run_batch_entropy<T>, 120, 0, 6, 3},
      {"mlp" + type, false, run_mlp<T>, 150, 0, 9, 0},
      {"critic" + type, false, run_critic<T>, 40, 0, 5, 0},
      {"tanh-Gaussian" + type, false, run_tanh_gaussian<T>, 150, 0, 4, 0},
  };
}

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b, bool exact) {
  if (a.size() != b.size()) return false;
  if (exact) return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
  const double tolerance = sizeof(T) == 4 ? 1e-3 : 1e-9;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (!(std::fabs(x - y) <= tolerance * (1 + std::fabs(y)))) return false;
  }
  return true;
}

std::atomic<int> wrong = 0;

// One caller: every task with some number of threads, again and again.
template <typename T>
void call(const std::vector<Task<T>>& all, const std::vector<std::vector<T>>& expected, int caller, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < all.size(); ++i) {
      const size_t task = (i + static_cast<size_t>(caller)) % all.size();
      const cpu::Threads& threads = kThreads[(static_cast<size_t>(round + caller) + i) % 3];
      if (same(all[task].run(all[task], threads), expected[task], all[task].exact)) continue;
      ++wrong;
      std::fprintf(stderr, "%s: another result, caller %d, round %d\n", all[task].name.c_str(), caller, round);
    }
  }
}

template <typename T>
std::vector<std::vector<T>> alone(const std::vector<Task<T>>& all) {
  std::vector<std::vector<T>> results;
  for (const Task<T>& task : all) results.push_back(task.run(task, kThreads[0]));
  return results;
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 3;
  const auto single = tasks<float>();
  const auto twofold = tasks<double>();
  cpu::set_search_path("all");
  const auto single_expected = alone(single);
  const auto twofold_expected = alone(twofold);

  std::atomic<bool> done = false;
  std::thread chooser([&] {
    const std::vector<const char*> sets = cpu::instruction_sets();
    const char* const paths[] = {"auto", "all", "boxes", "screen"};
    for (size_t turn = 0; !done; ++turn) {
      cpu::set_instruction_set(sets[turn % sets.size()]);
      cpu::set_search_path(paths[turn / 3 % 4]);
      cpu::set_work_per_thread(turn % 2 == 0 ? 1 : 0);
      if (std::strlen(cpu::instruction_set()) == 0) ++wrong;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      caller % 2 == 0 ? call(single, single_expected, caller, rounds) : call(twofold, twofold_expected, caller, rounds);
    });
  }
  for (std::thread& caller : callers) caller.join();
  done = true;
  chooser.join();
  std::printf("%zu computations by 4 callers, %d rounds each: %d wrong\n", single.size() + twofold.size(), rounds,
              wrong.load());
  return wrong == 0 ? 0 : 1;
}

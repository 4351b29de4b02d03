// Points for the laboratory, the same on every machine: independent normal numbers, and trajectories of a made-up body.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace lab {

// Standard normal numbers by Box and Muller: the standard library's own differ from one implementation to the next.
class Normal {
 public:
  explicit Normal(uint64_t seed) : bits_(seed) {}
  double uniform() { return (static_cast<double>(bits_() >> 11) + 0.5) * 0x1p-53; }
  int64_t below(int64_t n) { return static_cast<int64_t>(uniform() * static_cast<double>(n)); }
  double operator()() {
    if (spare_full_) {
      spare_full_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2 * std::log(uniform()));
    const double angle = 6.283185307179586 * uniform();
    spare_ = radius * std::sin(angle);
    spare_full_ = true;
    return radius * std::cos(angle);
  }

 private:
  std::mt19937_64 bits_;
  double spare_ = 0;
  bool spare_full_ = false;
};

template <typename T>
struct Points {
  std::vector<T> states;  // [rows, dim]
  std::vector<T> values;  // [rows]
};

template <typename T>
Points<T> normal_points(int64_t rows, int64_t dim, uint64_t seed) {
  Normal normal(seed);
  Points<T> points;
  for (int64_t i = 0; i < rows * dim; ++i) points.states.push_back(static_cast<T>(normal()));
  for (int64_t i = 0; i < rows; ++i) points.values.push_back(static_cast<T>(normal()));
  return points;
}

// Episodes of at most 1000 steps of a chain of damped springs, each driven by its own random policy: a tanh of a linear
// feedback, a sinusoid for each joint, and noise. The state is velocities, then positions; the value is the discounted
// return of forward velocity less effort, standardised. Rows are shuffled. As with a real body, neighbours in time are
// neighbours in state, dimensions differ in scale, and episodes lie apart. A few rows are a sample of many.
template <typename T>
Points<T> trajectories(int64_t rows, int64_t dim, uint64_t seed) {
  Normal normal(seed);
  const int64_t joints = (dim + 1) / 2;
  std::vector<double> states;
  std::vector<double> values;
  std::vector<double> position(joints), velocity(joints), gain(joints * dim), bias(joints), amplitude(joints),
      frequency(joints), phase(joints), force(joints), rewards;
  const auto draw = [&](std::vector<double>& into, double scale) {
    for (double& x : into) x = scale * normal();
  };
  while (static_cast<int64_t>(values.size()) < std::max<int64_t>(rows, 20000)) {
    draw(position, 0.1);
    draw(velocity, 0.1);
    draw(gain, normal.uniform() / std::sqrt(static_cast<double>(dim)));
    draw(bias, 0.5);
    for (int64_t j = 0; j < joints; ++j) {
      amplitude[j] = normal.uniform();
      frequency[j] = 0.02 + 0.48 * normal.uniform();
      phase[j] = 6.283185307179586 * normal.uniform();
    }
    const double noise = 0.5 * normal.uniform();
    const int64_t steps = 200 + normal.below(801);
    rewards.clear();
    for (int64_t step = 0; step < steps; ++step) {
      const size_t row = states.size();
      for (int64_t d = 0; d < dim; ++d) states.push_back(d < joints ? velocity[d] : position[d - joints]);
      double effort = 0;
      for (int64_t j = 0; j < joints; ++j) {
        double drive = bias[j];
        for (int64_t d = 0; d < dim; ++d) drive += gain[j * dim + d] * states[row + d];
        const double wave = amplitude[j] * std::sin(frequency[j] * static_cast<double>(step) + phase[j]);
        force[j] = std::clamp(std::tanh(drive) + wave + noise * normal(), -1.0, 1.0);
        effort += force[j] * force[j];
      }
      for (int64_t j = 0; j < joints; ++j) {
        const double left = j > 0 ? position[j - 1] : 0, right = j + 1 < joints ? position[j + 1] : 0;
        const double stiffness = 2 + static_cast<double>(j % 5);  // joints of different strength
        velocity[j] += 0.05 * (stiffness * (left + right - 2.5 * position[j]) - 0.6 * velocity[j] + 4 * force[j]);
      }
      for (int64_t j = 0; j < joints; ++j) position[j] += 0.05 * velocity[j];
      rewards.push_back(velocity[0] - 0.1 * effort / static_cast<double>(joints));
    }
    const size_t first = values.size();
    values.resize(first + rewards.size());
    double future = 0;
    for (size_t i = rewards.size(); i-- > 0;) values[first + i] = future = rewards[i] + 0.99 * future;
  }
  const auto count = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double square = 0;
  for (const double value : values) square += (value - mean) * (value - mean);
  const double spread = std::sqrt(square / count);
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[normal.below(static_cast<int64_t>(i))]);
  Points<T> points;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < dim; ++d) points.states.push_back(static_cast<T>(states[order[i] * dim + d]));
    points.values.push_back(static_cast<T>((values[order[i]] - mean) / spread));
  }
  return points;
}

template <typename T>
Points<T> points_of(const std::string& data, int64_t rows, int64_t dim, uint64_t seed) {
  if (data == "normal") return normal_points<T>(rows, dim, seed);
  if (data == "trajectories") return trajectories<T>(rows, dim, seed);
  throw std::invalid_argument("--data: got '" + data + "', expected normal or trajectories");
}

}  // namespace lab

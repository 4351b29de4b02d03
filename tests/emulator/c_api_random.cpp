// The emulated kernels of csrc/random and csrc/buffer, called by Python.
#include <deque>
#include <stdexcept>
#include <string>

#include "buffer/cuda/gather.h"
#include "c_api.h"
#include "random/cuda/random.h"

namespace {

using emulator::Buffer;

void expect_done(const qcse::cuda::Status& status) {
  if (status.error != nullptr) throw std::runtime_error(std::string(status.kernel) + ": " + status.error);
}

qcse::cuda::Device facts() {
  qcse::cuda::Device device;
  expect_done(qcse::cuda::select_device(0, &device));
  return device;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// segments: law, count, first block and place of each, as in csrc/random/random.h. counters are changed. Returns 0, or
// 1 and leaves a message, as do the functions below.
int emulator_random(int64_t seeds, int64_t segments, const int64_t* segment, int64_t blocks, int64_t numbers,
                    const int64_t* keys, int64_t* counters, float* out) {
  return emulator::guarded([&] {
    const size_t bytes = static_cast<size_t>(seeds) * sizeof(int64_t);
    const Buffer device_keys(keys, bytes), device_counters(counters, bytes);
    const Buffer device_out(static_cast<size_t>(numbers) * sizeof(float));
    qcse::RandomNumbers draw;
    draw.stream = {seeds, device_keys.as<int64_t>(), device_counters.as<int64_t>()};
    draw.segments = segments, draw.blocks = blocks, draw.numbers = device_out.as<float>();
    for (int64_t i = 0; i < segments; ++i) {
      const int64_t* const s = segment + 4 * i;
      draw.segment[i] = {static_cast<qcse::Law>(s[0]), s[1], s[2], s[3]};
    }
    expect_done(qcse::cuda::random_numbers(draw, facts(), nullptr));
    device_counters.read(counters);
    device_out.read(out);
  });
}

// sizes: seeds, count, leading, dataset, held, together. held_there may be null.
int emulator_random_rows(const int64_t* sizes, const double* held_there, const int64_t* keys, int64_t* counters,
                         int64_t* out) {
  return emulator::guarded([&] {
    const size_t bytes = static_cast<size_t>(sizes[0]) * sizeof(int64_t);
    const Buffer device_keys(keys, bytes), device_counters(counters, bytes);
    const Buffer held(held_there, held_there != nullptr ? sizeof(double) : 0);
    const Buffer rows(bytes * static_cast<size_t>(sizes[1]));
    qcse::RandomRows draw;
    draw.stream = {sizes[0], device_keys.as<int64_t>(), device_counters.as<int64_t>()};
    draw.count = sizes[1], draw.leading = sizes[2], draw.dataset = sizes[3], draw.held = sizes[4];
    draw.together = sizes[5] != 0, draw.held_there = held.as<double>(), draw.rows = rows.as<int64_t>();
    expect_done(qcse::cuda::random_rows(draw, nullptr));
    device_counters.read(counters);
    rows.read(out);
  });
}

// sizes: seeds, rows, dataset size, capacity, columns. dataset, online and out: a pointer for each column.
int emulator_gather(const int64_t* sizes, const int64_t* widths, const void* const* dataset, const void* const* online,
                    const int64_t* index, void* const* out, bool* is_online) {
  return emulator::guarded([&] {
    const auto taken = static_cast<size_t>(sizes[0] * sizes[1]);
    const Buffer device_index(index, taken * sizeof(int64_t)), mask(taken);
    std::deque<Buffer> buffers;  // of each column: dataset, online, out
    qcse::Gather g;
    g.seeds = sizes[0], g.rows = sizes[1], g.dataset_size = sizes[2], g.capacity = sizes[3], g.columns = sizes[4];
    g.index = device_index.as<int64_t>(), g.is_online = mask.as<bool>();
    for (int64_t c = 0; c < g.columns; ++c) {
      const size_t row = static_cast<size_t>(widths[c]) * sizeof(float);
      const Buffer& rows = buffers.emplace_back(dataset[c], static_cast<size_t>(g.dataset_size) * row);
      const Buffer& ring = buffers.emplace_back(online[c], static_cast<size_t>(g.seeds * g.capacity) * row);
      g.column[c] = {rows.as<float>(), ring.as<float>(), buffers.emplace_back(taken * row).as<float>(), widths[c]};
    }
    expect_done(qcse::cuda::gather(g, nullptr));
    for (int64_t c = 0; c < g.columns; ++c) buffers[static_cast<size_t>(3 * c + 2)].read(out[c]);
    mask.read(is_online);
  });
}

}  // extern "C"
#pragma GCC visibility pop

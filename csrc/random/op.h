// What the random operators share on every device: argument checks and the output.
#pragma once
#include <optional>
#include <vector>

#include "base/integers.h"
#include "base/op.h"
#include "random/random.h"

namespace qcse {

inline Stream stream_of(const char* op, const Tensor& keys, const Tensor& counters) {
  if (keys.dim() != 1 || keys.size(0) < 1)
    fail(op, ": keys must have shape [S] and not be empty, got ", shape_of(keys));
  if (keys.scalar_type() != ScalarType::Long) {
    fail(op, ": keys must be int64, got ", type_name(keys.scalar_type()));
  }
  expect(op, "counters", counters, keys, {keys.size(0)}, ScalarType::Long, "keys");
  if (!keys.is_contiguous() || !counters.is_contiguous()) {
    fail(op, ": counters are changed in place: they and the keys must be contiguous");
  }
  return {keys.size(0), keys.const_data_ptr<int64_t>(), counters.mutable_data_ptr<int64_t>()};
}

// run(draw) computes it; nothing is empty there.
template <class Run>
Tensor run_random(const Tensor& keys, Tensor counters, const std::vector<int64_t>& laws,
                  const std::vector<int64_t>& counts, const Run& run) {
  const char* op = "qcse::random";
  RandomNumbers draw;
  draw.stream = stream_of(op, keys, counters);
  if (laws.size() != counts.size() || laws.empty() || laws.size() > kMaxSegments) {
    fail(op, ": expected 1 to ", kMaxSegments, " laws and as many counts, got ", laws.size(), " and ", counts.size());
  }
  draw.segments = static_cast<int64_t>(laws.size());
  int64_t numbers = 0;
  for (size_t i = 0; i < laws.size(); ++i) {
    if (laws[i] < 0 || laws[i] >= kLaws) fail(op, ": a law must be from 0 to ", kLaws - 1, ", got ", laws[i]);
    if (counts[i] < 1) fail(op, ": a count must be at least 1, got ", counts[i]);
    draw.segment[i] = {static_cast<Law>(laws[i]), counts[i], draw.blocks, numbers};
    draw.blocks += ceil_div(counts[i], kNumbersPerBlock);
    numbers += round_up(draw.stream.seeds * counts[i], kNumbersPerBlock);
  }
  Tensor drawn = torch::stable::new_empty(keys, {numbers}, ScalarType::Float);
  draw.numbers = drawn.mutable_data_ptr<float>();
  run(draw);
  return drawn;
}

template <class Run>
Tensor run_random_rows(const Tensor& keys, Tensor counters, int64_t count, int64_t dataset, int64_t held,
                       const std::optional<Tensor>& held_there, std::optional<int64_t> leading, const Run& run) {
  const char* op = "qcse::random_rows";
  RandomRows draw;
  draw.stream = stream_of(op, keys, counters);
  draw.count = count, draw.leading = leading.value_or(0), draw.together = !leading.has_value();
  draw.dataset = dataset, draw.held = held;
  if (count < 1) fail(op, ": count must be at least 1, got ", count);
  if (dataset < 0 || held < 0 || dataset + held > kRowLimit) {
    fail(op, ": dataset and held must be from 0 on, and at most 2147483647 together, got ", dataset, " and ", held);
  }
  if (draw.leading < 0 || draw.leading > count) {
    fail(op, ": leading must be from 0 to count (", count, "), got ", draw.leading);
  }
  if (held_there) {
    expect(op, "held_there", *held_there, keys, {}, ScalarType::Double, "keys");
    draw.held_there = held_there->const_data_ptr<double>();
  }
  const int64_t others = draw.together ? dataset + held : held;
  if ((draw.leading > 0 && dataset == 0) || (draw.leading < count && others == 0 && !held_there)) {
    fail(op, ": there are no rows to draw from (dataset ", dataset, ", held ", held, ")");
  }
  Tensor rows = torch::stable::new_empty(keys, {draw.stream.seeds, count}, ScalarType::Long);
  draw.rows = rows.mutable_data_ptr<int64_t>();
  run(draw);
  return rows;
}

}  // namespace qcse

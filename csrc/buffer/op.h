// What gathering transitions shares on every device: argument checks and the outputs.
#pragma once
#include <string>
#include <tuple>
#include <vector>

#include "base/op.h"
#include "buffer/gather.h"

namespace qcse {

// run(gather) computes it; nothing is empty there.
template <class Run>
std::tuple<std::vector<Tensor>, Tensor> run_gather(const std::vector<Tensor>& dataset,
                                                   const std::vector<Tensor>& online, const Tensor& index,
                                                   const Run& run) {
  const char* op = "qcse::gather_transitions";
  if (index.dim() != 2 || index.scalar_type() != ScalarType::Long) {
    fail(op, ": index must have shape [S, B] and be int64, got ", shape_of(index), ", ",
         type_name(index.scalar_type()));
  }
  if (dataset.empty() || dataset.size() > kMaxColumns || online.size() != dataset.size()) {
    fail(op, ": expected 1 to ", kMaxColumns, " columns of the dataset and as many online, got ", dataset.size(),
         " and ", online.size());
  }
  Gather g;
  g.seeds = index.size(0), g.rows = index.size(1), g.columns = static_cast<int64_t>(dataset.size());
  std::vector<Tensor> columns;
  for (size_t c = 0; c < dataset.size(); ++c) {
    const std::string number = std::to_string(c), name = "dataset[" + number + "]", ring = "online[" + number + "]";
    if (dataset[c].dim() < 1) fail(op, ": ", name, " must have shape [N, ...], got ", shape_of(dataset[c]));
    if (online[c].dim() < 2) fail(op, ": ", ring, " must have shape [S, capacity, ...], got ", shape_of(online[c]));
    if (c == 0) g.dataset_size = dataset[c].size(0), g.capacity = online[c].size(1);
    std::vector<int64_t> rows{g.dataset_size}, slots{g.seeds, g.capacity}, out{g.seeds, g.rows};
    int64_t width = 1;
    for (int64_t d = 1; d < dataset[c].dim(); ++d) {
      const int64_t size = dataset[c].size(d);
      for (auto* shape : {&rows, &slots, &out}) shape->push_back(size);
      width *= size;
    }
    expect(op, name, dataset[c], index, rows, ScalarType::Float, "index");
    expect(op, ring, online[c], index, slots, ScalarType::Float, "index");
    if (!dataset[c].is_contiguous() || !online[c].is_contiguous()) {
      fail(op, ": ", name, " and ", ring, " must be contiguous: a copy of them would cost more than the gather");
    }
    columns.push_back(torch::stable::new_empty(index, out, ScalarType::Float));
    g.column[c] = {dataset[c].const_data_ptr<float>(), online[c].const_data_ptr<float>(),
                   columns.back().mutable_data_ptr<float>(), width};
  }
  const Tensor dense_index = torch::stable::contiguous(index);
  Tensor is_online = torch::stable::new_empty(index, {g.seeds, g.rows}, ScalarType::Bool);
  g.index = dense_index.const_data_ptr<int64_t>(), g.is_online = is_online.mutable_data_ptr<bool>();
  if (g.seeds > 0 && g.rows > 0) run(g);
  return {columns, is_online};
}

}  // namespace qcse

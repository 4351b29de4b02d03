// The search of one entry of a batch: what is prepared once, and the ways to search, which only read it.
#pragma once
#include <cstdint>
#include <vector>

#include "base/threads.h"
#include "knn/cpu/cost_model.h"
#include "knn/cpu/entry.h"
#include "knn/cpu/kernels.h"
#include "knn/cpu/quantise.h"
#include "knn/cpu/tiles.h"

namespace qcse::cpu {

inline constexpr int64_t kLargestBlock = 192;  // queries that share a pass over the candidates

// Numbers of queries, in the order of Entry<T>::query_rows.
struct Range {
  int64_t begin, end;
};

template <typename T>
class Search {
 public:
  Search(const KnnProblem<T>& problem, int64_t number, const Kernels<T>& kernels, const Threads& threads);

  void run(Path path);

 private:
  void arrange();
  Sampled try_boxes(std::vector<Range>& rest) const;
  void search_boxes(const std::vector<Range>& ranges) const;
  void search_everything(const std::vector<Range>& ranges) const;

  // The ways to search. Each answers the queries of the range.

  // Every pair, or all pairs behind the screen where there are shadows; nearest tiles first where there is an order.
  // (scan_all.cpp)
  void scan_block(Range range) const;

  // Every pair, without copying all candidates first: each thread packs some tiles, offers them to all queries of the
  // range and takes the next. (scan_all.cpp)
  void scan_streamed(Range range) const;

  // Through boxes: the queries of one cell of the tree, at most kTile. (scan_boxes.cpp)
  Sampled scan_cell(Range range) const;

  struct Block;
  Block pack_queries(Range range) const;
  struct CodedQueries;
  CodedQueries encode_queries(const Block& block) const;

  const Threads threads_;
  const Threads helpers_;  // for what comes before the search
  const Kernels<T>& kernels_;
  Entry<T> entry_;
  Tiles<T> tiles_;
  Shadows<T> shadows_;
  bool arranged_ = false;  // candidates are in spatial order
};

}  // namespace qcse::cpu

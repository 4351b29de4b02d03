// The candidates as the kernels read them: tiles of kTile, and a box around each.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/integers.h"
#include "base/memory.h"
#include "base/threads.h"
#include "knn/cpu/entry.h"
#include "knn/cpu/kernels.h"

namespace qcse::cpu {

inline constexpr int64_t kPackChunk = 64;  // tiles that a thread prepares at a time

// Calls body(begin, end) for ranges of at most kPackChunk tiles.
template <class Body>
void for_tiles(const Threads& threads, int64_t tiles, const Body& body) {
  for_each(threads, ceil_div(tiles, kPackChunk),
           [&](int64_t chunk) { body(chunk * kPackChunk, std::min((chunk + 1) * kPackChunk, tiles)); });
}

template <typename T>
class Tiles {
 public:
  Tiles(const Entry<T>& entry, int64_t width) : entry_(entry), width_(width) {}

  // Brings dimensions into descending order of their spread, from the next call of pack on: a sum that starts with the
  // wide ones exceeds a bound early.
  void order_dimensions();

  // Fills `packed`; `as_defined`: with the dimensions in the definition's order whatever order there is.
  void pack(const Threads& threads, bool as_defined = false);

  // One tile: states[dim][kTile] and values[kTile].
  void pack_tile(int64_t tile, T* states, T* values, bool as_defined = false) const;

  // Fills `boxes`, from `packed`.
  void make_boxes(const Threads& threads);

  Candidates<T> packed;
  Boxes<T> boxes;
  std::vector<int32_t> order, slot;  // a tile's d-th dimension is order[d]; dimension d is the tile's slot[d]-th
  T slack = 1;                       // see Kernels<T>::scan_boxes

 private:
  void box_tile(int64_t tile, T* edges) const;

  const Entry<T>& entry_;
  const int64_t width_;  // lanes of a vector
  Buffer<T> states_, values_, edges_;
};

}  // namespace qcse::cpu

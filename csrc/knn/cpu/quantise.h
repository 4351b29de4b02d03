// The 8-bit shadows of points behind which all pairs are screened; kernels.h has the arithmetic.
#pragma once
#include <cstdint>
#include <vector>

#include "base/memory.h"
#include "base/threads.h"
#include "knn/cpu/entry.h"
#include "knn/cpu/kernels.h"

namespace qcse::cpu {

struct Coded {
  int32_t square, sum;  // of the codes
  double error;         // length of the rounding, in steps
};

template <typename T>
class Shadows {
 public:
  static constexpr uint32_t kOffset = 0x80808080;  // turns four signed codes into codes plus 128, and back

  explicit Shadows(const Entry<T>& entry) : entry_(entry) {}

  // Chooses centre and step; whether there can be any shadows.
  bool choose_steps();

  // Fills `screen`, with the steps chosen.
  void make(const Threads& threads, int64_t tiles);

  // `code` has 4 * screen.blocks elements, those beyond dim being 0.
  Coded encode(const T* state, int8_t* code) const;

  ScreenTiles screen;   // no codes where none were made
  Buffer<Coded> coded;  // of the candidates, where they are the queries
  double step = 1, worst_error = 0;

 private:
  const Entry<T>& entry_;
  Buffer<uint8_t> codes_;
  Buffer<int32_t> start_;
  std::vector<double> centre_;
  double per_step_ = 1;
};

}  // namespace qcse::cpu

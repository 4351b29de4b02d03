// What the per-instruction-set kernels offer to the search: plain structs and a table of functions.
//
// A file isa/<set>/knn.cpp is compiled with instructions that the machine may not have. It must therefore contain no
// function that the linker could merge with one of another file: everything in it has internal linkage, and no
// template or inline function of the standard library is used there.
#pragma once
#include <cstdint>

namespace qcse::cpu {

// Candidates are packed in tiles of 64, structure of arrays: states[tile][d][64]. The last tile is padded with
// infinite states, whose distance is never below a bound.
inline constexpr int64_t kTile = 64;

inline constexpr int64_t kFirstTiles = 64;  // that scan_first takes at most

template <typename T>
struct Candidates {
  const T* states = nullptr;  // [tiles, dim, kTile]
  const T* values = nullptr;  // [tiles, kTile]
  int64_t tiles = 0;
  int64_t dim = 0;
  int64_t count = 0;              // without the padding
  const T* row_states = nullptr;  // the same states row by row: candidate c is row rows[c]
  const int32_t* rows = nullptr;
};

// The k smallest keys of some queries so far, each list ascending and padded with infinity to whole vectors.
template <typename T>
struct Nearest {
  T* lists = nullptr;   // [queries, stride]; element k - 1 is the threshold
  T* bounds = nullptr;  // [queries]: a pair whose squared distance is not below it can't matter
  int64_t stride = 0;   // k rounded up to whole vectors
  int64_t k = 0;
};

// A block of queries for scan_all, packed in groups that share a register tile.
template <typename T>
struct PackedQueries {
  const T* states = nullptr;      // [groups, dim, group width]
  const T* values = nullptr;      // [queries]
  const int32_t* self = nullptr;  // [queries]: packed position of the candidate that is the query itself, or -1
  int64_t count = 0;              // a multiple of the group width; spare queries have a negative bound
};

// A few queries near each other, for scan_boxes; at most kTile.
template <typename T>
struct QueryGroup {
  const T* states = nullptr;   // [queries, dim], dimensions in the order of the definition
  const T* ordered = nullptr;  // [queries, dim + 1], dimensions in the order of the candidates' tiles, then the value
  const T* values = nullptr;
  const int32_t* self = nullptr;
  int64_t count = 0;
};

// Bounding boxes of tiles, as many side by side as a vector has lanes:
// [ceil(count / width), dim + 1, 2 (lower, upper), width]; the last coordinate is the value. Spare lanes are at
// infinity.
template <typename T>
struct Boxes {
  const T* edges = nullptr;
  int64_t count = 0;
};

// 8-bit shadows of points, for ruling pairs out with integer products. A coordinate x becomes the code
// round((x - centre) / step), clipped to [-127, 127]; candidates store it plus 128.
struct ScreenTiles {
  const uint8_t* codes = nullptr;  // [tiles, blocks, kTile, 4]: four dimensions side by side
  const int32_t* start = nullptr;  // [tiles, kTile]: -floor(|code|^2 / 2), very low in spare lanes
  int64_t blocks = 0;              // ceil(dim / 4)
};

// With X and Y the codes of query and candidate, |X - Y|^2 = |X|^2 + |Y|^2 - 2 X.Y exactly. Clipping brings points
// nearer to each other, and rounding moves each by a known length, so that a pair whose distance is below the threshold
// has |X - Y| <= threshold / step + error, all in steps. Hence
//   start + sum (Y + 128) X >= (|X|^2 - (threshold * steps + error)^2) / 2 + 128 sum X =: limit.
struct ScreenQueries {
  const int32_t* codes = nullptr;   // [groups, blocks, group width]: four signed bytes each
  const int32_t* square = nullptr;  // [queries]: |X|^2
  const int32_t* shift = nullptr;   // [queries]: 128 sum X
  const double* error = nullptr;    // [queries]: rounding of the query and of the worst candidate, in steps
  int32_t* scores = nullptr;        // scratch of scan_first: [group width, kFirstTiles, kTile]
  double steps = 0;                 // (1 + margin) / step
};

template <typename T>
struct Kernels {
  int64_t group;  // queries that share a register tile in scan_all
  int64_t width;  // lanes of a vector

  // Every query against every candidate of the tiles named, whose dimensions stand in the order of the definition.
  void (*scan_all)(const Candidates<T>&, const int32_t* tiles, int64_t count, const PackedQueries<T>&,
                   const Nearest<T>&);

  // Squared lower bounds from one box (given as lower and upper edges, [dim + 1] each) to all of `boxes`; those above
  // `limit` need not be tight.
  void (*box_distances)(const Boxes<T>& boxes, int64_t dim, const T* lower, const T* upper, T limit, T* squared);

  // Every query of the group against those of at most `width` tiles whose boxes it can't rule out. Dimensions of tiles
  // and boxes stand in any order: slot[d] says where dimension d is. `slack` is the factor by which a sum in that order
  // must exceed a bound to prove that the sum in the definition's order reaches it. `nearest_box` is a squared lower
  // bound from any query to any of the boxes. Returns the work: vectors times dimensions.
  int64_t (*scan_boxes)(const Candidates<T>&, const int32_t* tiles, const Boxes<T>&, T nearest_box, const int32_t* slot,
                        T slack, const QueryGroup<T>&, const Nearest<T>&);

  // As scan_all, with a screen in front, which reads row_states and values in place of the tiles' states; null where
  // the instruction set has no fast 8-bit products.
  void (*scan_screened)(const Candidates<T>&, const ScreenTiles&, const int32_t* tiles, int64_t count,
                        const PackedQueries<T>&, const ScreenQueries&, const Nearest<T>&);

  // As scan_screened, on at most kFirstTiles tiles, for queries that know no or a poor bound so far.
  void (*scan_first)(const Candidates<T>&, const ScreenTiles&, const int32_t* tiles, int64_t count,
                     const PackedQueries<T>&, const ScreenQueries&, const Nearest<T>&);

  // What a core can do at most, for measurements: `rounds` times some independent multiply-adds on registers. `lanes`
  // gives a vector and takes their sum. Returns the number of multiply-adds.
  int64_t (*multiply_add)(int64_t rounds, T* lanes);
};

struct KernelSet {
  Kernels<float> single;
  Kernels<double> twofold;
};

}  // namespace qcse::cpu

// The first half of `prepare` in batch_entropy.cu: a look at the rows of a batch, which tells those that count, and the
// sums by which these move the moments.
#pragma once
#include "base/cuda/device.h"
#include "bonus/batch_entropy.h"

namespace qcse::cuda {

inline constexpr int kPrepareThreads = 512;
inline constexpr int kAhead = 8;   // rows of a thread whose loads are on their way at a time
inline constexpr int kTile = 256;  // rows whose numbers wait in shared memory to be added up, at most

// What keeps a row out. A row with none of these moves the moments; one without kOut is a transition's.
inline constexpr unsigned kOut = 1;   // not eligible, or not finite
inline constexpr unsigned kHuge = 2;  // beyond kLargestMoment

template <typename T>
struct SeedRows {
  const T *states, *values;
  int dim;

  // One channel's numbers, and how far they lie apart; all from `dim` on are the values.
  struct Numbers {
    const T* first;
    int stride;
    __device__ __forceinline__ T at(int row) const { return first[static_cast<int64_t>(row) * stride]; }
  };
  __device__ __forceinline__ Numbers of(int channel) const {
    return channel < dim ? Numbers{states + channel, dim} : Numbers{values, 1};
  }
};

// How threads share a matrix: 2^shift lanes take a row, and all threads `rows` rows at a time.
struct Lanes {
  int column, row, columns, rows;
  __device__ __forceinline__ explicit Lanes(int shift)
      : column(static_cast<int>(threadIdx.x) & ((1 << shift) - 1)),
        row(static_cast<int>(threadIdx.x) >> shift),
        columns(1 << shift),
        rows(kPrepareThreads >> shift) {}
};

// Numbers of the part's channels that wait to be added up, in double precision: [width, pitch], of so many rows.
struct Tile {
  double* numbers;
  int first, width, pitch, rows;

  __device__ __forceinline__ bool has(int channel) const { return channel >= first && channel < first + width; }
  __device__ __forceinline__ double* column(int channel) const { return numbers + (channel - first) * pitch; }
};

template <typename T>
__device__ __forceinline__ bool may_move(T x) {
  return magnitude(x) <= kLargestMoment<T>;  // false for NaN
}

// What keeps each row out, into `flags`, by a look at all of its numbers; those of the first rows fill the tile. All
// that is loaded for kAhead rows of a thread is on its way at once.
template <typename T>
__device__ __forceinline__ void look_at_rows(const SeedRows<T>& rows, const bool* eligible, int n, int row_lanes,
                                             const Tile& tile, unsigned* flags) {
  const Lanes lanes(row_lanes);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned row_mates = (lanes.columns < kWarp ? (1u << lanes.columns) - 1 : kFullWarp) << (lane - lanes.column);
#pragma unroll 1
  for (int first = 0; first < n; first += kAhead * lanes.rows) {
    bool counts[kAhead];
    unsigned out = 0, huge = 0;  // a bit for each of the thread's rows
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int row = first + j * lanes.rows + lanes.row;
      counts[j] = eligible[row < n ? row : n - 1];
    }
#pragma unroll 1
    for (int from = 0; from <= rows.dim; from += lanes.columns) {
      // Lanes behind the last channel look at it as well, and those behind the last row at that.
      const int channel = from + lanes.column;
      const auto numbers = rows.of(channel);
      T x[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int row = first + j * lanes.rows + lanes.row;
        x[j] = numbers.at(row < n ? row : n - 1);
      }
      bool good = true;
#pragma unroll
      for (int j = 0; j < kAhead; ++j) good = good && may_move(x[j]);
      if (!good) {
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          if (!may_move(x[j])) (is_finite(x[j]) ? huge : out) |= 1u << j;
        }
      }
      if (tile.has(channel)) {
        double* const to = tile.column(channel) + first + lanes.row;
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          if (first + j * lanes.rows + lanes.row < tile.rows) to[j * lanes.rows] = static_cast<double>(x[j]);
        }
      }
    }
    const bool any = __any_sync(kFullWarp, (out | huge) != 0) != 0;
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      unsigned flag = counts[j] ? 0 : kOut;
      if (any) {
        if ((__ballot_sync(kFullWarp, (out >> j & 1) != 0) & row_mates) != 0) flag |= kOut;
        if ((__ballot_sync(kFullWarp, (huge >> j & 1) != 0) & row_mates) != 0) flag |= kHuge;
      }
      const int row = first + j * lanes.rows + lanes.row;
      if (lanes.column == 0 && row < n) flags[row] = flag;
    }
  }
}

// Fills the tile with the rows from `first` on.
template <typename T>
__device__ __forceinline__ void fill_tile(const SeedRows<T>& rows, int first, int own_lanes, const Tile& tile) {
  const Lanes lanes(own_lanes);
  if (lanes.column >= tile.width) return;
  const auto numbers = rows.of(tile.first + lanes.column);
  double* const to = tile.column(tile.first + lanes.column);
#pragma unroll 4
  for (int row = lanes.row; row < tile.rows; row += lanes.rows) to[row] = static_cast<double>(numbers.at(first + row));
}

// use(x, moves) for a column's numbers in the order of the rows, by a whole warp, of which each lane has its column.
// Returns how many move the moments. Only the additions wait for each other: 32 numbers are loaded ahead of them. Rows
// that move no moment are passed over by the 32, or else are to be added as 0, which changes no bit of a sum. So the
// sums have the CPU's.
template <typename Use>
__device__ __forceinline__ int in_order(const double* column, const unsigned* flags, int rows, const Use& use) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int count = 0;
  bool moves = lane < rows && flags[lane] == 0;
#pragma unroll 1
  for (int first = 0; first < rows; first += kWarp) {
    const unsigned moving = __ballot_sync(kFullWarp, moves);
    const int next = first + kWarp + lane;
    moves = next < rows && flags[next] == 0;
    count += __popc(moving);
    if (moving == kFullWarp) {
#pragma unroll
      for (int j = 0; j < kWarp; j += 2) {
        const Pack<double, 2> two = load_pack<2>(column + first + j);
        use(two.at[0], true);
        use(two.at[1], true);
      }
    } else if (moving != 0) {
#pragma unroll 8
      for (int j = 0; j < kWarp; ++j) {
        use(column[first + j < rows ? first + j : rows - 1], (moving >> j & 1) != 0);
      }
    }
  }
  return count;
}

// The sums of a lane's channel, and what becomes of its moments.
template <typename T>
struct Channel {
  T mean, variance;                           // the moments
  T batches;                                  // that moved them before
  double sum = 0, of_batch = 0, squares = 0;  // of_batch: the batch's mean
  int learnt = 0;                             // rows that move the moments

  __device__ __forceinline__ void add(const double* column, const unsigned* flags, int rows) {
    learnt += in_order(column, flags, rows, [&](double x, bool moves) { sum += moves ? x : 0.0; });
  }
  __device__ __forceinline__ void add_squares(const double* column, const unsigned* flags, int rows) {
    in_order(column, flags, rows, [&](double x, bool moves) {
      const double away = x - of_batch;
      squares += moves ? away * away : 0.0;
    });
  }
  // The moments' turn, where a row moves them.
  __device__ __forceinline__ void move(double horizon) {
    const double old_mean = static_cast<double>(mean), old_variance = static_cast<double>(variance);
    const double counted = static_cast<double>(batches + T(1));
    const double seen = counted < 1.0 ? 1.0 : counted;
    const double rate = div_rn(1.0, horizon < seen ? horizon : seen);
    const double moved = of_batch - old_mean;
    const double of_squares = div_rn(squares, static_cast<double>(learnt));
    variance = static_cast<T>(old_variance + rate * (of_squares + (1 - rate) * moved * moved - old_variance));
    mean = static_cast<T>(old_mean + rate * moved);
  }
};

}  // namespace qcse::cuda

// A batch's bonus in three steps, each of which needs all of the one before: `prepare` moves the moments, finds the
// distinct transitions and standardises them; the search is that of csrc/knn/cuda; `report` gives each row what was
// found for its transition. How many transitions there are is known on the device alone, so the search is launched for
// as many points as there are rows: those behind the last transition are NaN, which makes them nobody's neighbours.
#include "base/cuda/device.h"
#include "bonus/cuda/batch_entropy.h"
#include "knn/digamma.h"

namespace qcse::cuda {
namespace {

constexpr int kPrepareThreads = 512;
constexpr int kPrepareWarps = kPrepareThreads / kWarp;
constexpr int kChannels = 16;            // that a block of `prepare` takes, at most; a lane for each
constexpr int kAhead = 8;                // loads on their way at a time
constexpr int64_t kRowsInShared = 4096;  // up to here a block's tables of the rows are in shared memory
constexpr int64_t kMostRows = 1 << 24;   // so that a warp's counts are whole numbers of 32 bits

// What keeps a row out. A row with none of these moves the moments; one without kOut is a transition's.
constexpr unsigned kOut = 1;   // not eligible, or not finite
constexpr unsigned kHuge = 2;  // beyond kLargestMoment

constexpr int kEmpty = -1;  // of the table's slots

// Of one seed.
struct Totals {
  unsigned long long distinct = 0;  // transitions
  unsigned long long learnt = 0;    // rows that moved the moments
  unsigned long long eligible = 0, covered = 0, zero_radii = 0, neighbours = 0;
  unsigned long long blocks = 0;  // of `report` that have added theirs
};

template <typename T>
struct Scratch {
  T* points = nullptr;        // [S, N, D]: the transitions in the order of their first rows, then NaN
  T* values = nullptr;        // [S, N]
  T* radius = nullptr;        // [S, N], of each transition
  int64_t* count = nullptr;   // [S, N]
  int* transition = nullptr;  // [S, N]: each row's place among the points, -1 for none
  Totals* totals = nullptr;   // [S]
  int* tables = nullptr;      // a set of RowTables for each block, where they are not in shared memory
};

// How the blocks of `prepare` share a seed out, and the size of their tables.
struct Parts {
  int parts, width;  // blocks of a seed; channels of each but the last, which may have fewer
  int slots;         // a power of 2, at least twice the rows

  Parts(int64_t rows, int64_t dim) : slots(2) {
    const int channels = static_cast<int>(dim) + 1;
    parts = (channels + kChannels - 1) / kChannels;
    width = (channels + parts - 1) / parts;
    parts = (channels + width - 1) / width;
    while (slots < 2 * rows) slots *= 2;
  }
  int64_t table_elements(int64_t rows) const { return 2 * rows + slots; }
};

// What a block knows of the rows.
struct RowTables {
  unsigned* flags;  // [N]: what keeps each row out; once the transitions are numbered, the first row of each
  int* slot;        // [N]: the slot of each row's index, -1 for none
  int* table;       // [slots]: the first row of an index; once numbered, -2 - the transition's place
};

template <typename T>
struct PrepareLayout {
  size_t mean, spread, warp_counts, flags, slot, table, bytes;

  // `rows` and `slots` are 0 where the tables are elsewhere.
  __host__ __device__ PrepareLayout(int width, int rows, int slots) {
    SharedLayout layout;
    mean = layout.add<T>(static_cast<size_t>(width));
    spread = layout.add<T>(static_cast<size_t>(width));
    warp_counts = layout.add<int>(kPrepareWarps);
    flags = layout.add<unsigned>(static_cast<size_t>(rows));
    slot = layout.add<int>(static_cast<size_t>(rows));
    table = layout.add<int>(static_cast<size_t>(slots));
    bytes = layout.bytes();
  }
};

template <typename T>
struct SeedRows {
  const T *states, *values;
  int dim;

  __device__ __forceinline__ T at(int row, int channel) const {
    const T* const place = channel < dim ? states + static_cast<int64_t>(row) * dim + channel : values + row;
    return *place;
  }
};

// x = load(row, column), then use(row, column, x), for every element of a matrix, shared out over the block's threads.
// Loads wait for no branch: those behind the last row load the last row's.
template <typename T, typename Load, typename Use>
__device__ __forceinline__ void for_each_element(int rows, int columns, const Load& load, const Use& use) {
  const int thread = static_cast<int>(threadIdx.x);
  const int rows_on = kPrepareThreads / columns;
  const int columns_on = kPrepareThreads % columns;
  int row = thread / columns;
  int column = thread % columns;
#pragma unroll 1
  while (row < rows) {
    T x[kAhead];
    int r[kAhead], c[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      r[j] = row;
      c[j] = column;
      x[j] = load(row < rows ? row : rows - 1, column);
      row += rows_on;
      column += columns_on;
      if (column >= columns) {
        column -= columns;
        ++row;
      }
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (r[j] < rows) use(r[j], c[j], x[j]);
    }
  }
}

// use(x, moves) for a channel's numbers in the order of the rows, by a whole warp, of which each lane has its channel.
// Returns how many move the moments. Only the additions wait for each other: loads run ahead of them, and a row that
// moves no moment is added as 0, which changes no bit of a sum. So the sums have the CPU's.
template <typename T, typename Use>
__device__ __forceinline__ int in_order(const T* numbers, int stride, const unsigned* flags, int rows, const Use& use) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int count = 0;
  int next = 0;  // row to be loaded; behind the last it is the last again
  T ahead[kAhead];
  const auto load = [&] {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      ahead[j] = *numbers;
      numbers += ++next < rows ? stride : 0;
    }
  };
  if (rows > 0) load();
#pragma unroll 1
  for (int first = 0; first < rows; first += kWarp) {
    unsigned moving = __ballot_sync(kFullWarp, first + lane < rows && flags[first + lane] == 0);
    count += __popc(moving);
#pragma unroll 1
    for (int part = 0; part < kWarp / kAhead; ++part) {
      T now[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) now[j] = ahead[j];
      load();
#pragma unroll
      for (int j = 0; j < kAhead; ++j) use(now[j], (moving >> j & 1) != 0);
      moving >>= kAhead;
    }
  }
  return count;
}

// The turn of the lanes' channels at their moments, by a whole warp; those of a lane that is not `live` stay. Returns
// how many rows moved them.
template <typename T>
__device__ __forceinline__ int move_channels(const BatchEntropy<T>& b, int64_t seed, const SeedRows<T>& rows,
                                             const unsigned* flags, int channel, bool live) {
  const int n = static_cast<int>(b.rows);
  const T* const numbers = channel < rows.dim ? rows.states + channel : rows.values;
  const int stride = channel < rows.dim ? rows.dim : 1;
  double sum = 0;
  const int learnt =
      in_order(numbers, stride, flags, n, [&](T x, bool moves) { sum += static_cast<double>(moves ? x : T(0)); });
  if (learnt == 0) return 0;
  const double mean = div_rn(sum, static_cast<double>(learnt));
  double squares = 0;
  in_order(numbers, stride, flags, n, [&](T x, bool moves) {
    const double away = static_cast<double>(x) - mean;
    squares += moves ? away * away : 0.0;
  });
  if (!live) return learnt;
  // The report counts the batch: the blocks of the other channels read this as well.
  const double batches = static_cast<double>(b.batches[seed] + T(1));
  const double seen = batches < 1.0 ? 1.0 : batches;
  const double rate = div_rn(1.0, b.horizon < seen ? b.horizon : seen);
  T& kept_mean = b.mean[seed * (rows.dim + 1) + channel];
  T& kept_variance = b.variance[seed * (rows.dim + 1) + channel];
  const double old_mean = static_cast<double>(kept_mean), old_variance = static_cast<double>(kept_variance);
  const double moved = mean - old_mean;
  const double variance = div_rn(squares, static_cast<double>(learnt));
  kept_variance = static_cast<T>(old_variance + rate * (variance + (1 - rate) * moved * moved - old_variance));
  kept_mean = static_cast<T>(old_mean + rate * moved);
  return learnt;
}

__device__ __forceinline__ unsigned scrambled(int64_t index) {
  auto x = static_cast<uint64_t>(index);
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return static_cast<unsigned>(x >> 32);
}

// Enters a row into the table of indices; its slot ends up with the first row of that index, whoever comes first.
__device__ __forceinline__ int enter(int* table, int slots, const int64_t* index, int row) {
  const int64_t own = index[row];
  int at = static_cast<int>(scrambled(own) & static_cast<unsigned>(slots - 1));
  for (;;) {
    const int found = atomicCAS(&table[at], kEmpty, row);
    if (found == kEmpty) return at;
    if (index[found] == own) {
      atomicMin(&table[at], row);
      return at;
    }
    at = (at + 1) & (slots - 1);
  }
}

// Numbers the transitions in the order of their first rows. Returns how many there are, in every thread.
__device__ __forceinline__ int number_transitions(const RowTables& tables, int* warp_counts, int rows) {
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp;
  const int lane = thread % kWarp;
  int distinct = 0;
#pragma unroll 1
  for (int first = 0; first < rows; first += kPrepareThreads) {
    const int row = first + thread;
    const int at = row < rows ? tables.slot[row] : -1;
    const bool stands = at >= 0 && tables.table[at] == row;
    const unsigned standing = __ballot_sync(kFullWarp, stands);
    if (lane == 0) warp_counts[warp] = __popc(standing);
    __syncthreads();
    int place = distinct + __popc(standing & ((1u << lane) - 1));
    for (int w = 0; w < kPrepareWarps; ++w) {
      const int count = warp_counts[w];
      if (w < warp) place += count;
      distinct += count;
    }
    if (stands) {
      tables.flags[place] = static_cast<unsigned>(row);
      tables.table[at] = -2 - place;
    }
    __syncthreads();
  }
  return distinct;
}

// blockIdx.x = seed * parts + part. Each block looks at all of a seed's rows and numbers its transitions, which costs
// no time where the GPU has room for them all; then it moves and standardises the channels of its part.
template <typename T, bool kShared>
__global__ void __launch_bounds__(kPrepareThreads, 1)
    batch_prepare_kernel(const BatchEntropy<T> b, const Scratch<T> scratch, const Parts share) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t seed = blockIdx.x / static_cast<unsigned>(share.parts);
  const int part = static_cast<int>(blockIdx.x % static_cast<unsigned>(share.parts));
  const int n = static_cast<int>(b.rows);
  const int dim = static_cast<int>(b.dim);
  const int first = part * share.width;
  const int width = share.width < dim + 1 - first ? share.width : dim + 1 - first;
  const SeedRows<T> rows{b.states + seed * n * dim, b.values + seed * n, dim};
  const int64_t* const index = b.index + seed * n;

  const PrepareLayout<T> layout(share.width, kShared ? n : 0, kShared ? share.slots : 0);
  T* const mean = shared_array<T>(layout.mean, static_cast<size_t>(share.width));
  T* const spread = shared_array<T>(layout.spread, static_cast<size_t>(share.width));
  int* const warp_counts = shared_array<int>(layout.warp_counts, kPrepareWarps);
  RowTables tables;
  if constexpr (kShared) {
    tables.flags = shared_array<unsigned>(layout.flags, static_cast<size_t>(n));
    tables.slot = shared_array<int>(layout.slot, static_cast<size_t>(n));
    tables.table = shared_array<int>(layout.table, static_cast<size_t>(share.slots));
  } else {
    int* const own = scratch.tables + blockIdx.x * (2 * static_cast<int64_t>(n) + share.slots);
    tables = {reinterpret_cast<unsigned*>(own), own + n, own + 2 * static_cast<int64_t>(n)};
  }

  for (int row = thread; row < n; row += kPrepareThreads) tables.flags[row] = b.eligible[seed * n + row] ? 0 : kOut;
  for (int at = thread; at < share.slots; at += kPrepareThreads) tables.table[at] = kEmpty;
  __syncthreads();
  for_each_element<T>(
      n, dim + 1, [&](int row, int channel) { return rows.at(row, channel); },
      [&](int row, int, T x) {
        if (magnitude(x) <= kLargestMoment<T>) return;  // NaN is not
        atomicOr(&tables.flags[row], is_finite(x) ? kHuge : kOut);
      });
  __syncthreads();

  // Adding up in order takes its time: one warp does it while the others enter the rows into the table.
  int learnt = 0;
  if (thread < kWarp) {
    const bool live = thread < width;
    const int c = live ? thread : width - 1;
    if (b.learn) learnt = move_channels(b, seed, rows, tables.flags, first + c, live);
    if (live) {
      const int64_t at = seed * (dim + 1) + first + c;
      const T root = sqrt_rn(b.variance[at]);
      mean[c] = b.mean[at];
      spread[c] = root > T(1e-6) ? root : T(1);
    }
  } else {
    for (int row = thread - kWarp; row < n; row += kPrepareThreads - kWarp) {
      tables.slot[row] = (tables.flags[row] & kOut) != 0 ? -1 : enter(tables.table, share.slots, index, row);
    }
  }
  __syncthreads();

  const int distinct = number_transitions(tables, warp_counts, n);
  T* const points = scratch.points + seed * n * dim;
  T* const values = scratch.values + seed * n;
  const T divisor = static_cast<T>(b.divisor);
  for_each_element<T>(
      n, width,
      [&](int place, int c) {
        return rows.at(place < distinct ? static_cast<int>(tables.flags[place]) : 0, first + c);
      },
      [&](int place, int c, T x) {
        const bool state = first + c < dim;
        T point = not_a_number<T>();
        if (place < distinct) {
          point = div_rn(x - mean[c], spread[c]);
          if (state) point = div_rn(point, divisor);
        }
        (state ? points[static_cast<int64_t>(place) * dim + first + c] : values[place]) = point;
      });
  if (part != 0) return;
  for (int row = thread; row < n; row += kPrepareThreads) {
    const int at = tables.slot[row];
    scratch.transition[seed * n + row] = at >= 0 ? -2 - tables.table[at] : -1;
  }
  if (thread == 0) {
    scratch.totals[seed] = {static_cast<unsigned long long>(distinct), static_cast<unsigned long long>(learnt)};
  }
}

template <typename T>
__device__ __forceinline__ T share_of(unsigned long long part, unsigned long long of) {
  return static_cast<T>(div_rn(static_cast<double>(part), static_cast<double>(of > 0 ? of : 1)));
}

// A warp is a block, a lane takes a row; blockIdx.x = seed * parts + part. The last block of a seed writes its
// statistics.
template <typename T>
__global__ void __launch_bounds__(kWarp)
    batch_report_kernel(const BatchEntropy<T> b, const Scratch<T> scratch, int parts) {
  const int64_t seed = blockIdx.x / static_cast<unsigned>(parts);
  const int64_t row = static_cast<int64_t>(blockIdx.x % static_cast<unsigned>(parts)) * kWarp + threadIdx.x;
  int eligible = 0, covered = 0, zero_radii = 0, neighbours = 0;
  if (row < b.rows) {
    const int64_t at = seed * b.rows + row;
    eligible = b.eligible[at];
    const int transition = scratch.transition[at];
    const int64_t place = seed * b.rows + transition;
    const int64_t found = transition >= 0 ? scratch.count[place] : -1;
    T entropy = 0;
    if (found >= 0) {
      const T radius = scratch.radius[place];
      // The point itself lies at distance 0: strictly closer, unless the radius is 0.
      const int64_t count = found + (b.count_self && radius > 0);
      entropy = static_cast<T>(entropy_of(static_cast<double>(radius), count, b.dim, b.offset));
      covered = 1;
      zero_radii = radius == 0;
      neighbours = static_cast<int>(count);
    }
    b.entropy[at] = entropy;
    b.covered[at] = covered != 0;
  }
  eligible = __reduce_add_sync(kFullWarp, eligible);
  covered = __reduce_add_sync(kFullWarp, covered);
  zero_radii = __reduce_add_sync(kFullWarp, zero_radii);
  neighbours = __reduce_add_sync(kFullWarp, neighbours);
  if (threadIdx.x != 0) return;

  Totals& totals = scratch.totals[seed];
  atomicAdd(&totals.eligible, static_cast<unsigned long long>(eligible));
  atomicAdd(&totals.covered, static_cast<unsigned long long>(covered));
  atomicAdd(&totals.zero_radii, static_cast<unsigned long long>(zero_radii));
  atomicAdd(&totals.neighbours, static_cast<unsigned long long>(neighbours));
  __threadfence();
  if (atomicAdd(&totals.blocks, 1ull) + 1 != static_cast<unsigned long long>(parts)) return;
  __threadfence();
  T* const statistics = b.statistics + seed;
  statistics[0] = share_of<T>(totals.zero_radii, totals.covered);
  statistics[b.seeds] = share_of<T>(totals.covered, totals.eligible);
  statistics[2 * b.seeds] = share_of<T>(totals.neighbours, totals.covered * totals.distinct);
  if (totals.learnt > 0) b.batches[seed] += T(1);
}

// The workspace of a call, and the search within it.
template <typename T>
struct Prepared {
  Scratch<T> scratch;
  KnnProblem<T> search;
  void* searching = nullptr;  // the search's own workspace
  size_t bytes = 0;

  Prepared(const BatchEntropy<T>& b, const Device& device, const BatchPlan& plan, void* memory) {
    Workspace workspace(memory);
    const int64_t rows = b.seeds * b.rows;
    const Parts share(b.rows, b.dim);
    scratch.points = workspace.take<T>(rows * b.dim);
    scratch.values = workspace.take<T>(rows);
    scratch.radius = workspace.take<T>(rows);
    scratch.count = workspace.take<int64_t>(rows);
    scratch.transition = workspace.take<int>(rows);
    scratch.totals = workspace.take<Totals>(b.seeds);
    if (!plan.rows_in_shared) {
      scratch.tables = workspace.take<int>(b.seeds * share.parts * share.table_elements(b.rows));
    }
    search.batch = b.seeds;
    search.queries = search.refs = b.rows;
    search.dim = b.dim;
    search.k = b.k;
    search.states = search.ref_states = scratch.points;
    search.values = search.ref_values = scratch.values;
    search.self_join = true;
    search.radius = scratch.radius;
    search.count = scratch.count;
    const size_t needed = b.rows > 0 ? workspace_bytes(search, device, plan.search) : 0;
    searching = workspace.take<unsigned char>(static_cast<int64_t>(needed));
    bytes = workspace.used();
  }
};

template <typename T>
Status launch_prepare(const BatchEntropy<T>& b, const Scratch<T>& scratch, bool shared, cudaStream_t stream) {
  const Parts share(b.rows, b.dim);
  const int64_t blocks = b.seeds * share.parts;
  if (blocks > INT32_MAX) return {"batch_prepare_kernel", kTooManyBlocks};
  const int rows = static_cast<int>(b.rows);
  const PrepareLayout<T> layout(share.width, shared ? rows : 0, shared ? share.slots : 0);
  return status_of("batch_prepare_kernel",
                   launch_kernel(shared ? batch_prepare_kernel<T, true> : batch_prepare_kernel<T, false>,
                                 dim3(static_cast<unsigned>(blocks)), dim3(kPrepareThreads), layout.bytes, stream, b,
                                 scratch, share));
}

template <typename T>
Status launch_report(const BatchEntropy<T>& b, const Scratch<T>& scratch, cudaStream_t stream) {
  const int64_t parts = b.rows > 0 ? (b.rows + kWarp - 1) / kWarp : 1;
  if (b.seeds * parts > INT32_MAX) return {"batch_report_kernel", kTooManyBlocks};
  return status_of("batch_report_kernel",
                   launch_kernel(batch_report_kernel<T>, dim3(static_cast<unsigned>(b.seeds * parts)), dim3(kWarp), 0,
                                 stream, b, scratch, static_cast<int>(parts)));
}

}  // namespace

template <typename T>
BatchPlan plan(const BatchEntropy<T>& batch, const Device& device) {
  BatchPlan plan;
  KnnProblem<T> search;
  search.batch = batch.seeds;
  search.queries = search.refs = batch.rows;
  search.dim = batch.dim;
  search.k = batch.k;
  search.self_join = true;
  if (batch.rows > 0) plan.search = choose(search, device);
  plan.rows_in_shared = batch.rows <= kRowsInShared;
  return plan;
}

template <typename T>
size_t workspace_bytes(const BatchEntropy<T>& batch, const Device& device, const BatchPlan& plan) {
  return batch.rows > kMostRows ? 0 : Prepared<T>(batch, device, plan, nullptr).bytes;
}

template <typename T>
Status launch(const BatchEntropy<T>& batch, const Device& device, void* workspace, void* stream,
              const BatchPlan& plan) {
  if (batch.rows > kMostRows) return {"batch_prepare_kernel", "a seed may have at most 16777216 rows"};
  const CaptureRelaxed relaxed;
  const auto on = static_cast<cudaStream_t>(stream);
  const Prepared<T> prepared(batch, device, plan, workspace);
  Status status = launch_prepare(batch, prepared.scratch, plan.rows_in_shared, on);
  if (status.error == nullptr && batch.rows > 0) {
    status = launch(prepared.search, device, prepared.searching, stream, plan.search);
  }
  return status.error == nullptr ? launch_report(batch, prepared.scratch, on) : status;
}

template BatchPlan plan(const BatchEntropy<float>&, const Device&);
template BatchPlan plan(const BatchEntropy<double>&, const Device&);
template size_t workspace_bytes(const BatchEntropy<float>&, const Device&, const BatchPlan&);
template size_t workspace_bytes(const BatchEntropy<double>&, const Device&, const BatchPlan&);
template Status launch(const BatchEntropy<float>&, const Device&, void*, void*, const BatchPlan&);
template Status launch(const BatchEntropy<double>&, const Device&, void*, void*, const BatchPlan&);

}  // namespace qcse::cuda

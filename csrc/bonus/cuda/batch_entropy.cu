// A batch's bonus in three steps, each of which needs all of the one before: `prepare` moves the moments, finds the
// distinct transitions and standardises them; the search is that of csrc/knn/cuda; `report` gives each row what was
// found for its transition. How many transitions there are is known on the device alone, so the search is launched for
// as many points as there are rows: those behind the last transition are NaN, which makes them nobody's neighbours.
#include "base/cuda/device.h"
#include "bonus/cuda/batch_entropy.h"
#include "bonus/cuda/moments.h"
#include "knn/digamma_table.h"

namespace qcse::cuda {
namespace {

constexpr int kPrepareWarps = kPrepareThreads / kWarp;
constexpr int kChannels = 16;    // that a block of `prepare` takes, at most; a lane for each
constexpr int kPointsAhead = 4;  // transitions of a thread whose loads are on their way at a time
constexpr int kReportThreads = 256;
constexpr int kReportWarps = kReportThreads / kWarp;
constexpr int64_t kRowsInShared = 4096;  // up to here a block's tables of the rows are in shared memory
constexpr int64_t kMostRows = 1 << 24;   // so that a warp's counts are whole numbers of 32 bits

constexpr int kEmpty = -1;  // of the table's slots

// Of one seed.
struct Totals {
  unsigned long long distinct = 0;  // transitions
  unsigned long long learnt = 0;    // rows that moved the moments
  unsigned long long sums[4] = {};  // eligible and covered rows, radii that are 0, neighbours
  unsigned long long blocks = 0;    // of `report` that have added theirs
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

// The lanes that share a row of so many columns: a power of 2, at most a warp. Returns which.
inline int lanes_for(int columns) {
  int shift = 0;
  while ((1 << shift) < columns && (1 << shift) < kWarp) ++shift;
  return shift;
}

// How the blocks of `prepare` share a seed out, and the size of their tables.
struct Parts {
  int parts, width;          // blocks of a seed; channels of each but the last, which may have fewer
  int slots;                 // a power of 2, at least twice the rows
  int row_lanes, own_lanes;  // 2^these take a row, of all channels and of the part's
  int pitch;                 // from one channel's numbers to the next one's, where they wait to be added up

  Parts(int64_t rows, int64_t dim) : slots(2) {
    const int channels = static_cast<int>(dim) + 1;
    parts = (channels + kChannels - 1) / kChannels;
    width = (channels + parts - 1) / parts;
    parts = (channels + width - 1) / width;
    while (slots < 2 * rows) slots *= 2;
    row_lanes = lanes_for(channels);
    own_lanes = lanes_for(width);
    // Whole warps of rows, and a pack of two so that eight lanes' packs lie in different banks.
    pitch = static_cast<int>(rows < kTile ? (rows + kWarp - 1) / kWarp * kWarp : kTile) + 2;
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
  size_t tile, mean, spread, warp_counts, flags, slot, table, bytes;
  size_t tile_size;

  // `rows` and `slots` are 0 where the tables are elsewhere.
  __host__ __device__ PrepareLayout(const Parts& share, int rows, int slots) {
    SharedLayout layout;
    tile_size = static_cast<size_t>(share.width) * static_cast<size_t>(share.pitch);
    tile = layout.add<double>(tile_size);
    mean = layout.add<T>(static_cast<size_t>(share.width));
    spread = layout.add<T>(static_cast<size_t>(share.width));
    warp_counts = layout.add<int>(kPrepareWarps);
    flags = layout.add<unsigned>(static_cast<size_t>(rows));
    slot = layout.add<int>(static_cast<size_t>(rows));
    table = layout.add<int>(static_cast<size_t>(slots));
    bytes = layout.bytes();
  }
};

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

// The part's channels of the transitions, standardised, one transition behind the other, and NaN behind the last.
// `rows_of`: the first row of each.
template <typename T>
__device__ __forceinline__ void make_points(const BatchEntropy<T>& b, const SeedRows<T>& rows,
                                            const Scratch<T>& scratch, int64_t seed, int distinct,
                                            const unsigned* rows_of, int own_lanes, int first, int width, const T* mean,
                                            const T* spread) {
  const Lanes lanes(own_lanes);
  if (lanes.column >= width) return;
  const int n = static_cast<int>(b.rows), channel = first + lanes.column;
  const bool state = channel < rows.dim;
  const auto numbers = rows.of(channel);
  T* const points = state ? scratch.points + seed * n * rows.dim + channel : scratch.values + seed * n;
  const T centre = mean[lanes.column], scale = spread[lanes.column], divisor = static_cast<T>(b.divisor);
#pragma unroll 1
  for (int place = lanes.row; place < n; place += kPointsAhead * lanes.rows) {
    T x[kPointsAhead];
#pragma unroll
    for (int j = 0; j < kPointsAhead; ++j) {
      const int at = place + j * lanes.rows;
      x[j] = at < distinct ? numbers.at(static_cast<int>(rows_of[at])) : T(0);
    }
#pragma unroll
    for (int j = 0; j < kPointsAhead; ++j) {
      const int at = place + j * lanes.rows;
      T point = not_a_number<T>();
      if (at < distinct) {
        point = div_rn(x[j] - centre, scale);
        if (state) point = div_rn(point, divisor);
      }
      if (at < n) points[static_cast<int64_t>(at) * numbers.stride] = point;
    }
  }
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

  const PrepareLayout<T> layout(share, kShared ? n : 0, kShared ? share.slots : 0);
  Tile tile{shared_array<double>(layout.tile, layout.tile_size), first, width, share.pitch, n < kTile ? n : kTile};
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

  // What the first warp needs of its channels is on its way while all look at the rows.
  const bool adds = thread < kWarp, live = thread < width;
  const int own = live ? thread : width - 1;
  const int64_t moments = seed * (dim + 1) + first + own;
  Channel<T> channel{};
  if (adds) channel = {b.mean[moments], b.variance[moments], b.batches[seed]};
  for (int at = thread; at < share.slots; at += kPrepareThreads) tables.table[at] = kEmpty;
  look_at_rows(rows, b.eligible + seed * n, n, share.row_lanes, tile, tables.flags);
  __syncthreads();

  // Adding up in order takes its time: one warp does it while the others enter the rows into the table. The rows pass
  // twice, tile by tile; where there is one tile, it is there already.
  const int tiles = n <= kTile ? 1 : (n + kTile - 1) / kTile;
#pragma unroll 1
  for (int step = 0; step < (b.learn ? 2 * tiles : 1); ++step) {
    const int from = step % tiles * kTile;
    if (tiles > 1 && step > 0) {
      __syncthreads();  // the tile before has been added up
      tile.rows = n - from < kTile ? n - from : kTile;
      fill_tile(rows, from, share.own_lanes, tile);
      __syncthreads();
    }
    if (adds && b.learn) {
      const double* const column = tile.column(first + own);
      if (step < tiles) {
        channel.add(column, tables.flags + from, tile.rows);
        if (step == tiles - 1) channel.of_batch = div_rn(channel.sum, static_cast<double>(channel.learnt));
      } else {
        channel.add_squares(column, tables.flags + from, tile.rows);
      }
    } else if (!adds && step == 0) {
      for (int row = thread - kWarp; row < n; row += kPrepareThreads - kWarp) {
        tables.slot[row] = (tables.flags[row] & kOut) != 0 ? -1 : enter(tables.table, share.slots, index, row);
      }
    }
  }
  if (live) {
    if (channel.learnt > 0) {
      // The report counts the batch: the blocks of the other channels read that number as well.
      channel.move(b.horizon);
      b.mean[moments] = channel.mean;
      b.variance[moments] = channel.variance;
    }
    const T root = sqrt_rn(channel.variance);
    mean[own] = channel.mean;
    spread[own] = root > T(1e-6) ? root : T(1);
  }
  __syncthreads();

  const int distinct = number_transitions(tables, warp_counts, n);
  make_points(b, rows, scratch, seed, distinct, tables.flags, share.own_lanes, first, width, mean, spread);
  if (part != 0) return;
  for (int row = thread; row < n; row += kPrepareThreads) {
    const int at = tables.slot[row];
    scratch.transition[seed * n + row] = at >= 0 ? -2 - tables.table[at] : -1;
  }
  if (thread == 0) {
    scratch.totals[seed] = {static_cast<unsigned long long>(distinct), static_cast<unsigned long long>(channel.learnt)};
  }
}

template <typename T>
__device__ __forceinline__ T share_of(unsigned long long part, unsigned long long of) {
  return static_cast<T>(div_rn(static_cast<double>(part), static_cast<double>(of > 0 ? of : 1)));
}

// A thread takes a row; blockIdx.x = seed * parts + part. The last block of a seed writes its statistics.
template <typename T>
__global__ void __launch_bounds__(kReportThreads)
    batch_report_kernel(const BatchEntropy<T> b, const Scratch<T> scratch, int parts) {
  constexpr int kCounts = 4;  // eligible, covered, zero radii, neighbours
  SharedLayout layout;
  int* const of_warps = shared_array<int>(layout.add<int>(kReportWarps * kCounts), kReportWarps * kCounts);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t seed = blockIdx.x / static_cast<unsigned>(parts);
  const int64_t row = static_cast<int64_t>(blockIdx.x % static_cast<unsigned>(parts)) * kReportThreads + thread;
  Totals& totals = scratch.totals[seed];
  const unsigned long long distinct = totals.distinct, learnt = totals.learnt;  // long before they are needed
  int counts[kCounts] = {};
  if (row < b.rows) {
    const int64_t at = seed * b.rows + row;
    counts[0] = b.eligible[at];
    const int transition = scratch.transition[at];
    const int64_t place = seed * b.rows + transition;
    const int64_t found = transition >= 0 ? scratch.count[place] : -1;
    T entropy = 0;
    if (found >= 0) {
      const T radius = scratch.radius[place];
      // The point itself lies at distance 0: strictly closer, unless the radius is 0.
      const int64_t count = found + (b.count_self && radius > 0);
      const double share = digamma_by_table(count + 1) / static_cast<double>(b.dim);
      entropy = static_cast<T>(entropy_with(share, static_cast<double>(radius), b.offset));
      counts[1] = 1;
      counts[2] = radius == 0;
      counts[3] = static_cast<int>(count);
    }
    b.entropy[at] = entropy;
    b.covered[at] = counts[1] != 0;
  }
#pragma unroll
  for (int k = 0; k < kCounts; ++k) {
    counts[k] = __reduce_add_sync(kFullWarp, counts[k]);
    if (thread % kWarp == 0) of_warps[thread / kWarp * kCounts + k] = counts[k];
  }
  __syncthreads();
  if (thread != 0) return;
  unsigned long long sums[kCounts] = {};
#pragma unroll
  for (int w = 0; w < kReportWarps; ++w) {
#pragma unroll
    for (int k = 0; k < kCounts; ++k) sums[k] += static_cast<unsigned long long>(of_warps[w * kCounts + k]);
  }
  if (parts > 1) {  // otherwise nobody else has anything to add
#pragma unroll
    for (int k = 0; k < kCounts; ++k) atomicAdd(&totals.sums[k], sums[k]);
    __threadfence();
    if (atomicAdd(&totals.blocks, 1ull) + 1 != static_cast<unsigned long long>(parts)) return;
    __threadfence();
#pragma unroll
    for (int k = 0; k < kCounts; ++k) sums[k] = totals.sums[k];
  }
  const auto [eligible, covered, zero_radii, neighbours] = sums;
  T* const statistics = b.statistics + seed;
  statistics[0] = share_of<T>(zero_radii, covered);
  statistics[b.seeds] = share_of<T>(covered, eligible);
  statistics[2 * b.seeds] = share_of<T>(neighbours, covered * distinct);
  if (learnt > 0) b.batches[seed] += T(1);
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
  const PrepareLayout<T> layout(share, shared ? rows : 0, shared ? share.slots : 0);
  return status_of("batch_prepare_kernel",
                   launch_kernel(shared ? batch_prepare_kernel<T, true> : batch_prepare_kernel<T, false>,
                                 dim3(static_cast<unsigned>(blocks)), dim3(kPrepareThreads), layout.bytes, stream, b,
                                 scratch, share));
}

template <typename T>
Status launch_report(const BatchEntropy<T>& b, const Scratch<T>& scratch, cudaStream_t stream) {
  const int64_t parts = b.rows > 0 ? (b.rows + kReportThreads - 1) / kReportThreads : 1;
  SharedLayout layout;
  layout.add<int>(kReportWarps * 4);
  if (b.seeds * parts > INT32_MAX) return {"batch_report_kernel", kTooManyBlocks};
  return status_of("batch_report_kernel",
                   launch_kernel(batch_report_kernel<T>, dim3(static_cast<unsigned>(b.seeds * parts)),
                                 dim3(kReportThreads), layout.bytes(), stream, b, scratch, static_cast<int>(parts)));
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

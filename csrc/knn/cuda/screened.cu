#include "screened.h"

#include "screen.h"
#include "smallest.h"
#include "sorted.h"
#include "variants.h"
#include "warp_queries.h"

namespace qcse::cuda {
namespace {

// The division of labour in a block: a warp owns 32 queries, a block as many warps as shared memory has room for, up to
// kMaxWarps. All of them see every candidate tile.
template <int kNumber>
struct ScreenShape {
  static constexpr Variant kVariant = kScreenedVariants[kNumber];
  static constexpr int kMaxWarps = kVariant.warps;
  static constexpr int kTile = kVariant.outer;  // candidates that a block stages at a time
  static constexpr int kSide = kVariant.inner;  // candidates that a warp compares with its queries at a time
  // Blocks of kMaxWarps that shall share a multiprocessor's registers; for most architectures the compiler can't let
  // two do so without spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
  static constexpr int kByRule = 2;
#else
  static constexpr int kByRule = 1;
#endif
  static constexpr int kBlocks = kVariant.blocks > 0 ? kVariant.blocks : kByRule;
  // Pairs that a warp keeps until it has 32 to compute: fewer than 32 from before, and what one row of its lanes' sums
  // can add, a quarter of 32 x kSide.
  static constexpr int kQueue = kWarp + kWarp * kSide / 4;
  static_assert(kTile % kSide == 0 && kSide % 8 == 0 && kSide <= 64);  // a lane's row of sums is a word of bits
};

// The references' shadows, in sorted order and whole tiles: what is no finite reference is the origin with a norm of
// +inf.
template <typename T>
struct Shadows {
  T* centre = nullptr;       // [batch, dim]
  T* scale = nullptr;        // [batch]
  unsigned* rows = nullptr;  // [batch, tiles, tile, pitch]
  float* norms = nullptr;    // [batch, tiles, tile]
  float* errors = nullptr;   // [batch, tiles], the largest of a tile
  int tile = 0;              // candidates of a tile
  int tiles = 0;             // of a batch entry
  int steps = 0;

  __device__ __forceinline__ Frame<T> frame(int64_t entry, int dim) const {
    return {centre + entry * dim, scale[entry]};
  }
};

// --- Preparation ----------------------------------------------------------------------------------------------------
constexpr int kFrameThreads = 512;

// A block for each batch entry. The centre is in each dimension the median of 32 references, evenly spread over the
// sorted order, and the scale brings their largest distance from it to between 16 and 32. Any other choice would be as
// right.
template <typename T>
__global__ void __launch_bounds__(kFrameThreads) knn_frame_kernel(SortedRefs<T> refs, int dim, Shadows<T> shadows) {
  SharedLayout layout;
  const size_t at = layout.add<T>(kFrameThreads / kWarp);
  T* const spreads = shared_array<T>(at, kFrameThreads / kWarp);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t entry = blockIdx.x;
  const int64_t finite = refs.finite[entry];
  const T* const states = refs.states + entry * refs.stride * dim;
  T spread = 0;
  for (int d = warp; d < dim; d += kFrameThreads / kWarp) {
    const T mine = finite > 0 ? states[finite * lane / kWarp * dim + d] : T(0);
    const T middle = __shfl_sync(kFullWarp, sort_warp(mine, lane), kWarp / 2);
    if (lane == 0) shadows.centre[entry * dim + d] = middle;
    spread = larger(spread, smaller(magnitude(mine - middle), Limits<T>::kMax));
  }
#pragma unroll
  for (int stride = kWarp / 2; stride > 0; stride /= 2) {
    spread = larger(spread, __shfl_xor_sync(kFullWarp, spread, stride));
  }
  if (lane == 0) spreads[warp] = spread;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 0; w < kFrameThreads / kWarp; ++w) spread = larger(spread, spreads[w]);
    constexpr int kLargest = sizeof(T) == 4 ? 120 : 1000;
    const int exponent = spread > 0 ? 4 - ilogb(spread) : 0;
    const int kept = exponent < -kLargest ? -kLargest : exponent > kLargest ? kLargest : exponent;
    shadows.scale[entry] = ldexp(T(1), kept);
  }
}

constexpr int kShadowThreads = 256;

// A block for each tile of references.
template <typename T>
__global__ void __launch_bounds__(kShadowThreads) knn_shadow_kernel(SortedRefs<T> refs, int dim, Shadows<T> shadows) {
  SharedLayout layout;
  const size_t at = layout.add<float>(shadows.tile);
  float* const errors = shared_array<float>(at, shadows.tile);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t entry = blockIdx.x / static_cast<unsigned>(shadows.tiles);
  const int tile = static_cast<int>(blockIdx.x % static_cast<unsigned>(shadows.tiles));
  const int finite = refs.finite[entry];
  const int pitch = shadow_pitch(shadows.steps);
  const Frame<T> frame = shadows.frame(entry, dim);
  for (int j = warp; j < shadows.tile; j += kShadowThreads / kWarp) {
    const int place = tile * shadows.tile + j;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * shadows.tile + j;
    unsigned* const to = shadows.rows + row * pitch;
    Shadow shadow{0, infinity<float>()};
    if (place < finite) {
      shadow =
          cast_shadow(refs.states + (entry * refs.stride + place) * dim, dim, shadows.steps, frame, 1.0f, to, lane);
    } else {
      for (int w = lane; w < pitch; w += kWarp) to[w] = 0;
    }
    if (lane == 0) {
      shadows.norms[row] = shadow.norm;
      errors[j] = shadow.error;
    }
  }
  __syncthreads();
  if (warp == 0) {
    float most = 0;
    for (int j = lane; j < shadows.tile; j += kWarp) most = larger(most, errors[j]);
#pragma unroll
    for (int stride = kWarp / 2; stride > 0; stride /= 2) most = larger(most, __shfl_xor_sync(kFullWarp, most, stride));
    if (lane == 0) shadows.errors[blockIdx.x] = most;
  }
}

// --- The search -----------------------------------------------------------------------------------------------------
template <typename Shape, typename T, int kRegisters>
struct ScreenLayout {
  size_t shadows, stages, tile_norms, flags, bytes;  // after what the warps keep of their own

  __host__ __device__ ScreenLayout(int pitch, int warps) {
    constexpr WarpLayout<Shape, T, kRegisters> kOwn;
    SharedLayout layout;
    layout.add<unsigned char>(kOwn.bytes * warps);
    shadows = layout.add<unsigned>(static_cast<size_t>(warps) * kWarp * pitch);
    stages = layout.add<unsigned>(2 * static_cast<size_t>(Shape::kTile) * pitch);
    tile_norms = layout.add<float>(2 * Shape::kTile);
    flags = layout.add<unsigned>(2 * static_cast<size_t>(warps));
    bytes = layout.bytes();
  }
};

template <typename T>
struct ScreenParameters {
  KnnProblem<T> problem;
  SortedRefs<T> refs;
  SortedSet<T> queries;
  Shadows<T> shadows;
  int tiles = 0;  // blocks a batch entry
};

// One block for each tile of queries in sorted order: blockIdx.x = batch entry * tiles + tile.
template <typename Shape, typename T, int kRegisters>
__global__ void __launch_bounds__(Shape::kMaxWarps* kWarp, Shape::kBlocks)
    knn_screened_kernel(const ScreenParameters<T> parameters) {
  constexpr int kTile = Shape::kTile;
  constexpr int kSide = Shape::kSide;
  const KnnProblem<T>& problem = parameters.problem;
  const Shadows<T>& shadows = parameters.shadows;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int warp = thread / kWarp;
  const int warps = threads / kWarp;
  const int lane = thread % kWarp;
  const int group = lane / 4;   // the lane's place in the tensor core's operands: row or column,
  const int member = lane % 4;  // and which words of it
  const int dim = static_cast<int>(problem.dim);
  const int steps = shadows.steps;
  const int pitch = shadow_pitch(steps);
  const int stage_words = kTile * pitch;

  const SortedView<T> view(problem, parameters.refs, parameters.queries, parameters.tiles, threads);
  const Frame<T> frame = shadows.frame(view.entry, dim);
  const ScreenLayout<Shape, T, kRegisters> layout(pitch, warps);
  unsigned* const shadow_rows = shared_array<unsigned>(layout.shadows, static_cast<size_t>(threads) * pitch);
  unsigned* const stages = shared_array<unsigned>(layout.stages, 2 * static_cast<size_t>(stage_words));
  float* const tile_norms = shared_array<float>(layout.tile_norms, 2 * kTile);
  unsigned* const flags = shared_array<unsigned>(layout.flags, 2 * static_cast<size_t>(warps));
  unsigned* const own_shadows = shadow_rows + warp * kWarp * pitch;

  // Tile `tile` of the references to stage `step & 1`.
  const auto stage = [&](int step, int tile) {
    const int64_t number = view.entry * shadows.tiles + tile;
    const unsigned* const from = shadows.rows + number * stage_words;
    unsigned* const to = stages + (step & 1) * stage_words;
    for (int w = 4 * thread; w < stage_words; w += 4 * threads) copy_async<16>(to + w, from + w);
    for (int j = 4 * thread; j < kTile; j += 4 * threads) {
      copy_async<16>(tile_norms + (step & 1) * kTile + j, shadows.norms + number * kTile + j);
    }
    copies_commit();
  };

  const WarpQueries<Shape, T, kRegisters> mine(view, warp, lane, frame.scale);
  mine.prepare(own_shadows, dim, steps, frame);

  // The first step's words stay in registers.
  const auto load_queries = [&](int step, unsigned (&a)[2][4]) {
    const unsigned* const words = own_shadows + group * pitch + step * kStepWords + 2 * member;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto two = load_pack<2>(words + (16 * m + 8 * half) * pitch);
        a[m][half] = two.at[0];
        a[m][half + 2] = two.at[1];
      }
    }
  };
  unsigned kept[2][4];
  load_queries(0, kept);

  const T middle = view.query_value(view.live / 2);
  Visit<T, kTile> visit(view.values, view.finite, middle, lane);
  if (visit.tile >= 0) stage(0, visit.tile);
  float tile_error = visit.tile >= 0 ? shadows.errors[view.entry * shadows.tiles + visit.tile] : 0.0f;
  unsigned told = kWantsLeft | kWantsRight;
  copies_wait();
  __syncthreads();

#pragma unroll 1
  for (int step = 0; visit.tile >= 0; ++step) {
    const int tile = visit.tile;
    const int next_tile = visit.next(told, middle);
    float next_error = 0;
    if (next_tile >= 0) {
      stage(step + 1, next_tile);
      next_error = shadows.errors[view.entry * shadows.tiles + next_tile];
    }
    const unsigned* const candidates = stages + (step & 1) * stage_words;
    const float* const candidate_norms = tile_norms + (step & 1) * kTile;

#pragma unroll 1
    for (int side = 0; side < kTile; side += kSide) {
      // sum[m][j][2 h + c]: query 16 m + 8 h + group, candidate side + 8 j + 2 member + c.
      float sum[2][kSide / 8][4];
#pragma unroll
      for (int j = 0; j < kSide / 8; ++j) {
        const auto two = load_pack<2>(candidate_norms + side + 8 * j + 2 * member);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          sum[m][j][0] = sum[m][j][2] = two.at[0];
          sum[m][j][1] = sum[m][j][3] = two.at[1];
        }
      }
      const auto multiply = [&](int at, const unsigned (&a)[2][4]) {
#pragma unroll
        for (int j = 0; j < kSide / 8; ++j) {
          const auto two = load_pack<2>(candidates + (side + 8 * j + group) * pitch + at * kStepWords + 2 * member);
          const unsigned b[2] = {two.at[0], two.at[1]};
#pragma unroll
          for (int m = 0; m < 2; ++m) multiply_halves(sum[m][j], a[m], b);
        }
      };
      multiply(0, kept);
#pragma unroll 1
      for (int at = 1; at < steps; ++at) {
        unsigned a[2][4];
        load_queries(at, a);
        multiply(at, a);
      }

      // Which pairs are left? A lane looks at the smallest sum of each of its rows first. Bit 2 j + c: of sum[m][j][2 h
      // + c].
      unsigned left[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int m = r / 2, h = r % 2;
        const float limit = screen_limit(mine.reach[8 * r + group], tile_error, mine.norms[8 * r + group]);
        float least = infinity<float>();
#pragma unroll
        for (int j = 0; j < kSide / 8; ++j) {
          least = smaller(least, smaller(sum[m][j][2 * h], sum[m][j][2 * h + 1]));
        }
        left[r] = 0;
        if (!__any_sync(kFullWarp, least < limit)) continue;
#pragma unroll
        for (int j = 0; j < kSide / 8; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) left[r] |= (sum[m][j][2 * h + c] < limit ? 1u : 0u) << (2 * j + c);
        }
      }
      if (!__any_sync(kFullWarp, (left[0] | left[1] | left[2] | left[3]) != 0)) continue;
      const int first_place = tile * kTile + side + 2 * member;
#pragma unroll 1
      for (int r = 0; r < 4; ++r) {
        unsigned bits = left[0];
        left[0] = left[1];  // an index would put the words into local memory
        left[1] = left[2];
        left[2] = left[3];
        const int query = 8 * r + group;
        while (bits != 0) {
          const int bit = __ffs(static_cast<int>(bits)) - 1;
          bits &= bits - 1;
          const int place = first_place + bit / 2 * 8 + bit % 2;
          // Values often decide where states do not: a look at the gap spares the queue what both rule out.
          if (magnitude(mine.values[query] - view.values[place]) < mine.bounds[query]) {
            mine.queue[atomicAdd(mine.queued, 1)] = {query, place};
          }
        }
        mine.drain(kWarp);
      }
    }

    const unsigned tells = __reduce_or_sync(kFullWarp, visit.wants(mine.values[lane], mine.bounds[lane]));
    if (lane == 0) flags[(step & 1) * warps + warp] = tells;
    copies_wait();
    __syncthreads();
    told = __reduce_or_sync(kFullWarp, lane < warps ? flags[(step & 1) * warps + lane] : 0u);
    visit.tile = next_tile;
    tile_error = next_error;
  }
  mine.drain(1);

  for (int i = 0; i < kWarp && mine.first + i < view.live; ++i) {
    view.answer(mine.first + i, mine.values[i], mine.self[i], mine.bounds[i], lane);
  }
}

// --- Host side ------------------------------------------------------------------------------------------------------
template <typename T>
Shadows<T> take_shadows(const KnnProblem<T>& p, int variant, Workspace& workspace) {
  Shadows<T> s;
  s.tile = kScreenedVariants[variant < 0 ? 0 : variant].outer;
  s.steps = screen_steps(static_cast<int>(p.dim));
  s.tiles = static_cast<int>((p.refs + s.tile - 1) / s.tile);
  const int64_t rows = p.batch * s.tiles * s.tile;
  s.centre = workspace.take<T>(p.batch * p.dim);
  s.scale = workspace.take<T>(p.batch);
  s.rows = workspace.take<unsigned>(rows * shadow_pitch(s.steps));
  s.norms = workspace.take<float>(rows);
  s.errors = workspace.take<float>(p.batch * s.tiles);
  return s;
}

// Warps of a block: the most whose shared memory fits, or 0.
template <typename Shape, typename T, int kRegisters>
int warps_for(const KnnProblem<T>& p, const Device& device, size_t* bytes) {
  const int pitch = shadow_pitch(screen_steps(static_cast<int>(p.dim)));
  for (int warps = Shape::kMaxWarps; warps > 0; warps /= 2) {
    *bytes = ScreenLayout<Shape, T, kRegisters>(pitch, warps).bytes;
    if (*bytes <= device.shared_bytes_per_block) return warps;
  }
  return 0;
}

template <typename Shape, typename T, int kRegisters>
Status search(ScreenParameters<T> parameters, const Device& device, cudaStream_t stream) {
  const KnnProblem<T>& p = parameters.problem;
  size_t bytes = 0;
  const int warps = warps_for<Shape, T, kRegisters>(p, device, &bytes);
  if (warps == 0)
    return {"knn_screened_kernel", "a block of this device has too little shared memory for so many dimensions"};
  parameters.tiles = static_cast<int>((p.queries + warps * kWarp - 1) / (warps * kWarp));
  const int64_t blocks = p.batch * parameters.tiles;
  if (blocks > INT32_MAX) return {"knn_screened_kernel", kTooManyBlocks};
  return status_of("knn_screened_kernel",
                   launch_kernel(knn_screened_kernel<Shape, T, kRegisters>, dim3(static_cast<unsigned>(blocks)),
                                 dim3(static_cast<unsigned>(warps * kWarp)), bytes, stream, parameters));
}

template <typename T, int kRegisters>
inline constexpr int kScreens = sizeof(T) == 4 && kRegisters == 1 ? kScreened : kRuledScreened;

template <typename T, int kRegisters>
Status search_variant(int number, const ScreenParameters<T>& parameters, const Device& device, cudaStream_t stream) {
  Status status{"launch", kNoSuchVariant};
  with_variant<kScreens<T, kRegisters>>(number < 0 ? 0 : number, [&]<int kNumber>() {
    status = search<ScreenShape<kNumber>, T, kRegisters>(parameters, device, stream);
  });
  return status;
}

template <typename T>
Status cast_shadows(const ScreenParameters<T>& parameters, cudaStream_t stream) {
  const KnnProblem<T>& p = parameters.problem;
  const int dim = static_cast<int>(p.dim);
  SharedLayout spreads, errors;
  spreads.add<T>(kFrameThreads / kWarp);
  errors.add<float>(parameters.shadows.tile);
  const Status status = status_of(
      "knn_frame_kernel", launch_kernel(knn_frame_kernel<T>, dim3(static_cast<unsigned>(p.batch)), dim3(kFrameThreads),
                                        spreads.bytes(), stream, parameters.refs, dim, parameters.shadows));
  if (status.error != nullptr) return status;
  const int64_t blocks = p.batch * parameters.shadows.tiles;
  if (blocks > INT32_MAX) return {"knn_shadow_kernel", kTooManyBlocks};
  return status_of("knn_shadow_kernel",
                   launch_kernel(knn_shadow_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kShadowThreads),
                                 errors.bytes(), stream, parameters.refs, dim, parameters.shadows));
}

template <typename T, int kRegisters>
int variant_warps(int number, const KnnProblem<T>& p, const Device& device) {
  int warps = 0;
  size_t bytes = 0;
  with_variant<kScreens<T, kRegisters>>(number < 0 ? 0 : number, [&]<int kNumber>() {
    warps = warps_for<ScreenShape<kNumber>, T, kRegisters>(p, device, &bytes);
  });
  return warps;
}

template <typename T>
int warps_of(int number, const KnnProblem<T>& p, const Device& device) {
  return p.k <= kWarp ? variant_warps<T, 1>(number, p, device) : variant_warps<T, 4>(number, p, device);
}

}  // namespace

template <typename T>
bool screened_fits(const KnnProblem<T>& p, const Device& device, int variant) {
  return warps_of(variant, p, device) > 0;
}

template <typename T>
bool screen_suits(const KnnProblem<T>& p, const Device& device) {
  const int warps = warps_of(-1, p, device);
  // A step costs about as much as a few dimensions of exact differences; and a grid that leaves more than a quarter of
  // the machine idle is better cut into the large kernel's smaller pieces.
  const int64_t blocks = warps == 0 ? 0 : p.batch * ((p.queries + warps * kWarp - 1) / (warps * kWarp));
  return p.dim >= 8 && 4 * blocks >= 3 * device.multiprocessors;
}

template <typename T>
size_t screened_workspace_bytes(const KnnProblem<T>& problem, int variant) {
  Workspace workspace(nullptr);
  static_cast<void>(SortedProblem<T>(problem, workspace));
  take_shadows(problem, variant, workspace);
  return workspace.used();
}

template <typename T>
Status launch_screened(const KnnProblem<T>& problem, const Device& device, void* workspace, cudaStream_t stream,
                       int variant) {
  Workspace pieces(workspace);
  const SortedProblem<T> sorted(problem, pieces);
  const ScreenParameters<T> parameters{problem, sorted.refs, sorted.queries, take_shadows(problem, variant, pieces)};
  Status status = sorted.sort(stream);
  if (status.error == nullptr) status = cast_shadows(parameters, stream);
  if (status.error != nullptr) return status;
  return problem.k <= kWarp ? search_variant<T, 1>(variant, parameters, device, stream)
                            : search_variant<T, 4>(variant, parameters, device, stream);
}

template bool screened_fits(const KnnProblem<float>&, const Device&, int);
template bool screened_fits(const KnnProblem<double>&, const Device&, int);
template bool screen_suits(const KnnProblem<float>&, const Device&);
template bool screen_suits(const KnnProblem<double>&, const Device&);
template size_t screened_workspace_bytes(const KnnProblem<float>&, int);
template size_t screened_workspace_bytes(const KnnProblem<double>&, int);
template Status launch_screened(const KnnProblem<float>&, const Device&, void*, cudaStream_t, int);
template Status launch_screened(const KnnProblem<double>&, const Device&, void*, cudaStream_t, int);

}  // namespace qcse::cuda

#include "screened.h"

#include "ring.h"
#include "screen.h"
#include "smallest.h"
#include "sorted.h"
#include "variants.h"
#include "warp_queries.h"

namespace qcse::cuda {
namespace {

// The compute capability that this code is compiled for, 0 on the host.
#if defined(__CUDA_ARCH__)
constexpr int kCompiledFor = __CUDA_ARCH__ / 10;
#else
constexpr int kCompiledFor = 0;
#endif

// The division of labour in a block: a warp owns 32 queries, a block as many warps as shared memory has room for, up to
// kMaxWarps. All of them see every candidate tile. kSteps: of the product, where the queries' operands stay in
// registers; 0 for any number of them, with the operands in shared memory.
template <int kNumber, int kSteps_>
struct ScreenShape {
  static constexpr Variant kVariant = kScreenedVariants[kNumber];
  static constexpr int kMaxWarps = kVariant.warps;
  static constexpr int kTile = kVariant.outer;  // candidates of a tile
  static constexpr int kSide = kVariant.inner;  // candidates that a warp compares with its queries at a time
  static constexpr int kSteps = kSteps_;
  // Tiles that are staged at a time: as many as a warp may be ahead of the slowest, and one more.
  // More than six keep hardly any more warps from waiting, and take what is the cache's for exact distances.
  static constexpr int kMostStages = 6;
  static constexpr int kFewestStages = 2;
  static_assert(kTile % kSide == 0 && kSide % kFragmentRows == 0);
  static_assert(kSide <= 64);  // a lane's sums for two rows of queries are the bits of a word
};

// Blocks of kMaxWarps that shall share a multiprocessor. By rule, two where its shared memory has room for two and the
// compiler for their registers without spills.
template <typename Shape, int kRegisters>
constexpr int blocks_on(int capability) {
  if (Shape::kVariant.blocks > 0) return Shape::kVariant.blocks;
  return Shape::kSteps > 0 && kRegisters == 1 && (capability == 80 || capability == 90) ? 2 : 1;
}

// A kernel for each number of steps up to this, where T and k are those of most calls; for the others the general one.
template <typename T>
inline constexpr int kOwnSteps = sizeof(T) == 4 ? 2 : 0;

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

// A block for each tile of references; a warp casts the shadows of 16 at a time.
template <typename T>
__global__ void __launch_bounds__(kShadowThreads) knn_shadow_kernel(SortedRefs<T> refs, int dim, Shadows<T> shadows) {
  SharedLayout layout;
  const size_t at = layout.add<float>(kShadowThreads / kWarp);
  float* const errors = shared_array<float>(at, kShadowThreads / kWarp);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int group = lane / 4;
  const int member = lane % 4;
  const int64_t entry = blockIdx.x / static_cast<unsigned>(shadows.tiles);
  const int tile = static_cast<int>(blockIdx.x % static_cast<unsigned>(shadows.tiles));
  const int finite = refs.finite[entry];
  const int steps = shadows.steps;
  const int packs = shadows.tile / kFragmentRows;
  const Frame<T> frame = shadows.frame(entry, dim);
  const T* const states = refs.states + entry * refs.stride * dim;
  unsigned* const words = shadows.words + static_cast<int64_t>(blockIdx.x) * shadow_words(shadows.tile, steps);
  float* const norms = shadows.norms + static_cast<int64_t>(blockIdx.x) * norm_words(shadows.tile);
  float most = 0;
  for (int pack = warp; pack < packs; pack += kShadowThreads / kWarp) {
    const auto caster = [&](int half) {
      const int place = tile * shadows.tile + pack * kFragmentRows + 8 * half + group;
      return ShadowCaster<T>{place < finite ? states + static_cast<int64_t>(place) * dim : nullptr, dim, frame, 1.0f};
    };
    ShadowCaster<T> low = caster(0);
    ShadowCaster<T> high = caster(1);
    for (int step = 0; step < steps; ++step) {
      const int w = 8 * step + member;
      store_pack(words + ((step * packs + pack) * kWarp + lane) * 4,
                 Pack<unsigned, 4>{low.word(w), low.word(w + 4), high.word(w), high.word(w + 4)});
    }
    const Shadow cast[2] = {low.shadow(steps), high.shadow(steps)};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (member < 2) {
        norms[(2 * pack + half) * 16 + group / 2 * 4 + group % 2 + 2 * member] = cast[half].norm;
      }
      most = larger(most, cast[half].error);
    }
  }
#pragma unroll
  for (int stride = kWarp / 2; stride > 0; stride /= 2) most = larger(most, __shfl_xor_sync(kFullWarp, most, stride));
  if (lane == 0) errors[warp] = most;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 0; w < kShadowThreads / kWarp; ++w) most = larger(most, errors[w]);
    shadows.errors[blockIdx.x] = most;
  }
}

// --- The search -----------------------------------------------------------------------------------------------------
template <typename T>
struct ScreenParameters {
  KnnProblem<T> problem;
  SortedRefs<T> refs;
  SortedSet<T> queries;
  Shadows<T> shadows;
  ScreenLayout layout{};
  int tiles = 0;   // blocks a batch entry
  int stages = 0;  // tiles that a block stages at a time
};

// One block for each tile of queries in sorted order: blockIdx.x = batch entry * tiles + tile.
template <typename Shape, typename T, int kRegisters>
__global__ void __launch_bounds__(Shape::kMaxWarps* kWarp, blocks_on<Shape, kRegisters>(kCompiledFor))
    knn_screened_kernel(const ScreenParameters<T> parameters) {
  constexpr int kTile = Shape::kTile;
  constexpr int kSide = Shape::kSide;
  constexpr int kPacks = kTile / kFragmentRows;
  const KnnProblem<T>& problem = parameters.problem;
  const Shadows<T>& shadows = parameters.shadows;
  const int threads = static_cast<int>(blockDim.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = threads / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int group = lane / 4;   // the lane's place in the tensor core's operands: row or column,
  const int member = lane % 4;  // and which words of it
  const int dim = static_cast<int>(problem.dim);
  const int steps = Shape::kSteps > 0 ? Shape::kSteps : shadows.steps;

  const SortedView<T> view(problem, parameters.refs, parameters.queries, parameters.tiles, threads);
  const Frame<T> frame = shadows.frame(view.entry, dim);
  const ScreenLayout& layout = parameters.layout;
  const T middle = view.query_value(view.live / 2);
  const Visit<T, kTile> home(view.values, view.finite, middle, lane);
  Ring<Shape, T> ring(layout, shadows, view.entry, view.finite, parameters.stages, warps, lane);
  ring.begin(home, middle, warp);

  // The queries' operands, -2 times their shadows: of all steps in registers, or in shared memory.
  constexpr int kKept = Shape::kSteps > 0 ? Shape::kSteps : 1;
  unsigned kept[kKept][2][4] = {};
  unsigned* const operands =
      shared_array<unsigned>(layout.operands, static_cast<size_t>(warps) * layout.operand_words) +
      warp * layout.operand_words + 4 * lane;
  WarpQueries<T, kRegisters> mine(view, layout.own * warp, warp, lane);
  mine.prepare(dim, steps, frame, [&](int step, int m, const Pack<unsigned, 4>& pack) {
    if constexpr (Shape::kSteps > 0) {
#pragma unroll
      for (int own = 0; own < kKept; ++own) {
#pragma unroll
        for (int w = 0; w < 4; ++w) kept[own][m][w] = own == step ? pack.at[w] : kept[own][m][w];
      }
    } else {
      store_pack(operands + (2 * step + m) * kFragmentWords, pack);
    }
  });
  if (home.tile >= 0) mine.fill(home.tile * kTile, kTile);  // meanwhile the tiles of the first turns arrive

#pragma unroll 1
  for (;;) {
    const auto& turn = ring.wait();
    const int tile = turn.visit.tile;
    if (tile < 0) break;
    if (!mine.begin_tile(turn.error, turn.least, turn.most)) {
      mine.fill(tile * kTile, kTile);
      ring.leave(mine.values[lane], mine.bounds[lane]);
      continue;
    }
    const unsigned* const candidates = ring.words + ring.at * ring.stage_words + 4 * lane;
    const float* const candidate_norms = ring.norms + ring.at * norm_words(kTile) + 4 * member;

#pragma unroll 1
    for (int side = 0; side < kTile; side += kSide) {
      // sum[m][j][2 h + c]: query 16 m + 8 h + group, candidate side + 8 j + 2 member + c.
      float sum[2][kSide / 8][4];
#pragma unroll
      for (int j = 0; j < kSide / 8; ++j) {
        const auto four = load_pack<4>(candidate_norms + (side / 8 + j) * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[m][j][i] = four.at[i];
        }
      }
      const auto multiply = [&](int step, const unsigned (&a)[2][4]) {
#pragma unroll
        for (int pair = 0; pair < kSide / kFragmentRows; ++pair) {
          const auto four = load_pack<4>(candidates + (step * kPacks + side / kFragmentRows + pair) * kFragmentWords);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const unsigned b[2] = {four.at[2 * half], four.at[2 * half + 1]};
#pragma unroll
            for (int m = 0; m < 2; ++m) multiply_halves(sum[m][2 * pair + half], a[m], b);
          }
        }
      };
      if constexpr (Shape::kSteps > 0) {
#pragma unroll
        for (int step = 0; step < Shape::kSteps; ++step) multiply(step, kept[step]);
      } else {
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          unsigned a[2][4];
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            const auto four = load_pack<4>(operands + (2 * step + m) * kFragmentWords);
#pragma unroll
            for (int w = 0; w < 4; ++w) a[m][w] = four.at[w];
          }
          multiply(step, a);
        }
      }

      // Which pairs are left? A lane looks at the smallest sum of each of its rows first.
      bool any = false;
      float limit[4], least[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        limit[r] = mine.limits[8 * r + group];
        least[r] = smaller(sum[r / 2][0][2 * (r % 2)], sum[r / 2][0][2 * (r % 2) + 1]);
#pragma unroll
        for (int j = 1; j < kSide / 8; ++j) {
          least[r] = smaller(least[r], smaller(sum[r / 2][j][2 * (r % 2)], sum[r / 2][j][2 * (r % 2) + 1]));
        }
        any |= least[r] < limit[r];
      }
      if (!__any_sync(kFullWarp, any)) continue;
      // Bit 16 r + 2 j + c: of query 8 r + group and candidate side + 8 j + 2 member + c.
      unsigned left[2] = {0, 0};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (!(least[r] < limit[r])) continue;
#pragma unroll
        for (int j = 0; j < kSide / 8; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            left[r / 2] |= sum[r / 2][j][2 * (r % 2) + c] < limit[r] ? 1u << (16 * (r % 2) + 2 * j + c) : 0u;
          }
        }
      }
#pragma unroll 1
      while (__any_sync(kFullWarp, (left[0] | left[1]) != 0)) {
        const bool low = left[0] != 0;
        const unsigned bits = low ? left[0] : left[1];
        const unsigned bit = bits != 0 ? __ffs(static_cast<int>(bits)) - 1 : 0;
        const unsigned column = bit % 16;
        const unsigned row = (low ? 0 : 16) + bit / 16 * 8 + group;
        const unsigned place = tile * kTile + side + 2 * member + column / 2 * 8 + column % 2;
        mine.offer(bits != 0, static_cast<int>(row), static_cast<int>(place));
        left[0] = low ? bits & (bits - 1) : 0;
        left[1] = low ? left[1] : bits & (bits - 1);
      }
    }
    ring.leave(mine.values[lane], mine.bounds[lane]);
  }
  mine.compute(mine.queued);

  const int own = mine.first + lane;
  view.answer_alone(own, mine.values[lane], mine.self[lane], mine.bounds[lane]);
}

// --- Host side ------------------------------------------------------------------------------------------------------
template <typename T>
Shadows<T> take_shadows(const KnnProblem<T>& p, int variant, Workspace& workspace) {
  Shadows<T> s;
  s.tile = kScreenedVariants[variant < 0 ? 0 : variant].outer;
  s.steps = screen_steps(static_cast<int>(p.dim));
  s.tiles = static_cast<int>((p.refs + s.tile - 1) / s.tile);
  s.centre = workspace.take<T>(p.batch * p.dim);
  s.scale = workspace.take<T>(p.batch);
  s.words = workspace.take<unsigned>(p.batch * s.tiles * shadow_words(s.tile, s.steps));
  s.norms = workspace.take<float>(p.batch * s.tiles * norm_words(s.tile));
  s.errors = workspace.take<float>(p.batch * s.tiles);
  return s;
}

// What a block gets: the most warps whose shared memory fits, then the most stages with which as many blocks as shall
// share a multiprocessor find room there. Where they do not even with the fewest, the block has it to itself.
template <typename Shape, typename T, int kRegisters>
ScreenDivision divide(const KnnProblem<T>& p, const Device& device) {
  const int steps = screen_steps(static_cast<int>(p.dim));
  const int blocks = blocks_on<Shape, kRegisters>(device.capability);
  for (int warps = Shape::kMaxWarps; warps > 0; warps /= 2) {
    for (const int sharing : {blocks, 1}) {
      for (int stages = Shape::kMostStages; stages >= Shape::kFewestStages; --stages) {
        const size_t bytes = screen_layout<Shape, T>(static_cast<int>(p.k), steps, warps, stages).bytes;
        if (sharing * (bytes + kOfSystem) <= device.shared_bytes_per_block + kOfSystem) {
          return {warps, stages, sharing, bytes};
        }
      }
    }
  }
  return {};
}

template <typename Shape, typename T, int kRegisters>
Status search(ScreenParameters<T> parameters, const Device& device, cudaStream_t stream) {
  const KnnProblem<T>& p = parameters.problem;
  const ScreenDivision division = divide<Shape, T, kRegisters>(p, device);
  const int queries = division.warps * kWarp;
  if (queries == 0)
    return {"knn_screened_kernel", "a block of this device has too little shared memory for so many dimensions"};
  parameters.tiles = static_cast<int>((p.queries + queries - 1) / queries);
  parameters.stages = division.stages;
  parameters.layout =
      screen_layout<Shape, T>(static_cast<int>(p.k), parameters.shadows.steps, division.warps, parameters.stages);
  const int64_t blocks = p.batch * parameters.tiles;
  if (blocks > INT32_MAX) return {"knn_screened_kernel", kTooManyBlocks};
  return status_of("knn_screened_kernel",
                   launch_kernel(knn_screened_kernel<Shape, T, kRegisters>, dim3(static_cast<unsigned>(blocks)),
                                 dim3(static_cast<unsigned>(queries)), division.bytes, stream, parameters));
}

template <typename T, int kRegisters>
inline constexpr int kScreens = sizeof(T) == 4 && kRegisters == 1 ? kScreened : kRuledScreened;

// Calls f.operator()<Shape>() for the variant of this number, -1 for the rule's, and the problem's dimensions.
template <typename T, int kRegisters, typename F>
void with_shape(int number, int64_t dim, const F& f) {
  const int steps = screen_steps(static_cast<int>(dim));
  with_variant<kScreens<T, kRegisters>>(number < 0 ? 0 : number, [&]<int kNumber>() {
    with_variant<kOwnSteps<T> + 1>(steps <= kOwnSteps<T> ? steps : 0,
                                   [&]<int kSteps>() { f.template operator()<ScreenShape<kNumber, kSteps>>(); });
  });
}

template <typename T, int kRegisters>
Status search_variant(int number, const ScreenParameters<T>& parameters, const Device& device, cudaStream_t stream) {
  Status status{"launch", kNoSuchVariant};
  with_shape<T, kRegisters>(number, parameters.problem.dim, [&]<typename Shape>() {
    status = search<Shape, T, kRegisters>(parameters, device, stream);
  });
  return status;
}

template <typename T>
Status cast_shadows(const ScreenParameters<T>& parameters, cudaStream_t stream) {
  const KnnProblem<T>& p = parameters.problem;
  const int dim = static_cast<int>(p.dim);
  SharedLayout spreads, errors;
  spreads.add<T>(kFrameThreads / kWarp);
  errors.add<float>(kShadowThreads / kWarp);
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
ScreenDivision division_of(int number, const KnnProblem<T>& p, const Device& device) {
  ScreenDivision division;
  with_shape<T, kRegisters>(number, p.dim,
                            [&]<typename Shape>() { division = divide<Shape, T, kRegisters>(p, device); });
  return division;
}

}  // namespace

template <typename T>
ScreenDivision screen_division(const KnnProblem<T>& p, const Device& device, int variant) {
  return p.k <= kWarp ? division_of<T, 1>(variant, p, device) : division_of<T, 4>(variant, p, device);
}

template <typename T>
bool screened_fits(const KnnProblem<T>& p, const Device& device, int variant) {
  return screen_division(p, device, variant).warps > 0;
}

template <typename T>
bool screen_suits(const KnnProblem<T>& p, const Device& device) {
  const int warps = screen_division(p, device, -1).warps;
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

template ScreenDivision screen_division(const KnnProblem<float>&, const Device&, int);
template ScreenDivision screen_division(const KnnProblem<double>&, const Device&, int);
template bool screened_fits(const KnnProblem<float>&, const Device&, int);
template bool screened_fits(const KnnProblem<double>&, const Device&, int);
template bool screen_suits(const KnnProblem<float>&, const Device&);
template bool screen_suits(const KnnProblem<double>&, const Device&);
template size_t screened_workspace_bytes(const KnnProblem<float>&, int);
template size_t screened_workspace_bytes(const KnnProblem<double>&, int);
template Status launch_screened(const KnnProblem<float>&, const Device&, void*, cudaStream_t, int);
template Status launch_screened(const KnnProblem<double>&, const Device&, void*, cudaStream_t, int);

}  // namespace qcse::cuda

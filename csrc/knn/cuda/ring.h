// The ring of staged tiles of the screened search (screened.cu): what a stage holds, and who fills it when.
#pragma once
#include "screen.h"
#include "sorted.h"
#include "warp_queries.h"

namespace qcse::cuda {

// Norms travel as the product's first sums: for each 8 candidates a pack for each of the four members of a group, the
// norms of candidates 2 t and 2 t + 1, twice.
__host__ __device__ constexpr int norm_words(int tile) { return 2 * tile; }

// The references' shadows, in sorted order and whole tiles: what is no finite reference is the origin with a norm of
// +inf.
template <typename T>
struct Shadows {
  T* centre = nullptr;        // [batch, dim]
  T* scale = nullptr;         // [batch]
  unsigned* words = nullptr;  // [batch, tiles, shadow_words(tile, steps)]
  float* norms = nullptr;     // [batch, tiles, norm_words(tile)]
  float* errors = nullptr;    // [batch, tiles], the largest of a tile
  int tile = 0;               // candidates of a tile
  int tiles = 0;              // of a batch entry
  int steps = 0;

  __device__ __forceinline__ Frame<T> frame(int64_t entry, int dim) const {
    return {centre + entry * dim, scale[entry]};
  }
};

// A turn of the visit: where it stands once it has chosen a tile.
template <typename T, int kTile>
struct Turn {
  Visit<T, kTile> visit;
  float error;    // the largest of the tile's
  T least, most;  // of its values
};

// Where a block's shared memory holds what. The host computes it once for all: the kernel has no registers for it.
struct ScreenLayout {
  unsigned own;  // bytes that a warp keeps of its own, which come first
  unsigned operands, words, norms, turns, gates, leavers, middle;
  int operand_words;  // of a warp
  size_t bytes;
};

template <typename Shape, typename T>
ScreenLayout screen_layout(int k, int steps, int warps, int stages) {
  ScreenLayout at{};
  const auto place = [](size_t offset) { return static_cast<unsigned>(offset); };
  SharedLayout layout;
  at.own = place(WarpLayout<T>(k).bytes);
  at.operand_words = Shape::kSteps > 0 ? 0 : shadow_words(kWarp, steps);
  layout.add<unsigned char>(static_cast<size_t>(at.own) * warps);
  at.operands = place(layout.add<unsigned>(static_cast<size_t>(warps) * at.operand_words));
  at.words = place(layout.add<unsigned>(static_cast<size_t>(stages) * shadow_words(Shape::kTile, steps)));
  at.norms = place(layout.add<float>(static_cast<size_t>(stages) * norm_words(Shape::kTile)));
  at.turns = place(layout.add<Turn<T, Shape::kTile>>(stages));
  at.gates = place(layout.add<Gate>(stages));
  at.leavers = place(layout.add<unsigned>(stages));
  at.middle = place(layout.add<T>(1));
  at.bytes = layout.bytes();
  return at;
}

// The ring of staged tiles. Warps go through the visit's turns each at its own pace; stage `turn % stages` has the turn
// and its tile. The last warp that leaves a turn knows that nobody reads its stage any more and that all have told what
// they want: it chooses the tile of the turn that comes `stages` later and stages that. So nobody waits for a warp that
// is slow until all turns behind it are used up.
//
// What a warp tells is judged by the visit as it stood at some turn from the one that it leaves on. That may be some
// turns before the one that is chosen, and edges only move outward and bounds only fall: it may ask for a tile that
// nobody wants any more, and never fails to ask for one that somebody wants.
template <typename Shape, typename T>
struct Ring {
  static constexpr int kTile = Shape::kTile;
  static constexpr unsigned kLeaver = 1, kLeft = 1 << 8, kRight = 1 << 16;  // what a warp adds to `leavers`

  const Shadows<T>& shadows;
  int64_t entry;
  int finite;  // references
  int stages, stage_words, warps, lane;
  unsigned* words;        // [stages][shadow_words(kTile, steps)]
  float* norms;           // [stages][norm_words(kTile)]
  Turn<T, kTile>* turns;  // [stages]
  Gate* gates;            // [stages]: the turn is there
  T* middle;              // a value among the block's queries
  unsigned* leavers;      // [stages]: how many warps have left the turn, and how many of them want which side
  int at = 0;             // the stage of the turn at hand
  unsigned round = 0;

  __device__ __forceinline__ Ring(const ScreenLayout& layout, const Shadows<T>& shadows_, int64_t entry_, int finite_,
                                  int stages_, int warps_, int lane_)
      : shadows(shadows_),
        entry(entry_),
        finite(finite_),
        stages(stages_),
        stage_words(shadow_words(kTile, shadows_.steps)),
        warps(warps_),
        lane(lane_) {
    words = shared_array<unsigned>(layout.words, static_cast<size_t>(stages) * stage_words);
    norms = shared_array<float>(layout.norms, static_cast<size_t>(stages) * norm_words(kTile));
    turns = shared_array<Turn<T, kTile>>(layout.turns, stages);
    gates = shared_array<Gate>(layout.gates, stages);
    leavers = shared_array<unsigned>(layout.leavers, stages);
    middle = shared_array<T>(layout.middle, 1);
  }

  // The tiles of the first turns, whatever is wanted; home is the visit before them. Called by the whole block.
  __device__ __forceinline__ void begin(const Visit<T, kTile>& home, T value, int warp) {
    if (threadIdx.x == 0) {
      *middle = value;
      for (int s = 0; s < stages; ++s) {
        gate_prepare(gates + s, kWarp + 1);
        leavers[s] = 0;
      }
    }
    __syncthreads();
    Visit<T, kTile> visit = home;
    for (int s = 0; s < stages; ++s) {
      if (visit.tile >= 0) visit.tile = visit.next(kWantsLeft | kWantsRight, value);
      if (s % warps == warp) publish(s, visit);
    }
  }

  // Brings the visit's tile to this stage, by one warp.
  __device__ __forceinline__ void publish(int stage, const Visit<T, kTile>& visit) {
    float error = 0;
    T least = 0, most = 0;
    if (visit.tile >= 0) {
      const int64_t number = entry * shadows.tiles + visit.tile;
      const unsigned* const from = shadows.words + number * stage_words;
      unsigned* const to = words + stage * stage_words;
      for (int w = 4 * lane; w < stage_words; w += 4 * kWarp) copy_async<16>(to + w, from + w);
      const float* const from_norms = shadows.norms + number * norm_words(kTile);
      float* const to_norms = norms + stage * norm_words(kTile);
      for (int w = 4 * lane; w < norm_words(kTile); w += 4 * kWarp) copy_async<16>(to_norms + w, from_norms + w);
      error = shadows.errors[number];
      const int end = (visit.tile + 1) * kTile;
      least = visit.values[visit.tile * kTile];
      most = visit.values[(end < finite ? end : finite) - 1];
    }
    if (lane == 0) {
      turns[stage] = {visit, error, least, most};
      gate_arrive(gates + stage);
    }
    if (visit.tile >= 0) {
      gate_arrive_after_copies(gates + stage);
    } else {
      gate_arrive(gates + stage);  // nothing is on its way when the block ends
    }
  }

  // The turn at hand, once its tile is there; without a tile the visit is over.
  __device__ __forceinline__ const Turn<T, kTile>& wait() const {
    gate_wait(gates + at, round);
    return turns[at];
  }

  // On to the next turn. value, bound: of the lane's query.
  __device__ __forceinline__ void leave(T value, T bound) {
    const int newest = at == 0 ? stages - 1 : at - 1;  // the stage of the latest turn that may be there
    const bool there = gate_passed(gates + newest, at == 0 ? round : round + 1);
    const unsigned wanted = __reduce_or_sync(kFullWarp, turns[there ? newest : at].visit.wants(value, bound));
    const unsigned told =
        kLeaver + ((wanted & kWantsLeft) != 0 ? kLeft : 0) + ((wanted & kWantsRight) != 0 ? kRight : 0);
    unsigned all = 0;
    __syncwarp();  // every lane has read the stage
    if (lane == 0) all = told + add_in_order(leavers + at, told);
    all = __shfl_sync(kFullWarp, all, 0);
    if (static_cast<int>(all % kLeft) == warps) choose(newest, all);
    if (++at == stages) {
      at = 0;
      ++round;
    }
  }

  // By the last warp that leaves the turn at hand. all: what the warps told, added up.
  __device__ __forceinline__ void choose(int newest, unsigned all) {
    __syncwarp();  // what the others told the first lane, and did before, holds for all
    Visit<T, kTile> visit = turns[newest].visit;
    const unsigned wanted =
        (all / kLeft % (kRight / kLeft) != 0 ? kWantsLeft : 0) | (all / kRight != 0 ? kWantsRight : 0);
    if (visit.tile >= 0) visit.tile = visit.next(wanted, *middle);
    if (lane == 0) leavers[at] = 0;
    publish(at, visit);
  }
};

}  // namespace qcse::cuda

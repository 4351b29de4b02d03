"""Faults to plant in the kernels between the products of networks (csrc/nets/pointwise.h)."""

from planted import Fault

PACKS = [
    ("a NaN is no number to a ReLU", "v <= T(0) ? T(0) : v", "v > T(0) ? v : T(0)"),
    ("whole vectors whatever the width", "if (width % kPack<T> != 0) return false;", ""),
    ("whole vectors although not aligned", "if (reinterpret_cast<uintptr_t>(p) % 16 != 0) return false;",
     "static_cast<void>(p);"),
]  # fmt: skip

FORWARD = [
    ("the tile's last row is lost", "const int left = rows - first;", "const int left = rows - first - 1;"),
    ("past the last row", "(left < tile_rows ? left : tile_rows) * packs", "tile_rows * packs"),
    ("the first network's bias", "const T* const bias = p.bias + net * width", "const T* const bias = p.bias"),
    ("the first network's states", "p.state + net * (rows / actions) * width", "p.state"),
    ("rows counted from the tile", "(first + row) / actions", "row / actions"),
    ("every action a state of its own", "(first + row) / actions", "(first + row)"),
    ("the state's part forgotten", "from_state.at[v] + add.at[v] :", "add.at[v] :"),
    ("another order of the sum", "value.at[v] + (kState ? from_state.at[v] + add.at[v] : add.at[v])",
     "value.at[v] + (kState ? from_state.at[v] : T(0)) + add.at[v]"),
    ("dot: rows past the end are loaded", "if (r < live) h[r] =", "h[r] ="),
    ("dot: rows past the end are used", "if (r >= live) break;", ""),
    ("dot: rows past the end are written", "if (r < live && lane == r)", "if (lane == r)"),
    ("dot: pairs of lanes are left apart", "lanes = kWarp / 2; lanes > 0", "lanes = kWarp / 2; lanes > 1"),
    ("dot: half of the warp in the mask", "__shfl_xor_sync(kFullWarp, sum[r]", "__shfl_xor_sync(0xffffu, sum[r]"),
    ("dot: kept although not wanted", "if (p.keep) store_pack", "store_pack"),
    ("dot: no ReLU", "h[r].at[v] = relu(h[r].at[v] + bias.at[v])", "h[r].at[v] = h[r].at[v] + bias.at[v]"),
    ("dot: the first network's last bias", "p.last_bias[net]", "p.last_bias[0]"),
    ("dot: lanes overlap", "column += kWarp * V", "column += kWarp"),
    ("dot: one tile for all", "first >= rows) return;", "first >= kDotRows) return;"),
]  # fmt: skip

BACKWARD = [
    ("gather: neighbours are left apart", "lanes >= Slab<T, V>::kLanes", "lanes > Slab<T, V>::kLanes"),
    ("gather: lanes of other columns are added", "lanes >= Slab<T, V>::kLanes", "lanes >= 1"),
    ("gather: every lane writes", "if (lane < Slab<T, V>::kLanes) partial", "partial"),
    ("gather: half of the warp in the mask", "__shfl_xor_sync(kFullWarp, sum[v]", "__shfl_xor_sync(0xffffu, sum[v]"),
    ("total: the last warp is lost", "w < kWarps;", "w < kWarps - 1;"),
    ("total: warps overlap", "partial[w * stride + at]", "partial[w + at]"),
    ("the mask's zero passes", "if (of_h[u].at[v] <= T(0)) of_grad", "if (of_h[u].at[v] < T(0)) of_grad"),
    ("a NaN is masked", "if (of_h[u].at[v] <= T(0)) of_grad", "if (!(of_h[u].at[v] > T(0))) of_grad"),
    ("columns beyond the width", "state < states && place.inside", "state < states"),
    ("sums beyond the width", "if (static_cast<int>(threadIdx.x) < S::kColumns && column < width)",
     "if (static_cast<int>(threadIdx.x) < S::kColumns)"),
    ("states are left out", "state += S::kRows", "state += kThreads * 2"),
    ("states are taken twice", "state += S::kRows", "state += S::kRows / 2"),
    ("states' sums of other networks", "(place.net * states + state) * width", "state * width"),
    ("states' sums one too far", "for (int v = 0; v < V; ++v) sum[v] += state_sum", "sum[0] += state_sum"),
    ("outer: a factor for each network", "place.net / p.members * p.factor_step", "place.net * p.factor_step"),
    ("outer: factors lie side by side", " * p.factor_step]", "]"),
    ("outer: no factor", "y_grad[row] * factor", "y_grad[row]"),
    ("outer: gradient of the weight from the masked", "weight_sum[v] += g[u] *", "weight_sum[v] += out.at[v] *"),
    ("outer: no mask", "of_h[u].at[v] <= T(0) ? T(0) : g[u] * weight.at[v]", "g[u] * weight.at[v]"),
    ("outer: columns beyond the width", "if (!place.inside) continue;", ""),
    ("outer: rows are taken twice", "first += kUnrolled * S::kRows", "first += S::kRows"),
    ("outer: rows past the end", "if (row >= rows) break;\n      g[u]", "g[u]"),
    ("outer: every block writes the bias", "if (thread == kWarp && place.slab == 0)", "if (thread == kWarp)"),
    ("outer: every thread of a warp writes", "if (thread % kWarp == 0) last_partial", "last_partial"),
    ("outer: the last layer's sums are mixed", "total(last_partial, 1, 0)", "total(bias_partial, 1, 0)"),
    ("outer: sums although not wanted", "if (p.bias_grad == nullptr) return;", ""),
    ("shared memory short", "GradientLayout<T>(outer).bytes,", "GradientLayout<T>(outer).bytes - 128,"),
    ("a slab too few", "(p.width + Slab<T, V>::kColumns - 1) / Slab<T, V>::kColumns", "p.width / Slab<T, V>::kColumns"),
]  # fmt: skip

HEAD = [
    ("the bound of nobody", "j > n && own < bound ? bound : own", "own"),
    ("the bound of a uniform action", "j > n && own < bound", "j >= n && own < bound"),
    ("the next action's offset", "offsets[j - 1] +", "offsets[j] +"),
    ("the data's value is always one more", "include_data ? own : -infinity<T>()", "own"),
    ("the data's gradient is always one more", "if (j > 0 || s.include_data) of_gap", "of_gap"),
    ("a bound that is not a number", "if (spoilt) sum = not_a_number<T>();", "static_cast<void>(spoilt);"),
    ("infinite shift", "magnitude(top) == infinity<T>() ? T(0) : top", "top"),
    ("an infinite value's share", "const T back = top == infinity<T>() ? top : shift", "const T back = shift"),
    ("a NaN is below no floor", " || p.floor == -infinity<T>()", ""),
    ("the floor has a gradient", "open ? weight : T(0)", "weight"),
    ("the gap goes below the floor", "difference < p.floor ? p.floor : difference", "difference"),
    ("all of the gradient on the bound", "of_gap / 2", "of_gap"),
    ("gradient below the bound", "below ? T(0) : q ==", "q =="),
    ("no gradient of the gap at the data", "2 * error * share - scale", "2 * error * share"),
    ("temperature forgotten", "p.temperature * logarithm(sum)", "logarithm(sum)"),
    ("temperature forgotten in the gradient", "(s.value(j, q) - back) / p.temperature", "(s.value(j, q) - back)"),
    ("sum of half of a team", "lanes = kTeam / 2; lanes > 0", "lanes = kTeam / 2; lanes > 1", 0),
    ("maximum of half of a team", "lanes = kTeam / 2; lanes > 0", "lanes = kTeam / 2; lanes > 1", 1),
    ("the last state again and again", "if (!live) return;", ""),
    ("past the last state", "live ? first + team : batch - 1", "first + team"),
    ("another seed's rows", "row = seed * batch + b", "row = b"),
    ("states of the first pass alone", "first += kTeams", "first += batch"),
    ("means of all alike", "thread < 3 ? 1 : thread == 3 ? n : 2 * n", "1"),
    ("statistics in another order", "(thread * p.seeds + seed) * p.members + member",
     "(seed * p.members + member) * kSums + thread"),
    ("the gap's weight is forgotten", "mean + weight * gap", "mean + gap"),
    ("another mean for the gap", "__shfl_sync(kFullWarp, mean, 1)", "__shfl_sync(kFullWarp, mean, 2)"),
    ("the last critic's loss", "loss += mean", "loss = mean"),
    ("every lane writes the loss", "if (thread == 0) p.loss", "if (warp == 0) p.loss"),
    ("weight of the states' sum", "weight * share, thread % kTeam", "weight, thread % kTeam"),
    ("every lane writes its sum", "if (thread % kWarp == 0) partial", "partial"),
    ("the last warp is lost", "w < Block<T>::kWarps;", "w < Block<T>::kWarps - 1;"),
    ("shared memory short", "HeadLayout<T>().bytes,", "HeadLayout<T>().bytes - 128,"),
]  # fmt: skip

FAULTS = [
    Fault(f"layers: {name}", file, old, new, *nth)
    for file, faults in (("packs.h", PACKS), ("forward.cu", FORWARD), ("backward.cu", BACKWARD),
                         ("conservative.cu", HEAD))
    for name, old, new, *nth in faults
]  # fmt: skip

"""Plants faults in copies of the CUDA kernels and reports which of them the emulator catches.

python tests/emulator/faults.py [--only BEGINNING ...] [--sample N] [--jobs 2] [--json FILE]

Every barrier and every wait for a copy is deleted once, and the faults of FAULTS are planted one at a time. Each copy
is compiled and runs a fixed set of problems, those of its folder (planted.py); it is caught if the emulator reports a
broken rule, an answer differs from the oracle's in a bit, or the run does not end. Exit status 1 where fewer than 90 %
are caught, a deleted barrier is not, or the kernels without a fault are accused.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faults_bonus
import faults_nets
import faults_policy
import faults_random
from planted import JUDGES, Fault, judges_of

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
OBJECTS = HERE.parent.parent / "build" / "faults"
TIME_LIMIT = 900  # seconds for the problems of one fault, or for those of all folders


FAULTS = [
    # Launching
    Fault("launch: a limit for this launch alone", "device.h", "most);", "int(shared_bytes));"),
    # The sorted lists and the selection
    Fault(
        "insert: takes the wrong neighbour", "smallest.h", "(lane + kWarp - 1) % kWarp", "(lane + kWarp - 2) % kWarp"
    ),
    Fault("insert: nothing is carried to the next register", "smallest.h", "carry = rotated;", ""),
    Fault("sort: wrong direction", "smallest.h", "((lane & size) == 0)", "((lane & size) != 0)"),
    Fault("merge: registers in the wrong order", "smallest.h", "other.at[kRegisters - 1 - r]", "other.at[r]"),
    Fault("merge of sorted keys: not reversed", "smallest.h", "__shfl_xor_sync(kFullWarp, keys, kWarp - 1)", "keys"),
    Fault("offer: half of the warp in the mask", "tile.h", "__any_sync(kFullWarp, least", "__any_sync(0xffffu, least"),
    Fault("offer: a query is its own neighbour", "tile.h", " && first + place != self[i]", ""),
    Fault("offer: one of the lane's candidates", "tile.h", "round < kC; ++round", "round < 1; ++round"),
    Fault("offer: equal sums are spent together", "tile.h", "!found && sum[i][j] == least", "sum[i][j] == least"),
    Fault("offer: sums are not spent", "tile.h", "sum[i][j] = here ? infinity<T>() : sum[i][j];", ""),
    Fault("offer: the value of another candidate", "tile.h", "place = here ? j * kWarp : place", "place = j * kWarp"),
    Fault("offer: the gap in value is forgotten", "tile.h", "key = larger(root, gap)", "key = root"),
    Fault("offer: candidates without a value are taken", "tile.h", " && gap < bound[i]", ""),
    Fault(
        "offer: bound one rank too low",
        "tile.h",
        "lower_bound_to(i, list[i].rank(k - 1))",
        "lower_bound_to(i, list[i].rank(k > 1 ? k - 2 : 0))",
    ),
    Fault("bound: squares that vanish", "tile.h", "larger(bound * bound, Limits<T>::kMinNormal)", "bound * bound"),
    Fault(
        "exchange: share rounded down",
        "tile.h",
        "(k + Shape::kSplits - 1) / Shape::kSplits",
        "(k < Shape::kSplits ? 1 : k / Shape::kSplits)",
    ),
    Fault(
        "exchange: the smallest of the bounds", "tile.h", "together = larger(together", "together = smaller(together"
    ),
    Fault(
        "splits: one of them is left out", "tile.h", "for (int s = 0; s < half; ++s)", "for (int s = 1; s < half; ++s)"
    ),
    Fault(
        "splits: the list of another query",
        "tile.h",
        "(group * Shape::kSplits * kQ + i) *",
        "(group * Shape::kSplits * kQ) *",
    ),
    Fault("not finite: no row is looked at", "tile.h", "is_finite(least) ? 0u : 1u << j", "0u"),
    Fault("not finite: rows beyond the end", "tile.h", "!= 0 && row < exist", "!= 0"),
    Fault("staging: the tail is not cleared", "tile.h", "*to = 0;", ""),
    Fault("staging: one row too many", "tile.h", "if (row < rows) {", "if (row <= rows) {"),
    Fault("staging: vectors although not aligned", "tile.h", " && reinterpret_cast<uintptr_t>(tile) % 16 == 0", ""),
    Fault("accumulate: pitch forgotten", "tile.h", "(j * kWarp + lane) * pitch", "(j * kWarp + lane) * depth"),
    # The small kernel
    Fault("small: one value too many", "small.cu", "if (j < refs) {", "if (j <= refs) {"),
    Fault("small: shared memory short", "small.cu", "shared_bytes(p), stream", "shared_bytes(p) - 128, stream"),
    Fault("small: every chunk as deep as the first", "small.cu", "complete ? dim - chunk * depth : depth", "depth"),
    Fault(
        "small: reads the stage that is being filled",
        "small.cu",
        "search.accumulate(stages + (step & 1)",
        "search.accumulate(stages + (step + 1 & 1)",
    ),
    Fault(
        "small: rows that are not finite are counted",
        "small.cu",
        "if (!candidate) values[j] = not_a_number<T>();",
        "",
    ),
    Fault(
        "small: a row's own place counts",
        "small.cu",
        "counts[thread] - (self_counts && magnitude(value - values[own]) < answer)",
        "counts[thread]",
    ),
    Fault(
        "small: a query that is not finite is answered",
        "small.cu",
        "bad ? not_a_number<T>() : value",
        "value",
    ),
    Fault("small: candidates without an atomic", "small.cu", "atomicAdd(candidates, finite)", "*candidates += finite"),
    Fault("small: the share of another count", "small.cu", "shares[count]", "shares[count > 0 ? count - 1 : 0]"),
    Fault("small: too few shares", "small.cu", "static_cast<size_t>(refs) + 1 : 0", "static_cast<size_t>(refs) : 0"),
    Fault("digamma: the series from 1 on", "digamma_table.h", "n <= kDigammas ? kDigamma[n - 1] : ", ""),
    Fault(
        "small: counts without an atomic",
        "small.cu",
        "atomicAdd(&counts[counted + i], sum)",
        "counts[counted + i] += sum",
    ),
    Fault(
        "not finite: bits of the wrong word",
        "tile.h",
        "if (lane == 0) words[j] = word",
        "if (lane == 0) words[0] = word",
    ),
    Fault("small: too few candidates go unnoticed", "small.cu", " && *candidates - self_counts >= k", ""),
    Fault(
        "small: slots of the exchange do not take turns",
        "small.cu",
        "group_bounds < bounds + kQueries * Shape::kSplits ? kQueries * Shape::kSplits : 0",
        "0",
    ),
    # The large kernel
    Fault("sorted: stops a side too early", "sorted.h", "value - left_edge < bound", "value - left_edge < bound / 2"),
    Fault("sorted: edge of the wrong end", "sorted.h", "values[left * kTile + kTile - 1]", "values[left * kTile]", 0),
    Fault(
        "large: tile left while somebody is alive",
        "large.cu",
        "alive || leaves ? kAlive : 0",
        "leaves ? kAlive : 0",
    ),
    Fault(
        "large: flags in one place",
        "large.cu",
        "flags[(step & 1) * Shape::kWarps + warp] = tells",
        "flags[warp] = tells",
    ),
    Fault(
        "large: every chunk as deep as the first", "large.cu", "chunk == chunks - 1 ? dim - chunk * depth", "false ? 0"
    ),
    Fault("large: one value too many", "large.cu", "if (j < rows) {", "if (j <= rows) {"),
    Fault(
        "large: half of a stage",
        "large.cu",
        "e < stage_size; e += Shape::kThreads * kVector",
        "e < stage_size / 2; e += Shape::kThreads * kVector",
    ),
    Fault("stages: one dimension too many", "sorted.cu", "first + d < dim ?", "first + d <= dim ?"),
    Fault("stages: chunks in one place", "sorted.cu", "    to += kStageRows * pitch;\n", ""),
    Fault(
        "stages: the rest of a tile is not cleared",
        "sorted.cu",
        "for (int first = 0; first < dim; first += refs.depth)",
        "for (int first = exists ? 0 : dim; first < dim; first += refs.depth)",
    ),
    Fault(
        "stages: rows that do not exist are read",
        "sorted.cu",
        "const bool exists = place < refs.set.count",
        "const bool exists = place <= refs.set.count",
    ),
    Fault(
        "sort: the entries are not told apart",
        "sorted.cu",
        "rows, joint_bits<T>(p.batch), stream",
        "rows, kValueBits<T>, stream",
    ),
    Fault("sort: one bit too few", "sorted.cu", "while (((batch - 1)", "while (((batch - 1) / 2"),
    Fault("sort: negative values upside down", "sort.h", "(bits & sign) != 0 ? ~bits : bits | sign", "bits ^ sign"),
    Fault("sort: negative values come back wrong", "sort.h", "bits & ~sign : ~bits", "bits & ~sign : bits"),
    # Blocks that share queries
    Fault("shared: the same tiles for all blocks", "large.cu", "static_cast<int>(blockIdx.y));", "0);"),
    Fault("shared: steps of one tile", "sorted.h", "left = tile - stride;", "left = tile - 1;"),
    Fault(
        "shared: tiles beyond home are lost",
        "sorted.h",
        "if (tile < 0) tile = turn < tiles ? turn : -1;",
        "if (tile < 0) tile = -1;",
    ),
    Fault(
        "shared: home of another block", "sorted.h", "home - (home + stride - turn) % stride", "home - home % stride"
    ),
    Fault("shared: lists in one place", "large.cu", "(query * gridDim.y + blockIdx.y) *", "query * gridDim.y *"),
    Fault(
        "shared: one list is left out",
        "large.cu",
        "if (s + u < splits) {",
        "if (s + u < splits - 1) {",
    ),
    Fault("shared: lists of queries that do not exist", "large.cu", "} else if (own < live) {", "} else {"),
    Fault(
        "shared: too little room for the lists",
        "large.cu",
        "p.batch * p.queries * shared_by *",
        "p.queries * shared_by *",
    ),
    Fault("sorted: one finite row too few", "sorted.cu", "static_cast<int>(place) + 1", "static_cast<int>(place)"),
    Fault(
        "sorted: batch entries without their padding",
        "sorted.cu",
        "(entry * refs.stride + place) * dim",
        "(entry * refs.set.count + place) * dim",
    ),
    Fault("sorted: binary search loses a place", "sorted.h", "low += (first - 1) * step + 1;", "low += first * step;"),
    Fault("sorted: a lane's binary search loses a place", "sorted.h", "low + half + 1 : low", "low + half : low"),
    Fault(
        "sorted: counts what is at the radius", "sorted.h", "!(other - value < radius)", "!(other - value <= radius)"
    ),
    Fault(
        "sorted: answers in sorted order",
        "sorted.h",
        "problem.queries + order[i];\n      if (problem.radius",
        "problem.queries + first_query + i;\n      if (problem.radius",
    ),
    Fault(
        "sorted: own row instead of its place",
        "sorted.h",
        "place = refs.place[entry * problem.refs + own]",
        "place = static_cast<int>(own)",
    ),
    Fault(
        "large: shared memory short",
        "large.cu",
        "shared_bytes(p), stream, parameters",
        "shared_bytes(p) - 128, stream, parameters",
    ),
    Fault(
        "sorted: a row that is not finite is a self",
        "sorted.h",
        "return place < finite ? place : -1",
        "return place",
    ),
    # The screened kernel
    Fault("screen: the tensor core is taken for exact", "screen.h", "(steps + 1) * 0x1p-18f", "(steps + 1) * 0x1p-30f"),
    Fault(
        "screen: the shadow is taken for the point",
        "screen.h",
        "fma_rn(sqrt_rn(errors), 1 + 0x1p-10f, 0x1p-60f)",
        "0x1p-60f",
    ),
    Fault(
        "screen: candidates' errors forgotten",
        "screen.h",
        "const float r = reach + tile_error",
        "const float r = reach",
    ),
    Fault("screen: bounds that vanish", "screen.h", "larger(bound, Floor<T>::kValue)", "bound"),
    Fault(
        "screen: errors of one of a row's lanes", "screen.h", "errors += __shfl_xor_sync", "errors = __shfl_xor_sync"
    ),
    Fault("screen: the norm is taken for exact", "screen.h", "norms * (1 - 3 * eta)", "norms"),
    Fault("screen: queries and candidates with the same factor", "warp_queries.h", "frame, -2.0f}", "frame, 1.0f}"),
    Fault(
        "screen: operands in another order",
        "warp_queries.h",
        "low.word(w), high.word(w), low.word(w + 4), high.word(w + 4)",
        "low.word(w), low.word(w + 4), high.word(w), high.word(w + 4)",
    ),
    Fault(
        "screen: the limit of another row",
        "screened.cu",
        "limit[r] = mine.limits[8 * r + group]",
        "limit[r] = mine.limits[8 * r + member]",
    ),
    Fault("screen: columns mixed up", "screened.cu", "column / 2 * 8 + column % 2", "column / 2 * 8 + 1 - column % 2"),
    Fault("screen: rows mixed up", "screened.cu", "bit / 16 * 8 + group", "(bit / 16 ^ 1) * 8 + group"),
    Fault("screen: another tile's error", "ring.h", "error = shadows.errors[number]", "error = 0"),
    Fault(
        "screen: norms of another candidate",
        "screened.cu",
        "group / 2 * 4 + group % 2 + 2 * member",
        "group / 2 * 4 + (1 - group % 2) + 2 * member",
    ),
    Fault(
        "screen: what is no candidate has a norm",
        "screen.h",
        "if (row == nullptr) return {0, infinity<float>()};",
        "if (row == nullptr) return {0, 0};",
    ),
    Fault("screen: shadows beyond the rows", "screen.h", "row != nullptr && d < dim", "d < dim"),
    Fault(
        "screen: pairs queued in one place",
        "warp_queries.h",
        "__popc(lanes & ((1u << lane) - 1))",
        "__popc(lanes & ((1u << lane) - 2))",
    ),
    Fault("screen: queue too short", "warp_queries.h", "kQueue = 2 * kWarp", "kQueue = kWarp"),
    Fault("screen: what is queued at the end is lost", "screened.cu", "  mine.compute(mine.queued);", ""),
    Fault("screen: a query is its own neighbour", "warp_queries.h", " && pair.place != self[query]", ""),
    Fault("screen: a query is its own neighbour at home", "warp_queries.h", " && place != self[query]", ""),
    Fault(
        "screen: the home tile is screened, too",
        "ring.h",
        "if (visit.tile >= 0) visit.tile = visit.next(kWantsLeft | kWantsRight",
        "if (s > 0 && visit.tile >= 0) visit.tile = visit.next(kWantsLeft | kWantsRight",
    ),
    Fault("screen: candidates that do not exist", "warp_queries.h", "wanted = exists && root", "wanted = root"),
    Fault(
        "screen: the home tile's first rows alone",
        "warp_queries.h",
        "row < rows && first_place",
        "row < kWarp && first_place",
    ),
    Fault(
        "screen: the lanes' keys of other queries are taken",
        "warp_queries.h",
        "(lanes >> lane & 1) != 0 ? key",
        "key < infinity<T>() ? key",
    ),
    Fault(
        "screen: the limit is not renewed with the bound",
        "warp_queries.h",
        "limits[query] = limit_for(query, bound, *tile_error);",
        "limits[query] = limit_for(query, bound / 2, *tile_error);",
    ),
    Fault(
        "screen: bounds without a warp's barrier",
        "warp_queries.h",
        "__syncwarp();  // every lane has read its pair and its bound, and told whose key it has",
        "",
    ),
    Fault(
        "screen: the home tile's bounds without a warp's barrier",
        "warp_queries.h",
        "__syncwarp();  // every lane has read the bound",
        "",
    ),
    Fault(
        "screen: queue without a warp's barrier",
        "warp_queries.h",
        "__syncwarp();  // every lane has queued its pair",
        "",
    ),
    Fault(
        "lists: new bounds without a warp's barrier",
        "warp_queries.h",
        "    take_own(key);\n    __syncwarp();",
        "    take_own(key);",
    ),
    Fault(
        "lists: too few packs",
        "warp_queries.h",
        "(k + kSlots<T> - 1) / kSlots<T>",
        "(k > 4 ? k - 1 : k + 3) / kSlots<T>",
    ),
    Fault("lists: packs of other lanes", "warp_queries.h", "own += kWarp * kSlots<T>;", "own += kSlots<T>;"),
    Fault("lists: another lane's list", "warp_queries.h", "T* own = slot(lane, 0);", "T* own = slot(lane ^ 1, 0);"),
    Fault(
        "lists: the warp's slots and a lane's differ",
        "warp_queries.h",
        "(rank / kSlots<T> * kWarp + query) * kSlots<T> + rank % kSlots<T>",
        "(rank / kSlots<T> * kWarp + query) * kSlots<T> + (kSlots<T> - 1 - rank % kSlots<T>)",
    ),
    Fault("lists: the bound one rank too low", "warp_queries.h", "(view.problem.k) - 1));", "(view.problem.k) - 2));"),
    Fault("lists: the bound is not renewed", "warp_queries.h", "if (changes) renew(", "if (false) renew("),
    Fault(
        "lists: of two keys of a query one is lost",
        "warp_queries.h",
        "        from &= from - 1;\n",
        "        from = 0;\n",
    ),
    Fault("lists: keys go to their sender", "warp_queries.h", "theirs = __shfl_sync(kFullWarp, key,", "theirs = (key,"),
    Fault(
        "lists: as many keys as go on one way",
        "warp_queries.h",
        "while (__any_sync(kFullWarp, from != 0)) {",
        "if (__any_sync(kFullWarp, from != 0)) {",
    ),
    Fault(
        "lists: a lane without keys takes some",
        "warp_queries.h",
        "keys[i] = from != 0 ? theirs",
        "keys[i] = true ? theirs",
    ),
    Fault(
        "lists: senders are told again", "warp_queries.h", "    senders[lane] = 0;\n    const bool", "    const bool"
    ),
    Fault(
        "lists: senders without an atomic", "warp_queries.h", "atomicOr(senders + query, 1u", "(senders[query] |= 1u"
    ),
    Fault(
        "lists: near by the tile's other end",
        "warp_queries.h",
        "near = least - value < bound && value - most < bound",
        "near = most - value < bound && value - least < bound",
    ),
    Fault(
        "lists: another tile's values", "ring.h", "least = visit.values[visit.tile * kTile]", "least = visit.right_edge"
    ),
    Fault("lists: the error of the tile before", "warp_queries.h", "if (lane == 0) *tile_error = error;", ""),
    Fault("lists: the row of another query", "warp_queries.h", "view.row(rows[query])", "view.row(rows[query ^ 1])"),
    Fault("ring: the middle is not passed on", "ring.h", "      *middle = value;\n", ""),
    Fault(
        "lists: slots beyond the last", "warp_queries.h", "lane < packs * kSlots<T>) *slot", "lane < 32 * packs) *slot"
    ),
    Fault(
        "screen: limits without a warp's barrier",
        "warp_queries.h",
        "if (lane == 0) *tile_error = error;\n    __syncwarp();",
        "if (lane == 0) *tile_error = error;",
    ),
    Fault(
        "screen: next step's words",
        "screened.cu",
        "operands + (2 * step + m) * kFragmentWords);",
        "operands + (2 * (step ^ 1) + m) * kFragmentWords);",
    ),
    # The ring of the screened kernel
    Fault("ring: a stage is used before it is there", "ring.h", "gate_wait(gates + at, round);", ""),
    Fault(
        "ring: the turn before last is waited for",
        "ring.h",
        "gate_wait(gates + at, round);",
        "gate_wait(gates + at, round + 1);",
    ),
    Fault("ring: nobody says that the turn is there", "ring.h", "gate_arrive(gates + stage);", "", 0),
    Fault(
        "ring: the tile's copies are not waited for",
        "ring.h",
        "gate_arrive_after_copies(gates + stage);",
        "gate_arrive(gates + stage);",
    ),
    Fault(
        "ring: a gate for the copies alone",
        "ring.h",
        "gate_prepare(gates + s, kWarp + 1)",
        "gate_prepare(gates + s, kWarp)",
    ),
    Fault(
        "ring: gates used before they are prepared",
        "ring.h",
        "    __syncthreads();\n    Visit<T, kTile> visit = home;",
        "    Visit<T, kTile> visit = home;",
    ),
    Fault(
        "ring: a warp leaves before its lanes have read",
        "ring.h",
        "__syncwarp();  // every lane has read the stage",
        "",
    ),
    Fault(
        "ring: the last warp's lanes go ahead of its first",
        "ring.h",
        "__syncwarp();  // what the others told",
        "// what the others told",
    ),
    Fault(
        "ring: warps leave without order",
        "ring.h",
        "add_in_order(leavers + at, told)",
        "atomicAdd(leavers + at, told)",
    ),
    Fault(
        "ring: the last but one chooses",
        "ring.h",
        "all % kLeft) == warps",
        "all % kLeft) == (warps > 1 ? warps - 1 : 1)",
    ),
    Fault("ring: the count of leavers goes on", "ring.h", "if (lane == 0) leavers[at] = 0;", ""),
    Fault("ring: wants of the left are lost", "ring.h", "(wanted & kWantsLeft) != 0 ? kLeft : 0", "0"),
    Fault("ring: wants of the right are lost", "ring.h", "all / kRight != 0 ? kWantsRight : 0", "0"),
    Fault("ring: the newest turn is read, there or not", "ring.h", "turns[there ? newest : at]", "turns[newest]"),
    Fault(
        "ring: the visit goes on from an older turn",
        "ring.h",
        "Visit<T, kTile> visit = turns[newest].visit",
        "Visit<T, kTile> visit = turns[at].visit",
    ),
    Fault(
        "ring: one stage too few",
        "screened.cu",
        "division.warps, parameters.stages)",
        "division.warps, parameters.stages - 1)",
    ),
]


def deletions() -> list[Fault]:
    """One fault for each barrier and each wait in the kernels."""
    found = []
    for path in sorted(CSRC.glob("*/cuda/*")):
        for what in ("__syncthreads();", "copies_wait();"):
            for nth in range(path.read_text().count(what)):
                line = [m.start() for m in re.finditer(re.escape(what), path.read_text())][nth]
                number = path.read_text()[:line].count("\n") + 1
                if path.name != "device.h":
                    found.append(Fault(f"deleted: {what} at {path.name}:{number}", path.name, what, "", nth))
    return found


def plant(fault: Fault, tree: Path) -> Path:
    """Returns the faulty file."""
    (path,) = [*tree.glob(f"*/cuda/{fault.file}"), *tree.glob(f"*/{fault.file}")]
    text = path.read_text()
    places = [m.start() for m in re.finditer(re.escape(fault.old), text)]
    if not places or (fault.nth is None and len(places) != 1):
        sys.exit(f"faults: {fault.name!r} must be found once in {fault.file}, found {len(places)} times: {fault.old}")
    at = places[fault.nth or 0]
    path.write_text(text[:at] + fault.new + text[at + len(fault.old) :])
    return path


def work(library: Path, judges: list[str]) -> None:
    """In a process of its own: prints how the first problem that shows the fault went wrong, or ``missed``."""
    from emulated import Emulator, EmulatorError

    emulator = Emulator(library)
    for name in judges:
        try:
            wrong = next(JUDGES[name](emulator), None)
        except EmulatorError as error:
            print(f"{error.kind}: {error}")
            return
        if wrong is not None:
            print(f"wrong answer: {wrong}")
            return
    print("missed")


def judge(fault: Fault | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "csrc"
        shutil.copytree(CSRC, tree)
        judges = judges_of(None if fault is None else plant(fault, tree))
        script = (
            "import sys; from pathlib import Path; import emulator_build, faults;"
            f"library = emulator_build.build(Path({str(tree)!r}), faults.OBJECTS, jobs=1, strict=False);"
            f"faults.work(library, {judges!r})"
        )
        try:
            done = subprocess.run(
                [sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True, timeout=TIME_LIMIT
            )
        except subprocess.TimeoutExpired:
            return "the run did not end"
        if done.returncode < 0:
            return f"the run was ended by signal {-done.returncode}"
        if done.returncode != 0:
            sys.exit(
                f"faults: {fault.name if fault else 'the kernels without a fault'} could not be judged\n{done.stderr}"
            )
        return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose name begins with one of these")
    parser.add_argument("--sample", type=int, help="so many of them, evenly spread (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time (default: 2)")
    parser.add_argument("--json", type=Path, help="write the verdicts here")
    arguments = parser.parse_args()
    others = (faults_bonus, faults_nets, faults_policy, faults_random)
    planned = [*deletions(), *FAULTS, *(fault for module in others for fault in module.FAULTS)]
    faults = [f for f in planned if f.name.startswith(tuple(arguments.only))]
    for fault in faults:  # before anything is compiled, and of all: does each still fit the source?
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(CSRC, Path(folder) / "csrc")
            plant(fault, Path(folder) / "csrc")
    if arguments.sample:
        faults = faults[:: max(1, len(faults) // arguments.sample)][: arguments.sample]
    sound = judge(None)
    print(f"without a fault: {'nothing to report' if sound == 'missed' else sound}", flush=True)
    verdicts: dict[str, str] = {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for fault, verdict in zip(faults, pool.map(judge, faults), strict=True):
            verdicts[fault.name] = verdict
            print(f"{'MISSED' if verdict == 'missed' else 'caught'}  {fault.name}: {verdict[:150]}", flush=True)
    shutil.rmtree(OBJECTS, ignore_errors=True)
    missed = [name for name, verdict in verdicts.items() if verdict == "missed"]
    print(f"{len(faults) - len(missed)} of {len(faults)} planted faults caught")
    for name in missed:
        print(f"  missed: {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"faults": len(faults), "missed": missed, "verdicts": verdicts}, indent=2))
    barrier_missed = any(name.startswith("deleted: __syncthreads") for name in missed)
    return 1 if sound != "missed" or barrier_missed or len(missed) > 0.1 * len(faults) else 0


if __name__ == "__main__":
    sys.exit(main())

// Threads that the caller lends.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

namespace qcse::cpu {

// A thread pool: runs body(begin, end, context) on disjoint ranges that cover [begin, end), on up to `count` threads.
struct Threads {
  void (*parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
  int64_t count;
};

// The calling thread alone.
inline void run_here(int64_t begin, int64_t end, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  body(begin, end, context);
}
inline constexpr Threads kThisThread = {run_here, 1};

// Calls body(begin, end) for ranges that the pool makes of [0, items), each of at least `grain` items: for work that is
// the same for every item, and what a range prepares once.
template <class Body>
void for_ranges(const Threads& threads, int64_t items, const Body& body, int64_t grain = 1) {
  const auto run = [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); };
  threads.parallel_for(0, items, grain, run, const_cast<Body*>(&body));
}

// Calls body(item) for every item in [0, items), each on some thread; a free thread takes the next item.
template <class Body>
void for_each(const Threads& threads, int64_t items, const Body& body) {
  const int64_t workers = std::min(threads.count, items);
  if (workers <= 1) {
    for (int64_t i = 0; i < items; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next = 0;
  for_ranges(threads, workers, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(i);
  });
}

}  // namespace qcse::cpu

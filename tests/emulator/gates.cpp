// Gates and counters, which order threads of a block without a barrier of all, and the copies that arrive at gates.
// Never instrumented.
#include <algorithm>

#include "emulator_internal.h"

namespace emulator {

namespace {

GateState& state_of(Block& b, const uint64_t* gate) {
  const auto found = b.gates.find(gate);
  if (found == b.gates.end()) fail(Kind::kUninitialised, "a gate that nobody prepared");
  const GateState& g = found->second;
  if (current != nullptr && !checker::happened_before(g.preparer, g.epoch, g.clock, *current)) {
    fail(Kind::kRace, "a gate whose preparation is not ordered before its use");
  }
  return found->second;
}

// What this thread knows, its own past included, as something that others may learn.
Past knowledge_of(const Thread& t) {
  auto all = std::make_shared<Clocks>(t.past != nullptr ? *t.past : Clocks{});
  for (unsigned l = 0; l < 32; ++l) {
    uint32_t& known = (*all)[t.warp * 32 + l];
    known = std::max(known, l == t.lane ? t.clock : t.knowledge.known[l]);
  }
  return all;
}

void learn(Thread& t, const Past& past) {
  if (past == nullptr) return;
  t.past = joined(t.past, past);
  for (unsigned l = 0; l < 32; ++l) {
    t.knowledge.known[l] = std::max(t.knowledge.known[l], (*t.past)[t.warp * 32 + l]);
  }
}

void arrive(Block& b, const uint64_t* gate, const Past& with) {
  GateState& g = state_of(b, gate);
  g.gathered = joined(g.gathered, with);
  if (--g.missing != 0) return;
  g.missing = g.arrivals;
  ++g.openings;
  g.opened = g.gathered;
  g.gathered = nullptr;
  for (Thread* t : b.threads) {
    if (t->state == Thread::State::kAtGate && t->gate == gate) make_ready(t);
  }
}

void maybe_let_others_run() {
  if (random_number() % 8 == 0) wait_as(Thread::State::kReady);
}

bool open_for(Thread& t, const uint64_t* gate, unsigned parity) {
  const GateState& g = state_of(*t.block, gate);
  if ((g.openings & 1) == parity) return false;
  learn(t, g.opened);
  return true;
}

}  // namespace

// The lanes of a warp ask for the same in a row.
Past joined(const Past& a, const Past& b) {
  if (a == nullptr || b == nullptr || a == b) return a != nullptr ? a : b;
  static Past last_a, last_b, last;
  if (a != last_a || b != last_b) {
    auto both = std::make_shared<Clocks>(*a);
    for (size_t i = 0; i < both->size(); ++i) (*both)[i] = std::max((*both)[i], (*b)[i]);
    last_a = a;
    last_b = b;
    last = both;
  }
  return last;
}

void gate_prepare(uint64_t* gate, unsigned arrivals) {
  checker::access(gate, sizeof *gate, true, false, __builtin_return_address(0));
  GateState& g = current->block->gates[gate];
  g = {};
  g.arrivals = g.missing = arrivals;
  g.preparer = current->number;
  g.epoch = current->knowledge.epoch;
  g.clock = current->clock;
}

void gate_arrive(uint64_t* gate) {
  maybe_let_others_run();
  checker::access(gate, sizeof *gate, true, true, __builtin_return_address(0));
  arrive(*current->block, gate, knowledge_of(*current));
  ++current->clock;  // what comes later did not come before this arrival
}

void gate_arrive_after_copies(uint64_t* gate) {
  Thread* const t = current;
  checker::access(gate, sizeof *gate, true, true, __builtin_return_address(0));
  state_of(*t->block, gate);
  t->block->flights.push_back({t, std::move(t->copies), gate, ++t->copies_sent});
  t->copies.clear();
}

bool gate_passed(uint64_t* gate, unsigned parity) {
  maybe_let_others_run();
  checker::access(gate, sizeof *gate, true, true, __builtin_return_address(0));
  return open_for(*current, gate, parity);
}

void gate_wait(uint64_t* gate, unsigned parity, Site site) {
  Thread* const t = current;
  maybe_let_others_run();
  checker::access(gate, sizeof *gate, true, true, __builtin_return_address(0));
  t->gate = gate;
  t->site = site;
  while (!open_for(*t, gate, parity)) wait_as(Thread::State::kAtGate);
}

unsigned add_in_order(unsigned* counter, unsigned value) {
  Thread* const t = current;
  maybe_let_others_run();
  Past& told = t->block->counters[counter];
  if (!checker::last_write_was_atomic(counter)) told = nullptr;
  checker::access(counter, sizeof *counter, true, true, __builtin_return_address(0));
  const Past mine = knowledge_of(*t);
  learn(*t, told);
  told = joined(told, mine);
  ++t->clock;
  const unsigned before = *counter;
  *counter = before + value;
  return before;
}

bool land_copies(Block& b) {
  if (b.flights.empty()) return false;
  std::swap(b.flights[random_number() % b.flights.size()], b.flights.back());
  const Flight flight = std::move(b.flights.back());
  b.flights.pop_back();
  for (const PendingCopy& c : flight.copies) {
    if (!c.landed) std::memcpy(c.shared, c.global, c.bytes);
    checker::copy_landed(*flight.thread, c, flight.number);
  }
  auto brought = std::make_shared<Clocks>();
  (*brought)[kThreads + flight.thread->number] = flight.number;
  arrive(b, flight.gate, brought);
  return true;
}

}  // namespace emulator

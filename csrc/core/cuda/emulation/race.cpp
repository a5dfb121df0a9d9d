#include "race.h"

#include <algorithm>
#include <bit>

#include "report.h"

namespace rnnkern::emulation {

// --- What is known ---

void Known::cover(uint32_t begin, uint32_t end) {
  if (when.empty()) first = begin;
  if (begin < first) {
    when.insert(when.begin(), first - begin, 0);
    first = begin;
  }
  if (end > first + when.size()) when.resize(end - first, 0);
}

void Known::add(Epoch epoch) {
  cover(epoch.who, epoch.who + 1);
  uint32_t& known = when[epoch.who - first];
  known = std::max(known, epoch.when);
}

void Known::add(const Known& other) {
  if (other.when.empty()) return;
  cover(other.first, other.first + static_cast<uint32_t>(other.when.size()));
  uint32_t* const to = when.data() + (other.first - first);
  for (size_t i = 0; i < other.when.size(); ++i) to[i] = std::max(to[i], other.when[i]);
}

bool Snapshot::knows(Epoch epoch, Space space) const {
  if (epoch.who == own.who) return epoch.when <= own.when;
  return pasts.know(epoch, space);
}

namespace {

bool knows(const ThreadClock& clock, Epoch epoch, Space space) {
  return epoch.who == clock.who || clock.pasts.know(epoch, space);
}

bool knows_all(const ThreadClock& clock, const Readers& readers, Space space) {
  if (readers.when == 0) return true;
  for (uint32_t lanes = readers.lanes; lanes != 0; lanes &= lanes - 1) {
    Epoch const epoch = {readers.first + static_cast<uint32_t>(std::countr_zero(lanes)), readers.when};
    if (!knows(clock, epoch, space)) return false;
  }
  return true;
}

void add(Past& to, const Past& from) {
  if (from == nullptr || from == to) return;
  if (to == nullptr) {
    to = from;
    return;
  }
  auto known = std::make_shared<Known>(*to);
  known->add(*from);
  to = known;
}

}  // namespace

// --- Order ---

void Races::join_all(std::span<ThreadClock* const> threads) {
  auto known = std::make_shared<Known>();
  Past shared;
  const Known* last = nullptr;
  for (const ThreadClock* thread : threads) {
    const Known* const past = thread->pasts.past.get();
    if (past != nullptr && past != last) known->add(*past);
    last = past;
    add(shared, thread->pasts.shared);
  }
  for (const ThreadClock* thread : threads) known->add({thread->who, thread->now});
  for (ThreadClock* thread : threads) {
    thread->pasts = {known, shared};
    ++thread->now;
  }
}

void Races::acquire(ThreadClock& thread, const Snapshot& from) {
  if (knows(thread, from.own, Space::global)) return;
  Past& past = thread.pasts.past;
  auto known = past == nullptr ? std::make_shared<Known>() : std::make_shared<Known>(*past);
  if (from.pasts.past != nullptr && from.pasts.past != past) known->add(*from.pasts.past);
  known->add(from.own);
  past = known;
  add(thread.pasts.shared, from.pasts.shared);
}

void Races::acquire(ThreadClock& thread, const Pasts& from) {
  add(thread.pasts.past, from.past);
  add(thread.pasts.shared, from.shared);
}

void Races::gather(PhaseClock& clock, ThreadClock& arriving, bool of_own_block) {
  Epoch const own = {arriving.who, arriving.now};
  auto const& [past, shared] = arriving.pasts;
  if (past != nullptr) clock.gathered.add(*past);
  if (shared != nullptr) clock.gathered.add(*shared);
  clock.gathered.add(own);
  if (of_own_block) {
    if (past != nullptr) clock.of_own_block.add(*past);
    clock.of_own_block.add(own);
  }
  ++arriving.now;
}

void Races::complete(PhaseClock& clock, uint32_t phase) {
  clock.gathered.add({clock.who, phase});
  clock.completed = {std::make_shared<const Known>(clock.of_own_block), std::make_shared<const Known>(clock.gathered)};
}

// --- Accesses ---

Cell* Races::global(uintptr_t address) {
  uintptr_t const page = address / kPage;
  auto& shadow = pages_[page];
  // An access that begins before the end of a page may reach 14 bytes beyond it only where it is not aligned.
  if (shadow == nullptr) shadow = std::make_unique<Shadow>(kPage);
  return shadow->at(address % kPage);
}

void Races::read(Cell* cells, uint32_t bytes, const ThreadClock& by, Space space, Kind kind, Site site) {
  uint32_t const first = by.who - by.lane;
  for (Cell* cell = cells; cell < cells + bytes / 2; ++cell) {
    if (cell->write.epoch.when != 0 && !knows(by, cell->write.epoch, space) && !(cell->strong && kind != Kind::plain)) {
      report({{by.who, by.now}, site}, "reads memory", cell->write, "write");
    }
    if (cell->read.first == first && cell->read.when == by.now) {
      cell->read.lanes |= uint32_t{1} << by.lane;
    } else if (cell->more == 0 && knows_all(by, cell->read, space)) {
      cell->read = {first, by.now, uint32_t{1} << by.lane, site};
    } else {
      add_reader(*cell, by, space, site);
    }
  }
}

void Races::add_reader(Cell& cell, const ThreadClock& by, Space space, Site site) {
  if (cell.more == 0) {
    if (free_readers_.empty()) {
      readers_.emplace_back();
      free_readers_.push_back(static_cast<uint32_t>(readers_.size()));
    }
    cell.more = free_readers_.back();
    free_readers_.pop_back();
  }
  auto& list = readers_[cell.more - 1];
  uint32_t const first = by.who - by.lane;
  for (Readers& readers : list) {
    if (readers.first != first || readers.when != by.now) continue;
    readers.lanes |= uint32_t{1} << by.lane;
    return;
  }
  Readers const own = {first, by.now, uint32_t{1} << by.lane, site};
  for (Readers& readers : list) {
    if (!knows_all(by, readers, space)) continue;
    readers = own;
    return;
  }
  list.push_back(own);
}

void Races::clear_readers(Cell& cell) {
  cell.read.when = 0;
  if (cell.more == 0) return;
  readers_[cell.more - 1].clear();
  free_readers_.push_back(cell.more);
  cell.more = 0;
}

// `knows`: what the writer knows, of an epoch.
template <class Known>
void Races::check_readers(const Cell& cell, const Access& writer, const char* what, Known knows) const {
  auto const check = [&](const Readers& readers) {
    if (readers.when == 0) return;
    for (uint32_t lanes = readers.lanes; lanes != 0; lanes &= lanes - 1) {
      Epoch const epoch = {readers.first + static_cast<uint32_t>(std::countr_zero(lanes)), readers.when};
      if (!knows(epoch)) report(writer, what, {epoch, readers.site}, "read");
    }
  };
  check(cell.read);
  if (cell.more == 0) return;
  for (const Readers& readers : readers_[cell.more - 1]) check(readers);
}

void Races::write(Cell* cells, uint32_t bytes, const ThreadClock& by, Space space, Kind kind, Site site) {
  Access const access = {{by.who, by.now}, site};
  for (Cell* cell = cells; cell < cells + bytes / 2; ++cell) {
    if (kind != Kind::strong) {
      if (cell->write.epoch.when != 0 && !knows(by, cell->write.epoch, space)) {
        report(access, "writes memory", cell->write, "write");
      }
      check_readers(*cell, access, "writes memory", [&](Epoch epoch) { return knows(by, epoch, space); });
    }
    cell->write = access;
    cell->strong = kind == Kind::strong;
    clear_readers(*cell);
  }
}

void Races::write_since(Cell* cells, uint32_t bytes, const Snapshot& begun, Epoch as, Site site) {
  constexpr char kWhat[] = "writes memory asynchronously";
  Access const from = {begun.own, site};
  for (Cell* cell = cells; cell < cells + bytes / 2; ++cell) {
    auto const known = [&](Epoch epoch) { return begun.knows(epoch, Space::shared); };
    if (cell->write.epoch.when != 0 && !known(cell->write.epoch)) report(from, kWhat, cell->write, "write");
    check_readers(*cell, from, kWhat, known);
    cell->write = {as, site};
    cell->strong = false;
    clear_readers(*cell);
  }
}

// --- Words ---

std::string Races::name(Epoch epoch) const {
  uint32_t const block = epoch.who / stride(), index = epoch.who % stride();
  std::string const place = "block " + std::to_string(block) + ", ";
  if (index < threads_) return place + "thread " + std::to_string(index);
  return place + "mbarrier " + std::to_string(index - threads_);
}

void Races::report(const Access& access, const char* what, const Access& earlier, const char* earlier_what) const {
  throw Error("race: " + name(access.epoch) + ", at " + text(access.site) + ": " + what +
              " with nothing to order it after the " + earlier_what + " by " + name(earlier.epoch) + ", at " +
              text(earlier.site));
}

}  // namespace rnnkern::emulation

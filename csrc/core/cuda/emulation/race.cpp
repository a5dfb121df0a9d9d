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

bool Snapshot::knows(Epoch epoch) const {
  if (epoch.who == own.who) return epoch.when <= own.when;
  return past != nullptr && past->of(epoch.who) >= epoch.when;
}

namespace {

bool knows(const ThreadClock& clock, Epoch epoch) {
  return epoch.who == clock.who || (clock.past != nullptr && clock.past->of(epoch.who) >= epoch.when);
}

bool knows_all(const ThreadClock& clock, const Readers& readers) {
  if (readers.when == 0) return true;
  for (uint32_t lanes = readers.lanes; lanes != 0; lanes &= lanes - 1) {
    if (!knows(clock, {readers.first + static_cast<uint32_t>(std::countr_zero(lanes)), readers.when})) return false;
  }
  return true;
}

}  // namespace

// --- Order ---

void Races::join_all(std::span<ThreadClock* const> threads) {
  auto known = std::make_shared<Known>();
  const Known* last = nullptr;
  for (const ThreadClock* thread : threads) {
    if (thread->past != nullptr && thread->past.get() != last) known->add(*thread->past);
    last = thread->past.get();
  }
  for (const ThreadClock* thread : threads) known->add({thread->who, thread->now});
  for (ThreadClock* thread : threads) {
    thread->past = known;
    ++thread->now;
  }
}

void Races::acquire(ThreadClock& thread, const Snapshot& from) {
  if (knows(thread, from.own)) return;
  auto known = thread.past == nullptr ? std::make_shared<Known>() : std::make_shared<Known>(*thread.past);
  if (from.past != nullptr && from.past != thread.past) known->add(*from.past);
  known->add(from.own);
  thread.past = known;
}

void Races::acquire(ThreadClock& thread, const Past& from) {
  if (from == nullptr || from == thread.past) return;
  if (thread.past == nullptr) {
    thread.past = from;
    return;
  }
  auto known = std::make_shared<Known>(*thread.past);
  known->add(*from);
  thread.past = known;
}

void Races::gather(PhaseClock& clock, ThreadClock& arriving) {
  if (arriving.past != nullptr) clock.gathered.add(*arriving.past);
  clock.gathered.add({arriving.who, arriving.now});
  ++arriving.now;
}

// --- Accesses ---

Cell* Races::global(uintptr_t address) {
  uintptr_t const page = address / kPage;
  auto& shadow = pages_[page];
  // An access that begins before the end of a page may reach 14 bytes beyond it only where it is not aligned.
  if (shadow == nullptr) shadow = std::make_unique<Shadow>(kPage);
  return shadow->at(address % kPage);
}

void Races::read(Cell* cells, uint32_t bytes, const ThreadClock& by, Kind kind, Site site) {
  uint32_t const first = by.who - by.lane;
  for (Cell* cell = cells; cell < cells + bytes / 2; ++cell) {
    if (cell->write.epoch.when != 0 && !knows(by, cell->write.epoch) && !(cell->strong && kind != Kind::plain)) {
      report({{by.who, by.now}, site}, "reads memory", cell->write, "write");
    }
    if (cell->read.first == first && cell->read.when == by.now) {
      cell->read.lanes |= uint32_t{1} << by.lane;
    } else if (cell->more == 0 && knows_all(by, cell->read)) {
      cell->read = {first, by.now, uint32_t{1} << by.lane, site};
    } else {
      add_reader(*cell, by, site);
    }
  }
}

void Races::add_reader(Cell& cell, const ThreadClock& by, Site site) {
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
    if (!knows_all(by, readers)) continue;
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

void Races::write(Cell* cells, uint32_t bytes, const ThreadClock& by, Kind kind, Site site) {
  Access const access = {{by.who, by.now}, site};
  for (Cell* cell = cells; cell < cells + bytes / 2; ++cell) {
    if (kind != Kind::strong) {
      if (cell->write.epoch.when != 0 && !knows(by, cell->write.epoch)) {
        report(access, "writes memory", cell->write, "write");
      }
      check_readers(*cell, access, "writes memory", [&](Epoch epoch) { return knows(by, epoch); });
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
    if (cell->write.epoch.when != 0 && !begun.knows(cell->write.epoch)) report(from, kWhat, cell->write, "write");
    check_readers(*cell, from, kWhat, [&](Epoch epoch) { return begun.knows(epoch); });
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

#include "race.h"

#include <algorithm>

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
  for (Cell* cell = cells; cell < cells + bytes / 2; ++cell) {
    if (cell->write.epoch.when != 0 && !knows(by, cell->write.epoch) && !(cell->strong && kind != Kind::plain)) {
      report({{by.who, by.now}, site}, "reads memory", cell->write, "write");
    }
    if (cell->more == 0 && (cell->read.epoch.when == 0 || knows(by, cell->read.epoch))) {
      cell->read = {{by.who, by.now}, site};
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
  Access const access = {{by.who, by.now}, site};
  if (knows(by, cell.read.epoch)) {
    cell.read = access;
    return;
  }
  for (Access& reader : readers_[cell.more - 1]) {
    if (knows(by, reader.epoch)) {
      reader = access;
      return;
    }
  }
  readers_[cell.more - 1].push_back(access);
}

void Races::clear_readers(Cell& cell) {
  cell.read.epoch = {};
  if (cell.more == 0) return;
  readers_[cell.more - 1].clear();
  free_readers_.push_back(cell.more);
  cell.more = 0;
}

void Races::write(Cell* cells, uint32_t bytes, const ThreadClock& by, Kind kind, Site site) {
  Access const access = {{by.who, by.now}, site};
  for (Cell* cell = cells; cell < cells + bytes / 2; ++cell) {
    if (kind != Kind::strong) {
      if (cell->write.epoch.when != 0 && !knows(by, cell->write.epoch))
        report(access, "writes memory", cell->write, "write");
      if (cell->read.epoch.when != 0 && !knows(by, cell->read.epoch))
        report(access, "writes memory", cell->read, "read");
      if (cell->more != 0) {
        for (Access const& reader : readers_[cell->more - 1]) {
          if (!knows(by, reader.epoch)) report(access, "writes memory", reader, "read");
        }
      }
    }
    cell->write = access;
    cell->strong = kind == Kind::strong;
    clear_readers(*cell);
  }
}

void Races::write_since(Cell* cells, uint32_t bytes, const Snapshot& begun, Epoch as, Site site) {
  Access const from = {begun.own, site};
  for (Cell* cell = cells; cell < cells + bytes / 2; ++cell) {
    auto const check = [&](const Access& earlier, const char* what) {
      if (earlier.epoch.when != 0 && !begun.knows(earlier.epoch))
        report(from, "writes memory asynchronously", earlier, what);
    };
    check(cell->write, "write");
    check(cell->read, "read");
    if (cell->more != 0) {
      for (Access const& reader : readers_[cell->more - 1]) check(reader, "read");
    }
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

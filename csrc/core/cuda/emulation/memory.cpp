// Memory that threads share, and the flags between blocks.
#include <cstring>

#include "machine.h"
#include "report.h"

namespace rnnkern::emulation {

namespace {
constexpr int kPatience = 16;  // loads of one address by a thread, one after the other, before others run
}

void Machine::access_shared(uint32_t address, uint32_t bytes, bool write, Site site) {
  Thread& thread = self();
  Cell* const cells = thread.owner->shadow->at(address);
  if (write) {
    races_->write(cells, bytes, thread.clock, Space::shared, Races::Kind::plain, site);
  } else {
    races_->read(cells, bytes, thread.clock, Space::shared, Races::Kind::plain, site);
  }
}

void Machine::access_global(const void* address, uint32_t bytes, bool write, Site site) {
  Thread& thread = self();
  if (write) {
    spins_ = 0;
    if (races_)
      races_->write(races_->global(reinterpret_cast<uintptr_t>(address)), bytes, thread.clock, Space::global,
                    Races::Kind::plain, site);
    return;
  }
  thread.same_loads = address == thread.last_load ? thread.same_loads + 1 : 0;
  thread.last_load = address;
  if (thread.same_loads >= kPatience) spin(site);
  if (races_)
    races_->read(races_->global(reinterpret_cast<uintptr_t>(address)), bytes, thread.clock, Space::global,
                 Races::Kind::relaxed, site);
}

// --- Asynchronous copies: they land at the wait, and may have landed at any time before ---

void Machine::begin_copy(uint32_t to, const void* from, Site site) {
  Thread& thread = self();
  ++statistics_.copies;
  Copy copy = {to, static_cast<const unsigned char*>(from), site, {}};
  if (races_) {
    races_->read(races_->global(reinterpret_cast<uintptr_t>(from)), 16, thread.clock, Space::global, Races::Kind::plain,
                 site);
    copy.begun = thread.clock.snapshot();
    ++thread.clock.now;  // what the thread itself does to either side from here on is not before the copy
  }
  thread.copies.push_back(copy);
}

void Machine::finish_copies(Site) {
  Thread& thread = self();
  for (Copy const& copy : thread.copies) {
    if (races_) {
      Cell* const source = races_->global(reinterpret_cast<uintptr_t>(copy.from));
      races_->read(source, 16, thread.clock, Space::global, Races::Kind::plain, copy.site);
      races_->write_since(thread.owner->shadow->at(copy.to), 16, copy.begun, {thread.clock.who, thread.clock.now},
                          copy.site);
    }
    std::memcpy(thread.shared + copy.to, copy.from, 16);
  }
  thread.copies.clear();
}

// --- Flags ---

void Machine::release_flag(uint32_t* flag, uint32_t value, Site site) {
  Thread& thread = self();
  ++statistics_.flags;
  *flag = value;
  Flag& state = flags_[flag];
  if (races_) {
    races_->write(races_->global(reinterpret_cast<uintptr_t>(flag)), 4, thread.clock, Space::global,
                  Races::Kind::strong, site);
    state.release = {thread.clock.snapshot(), true};
    ++thread.clock.now;
  }
  size_t kept = 0;
  for (Thread* waiting : state.waiting) {
    if (waiting->wanted <= value) {
      wake(*waiting);
    } else {
      state.waiting[kept++] = waiting;
    }
  }
  bool const woke = kept < state.waiting.size();
  state.waiting.resize(kept);
  spins_ = 0;
  if (woke) progress();
}

void Machine::wait_flag(const uint32_t* flag, uint32_t at_least, Site site) {
  while (*flag < at_least) {
    flags_[flag].waiting.push_back(&self());
    suspend(Wait::flag, site, flag, at_least);
  }
  if (!races_) return;
  // Only a value that was released brings what lies before it.
  Cell const& cell = *races_->global(reinterpret_cast<uintptr_t>(flag));
  Flag const& state = flags_[flag];
  if (state.release.valid && cell.strong && cell.write.epoch == state.release.snapshot.own) {
    races_->acquire(self().clock, state.release.snapshot);
  }
}

// A flag may have been written by a plain store, which wakes nobody: when nothing else can run, its value counts.
bool Machine::recheck_flags() {
  bool found = false;
  for (auto& [flag, state] : flags_) {
    size_t kept = 0;
    for (Thread* waiting : state.waiting) {
      if (waiting->wanted <= *static_cast<const uint32_t*>(flag)) {
        wake(*waiting);
        found = true;
      } else {
        state.waiting[kept++] = waiting;
      }
    }
    state.waiting.resize(kept);
  }
  return found;
}

}  // namespace rnnkern::emulation

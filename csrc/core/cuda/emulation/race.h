// Finds two accesses to the same memory, one of them a write, that nothing orders: not a barrier, not a sync_warp, not
// an mbarrier, not a flag's release that the other side acquired. Emulated threads take turns and never see what is out
// of order, so order is reckoned: each thread knows how far into every other thread's past it can see. An mbarrier
// orders shared memory alone between blocks, as it does on the device (see primitives.cuh): global memory that one
// block writes and another reads behind it is a race.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "thread.h"

namespace rnnkern::emulation {

// A moment: `when` counts the synchronisations of `who`, a thread or an mbarrier, from 1.
struct Epoch {
  uint32_t who = 0, when = 0;
  bool operator==(const Epoch&) const = default;
};

// For each thread and mbarrier in a range, the last moment that is known; 0 outside.
struct Known {
  uint32_t first = 0;
  std::vector<uint32_t> when;

  uint32_t of(uint32_t who) const { return who - first < when.size() ? when[who - first] : 0; }
  void add(Epoch epoch);
  void add(const Known& other);

 private:
  void cover(uint32_t begin, uint32_t end);
};
using Past = std::shared_ptr<const Known>;

enum class Space { global, shared };

// What is known of all memory, and what of shared memory alone beside that.
struct Pasts {
  Past past, shared;
  bool know(Epoch epoch, Space space) const {
    if (past != nullptr && past->of(epoch.who) >= epoch.when) return true;
    return space == Space::shared && shared != nullptr && shared->of(epoch.who) >= epoch.when;
  }
};

// What a thread knew at a moment, its own past included.
struct Snapshot {
  Pasts pasts;
  Epoch own;
  bool knows(Epoch epoch, Space space) const;
};

struct ThreadClock {
  uint32_t who = 0, now = 1;
  uint32_t lane = 0;  // who - lane is the first of its warp
  Pasts pasts;
  Snapshot snapshot() const { return {pasts, {who, now}}; }
};

struct PhaseClock {
  uint32_t who = 0;
  Epoch made;                    // its mbarrier_init
  Known gathered, of_own_block;  // from all arrivals, and from those of its own block
  Pasts completed;               // as it was when the last phase ended
};

// What a flag's last release passes on.
struct Release {
  Snapshot snapshot;
  bool valid = false;
};

// The last accesses to each two bytes of some memory.
struct Access {
  Epoch epoch;
  Site site;
};
struct Readers {       // lanes of a warp, all at the same moment of their own
  uint32_t first = 0;  // thread of lane 0
  uint32_t when = 0;   // 0: nobody
  uint32_t lanes = 0;
  Site site;  // of the first to come
};
struct Cell {
  Access write;
  Readers read;
  uint32_t more = 0;    // other readers: an index into the lists of Races, from 1
  bool strong = false;  // the write was a flag's: a relaxed load may see it at any time
};

class Shadow {
 public:
  explicit Shadow(size_t bytes) : cells_(static_cast<Cell*>(std::calloc(bytes / 2 + 1, sizeof(Cell)))) {}
  Cell* at(size_t byte) { return cells_.get() + byte / 2; }

 private:
  struct Free {
    void operator()(Cell* cells) const { std::free(cells); }
  };
  std::unique_ptr<Cell[], Free> cells_;  // the system's zero pages until they are touched
};

class Races {
 public:
  // Threads of a block and its mbarriers are numbered together.
  static constexpr uint32_t kMbarriers = 16;
  explicit Races(int threads_per_block) : threads_(threads_per_block) {}
  uint32_t thread_number(int block, int thread) const { return block * stride() + thread; }
  uint32_t mbarrier_number(int block, int mbarrier) const { return block * stride() + threads_ + mbarrier; }

  // Each access throws Error where it is in a race.
  enum class Kind { plain, relaxed, strong };
  void read(Cell* cells, uint32_t bytes, const ThreadClock& by, Space space, Kind kind, Site site);
  void write(Cell* cells, uint32_t bytes, const ThreadClock& by, Space space, Kind kind, Site site);
  // A write to shared memory that may have happened at any moment since `begun`, and is `as` to those who look later.
  void write_since(Cell* cells, uint32_t bytes, const Snapshot& begun, Epoch as, Site site);
  Cell* global(uintptr_t address);

  // Order.
  void join_all(std::span<ThreadClock* const> threads);
  void acquire(ThreadClock& thread, const Snapshot& from);
  void acquire(ThreadClock& thread, const Pasts& from);
  void gather(PhaseClock& clock, ThreadClock& arriving, bool of_own_block);
  void complete(PhaseClock& clock, uint32_t phase);

 private:
  std::string name(Epoch epoch) const;
  uint32_t stride() const { return threads_ + kMbarriers; }
  [[noreturn]] void report(const Access& access, const char* what, const Access& earlier,
                           const char* earlier_what) const;
  template <class Known>
  void check_readers(const Cell& cell, const Access& writer, const char* what, Known knows) const;
  void add_reader(Cell& cell, const ThreadClock& by, Space space, Site site);
  void clear_readers(Cell& cell);

  static constexpr uintptr_t kPage = 4096;
  uint32_t threads_;
  std::vector<std::vector<Readers>> readers_;
  std::vector<uint32_t> free_readers_;
  std::unordered_map<uintptr_t, std::unique_ptr<Shadow>> pages_;
};

}  // namespace rnnkern::emulation

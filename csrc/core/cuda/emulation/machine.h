// One launch: its threads as fibers, what they wait for, and who runs next.
#pragma once

#include <exception>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "../launch_shape.h"
#include "fiber.h"
#include "options.h"
#include "race.h"
#include "thread.h"

namespace rnnkern::emulation {

inline constexpr int kLanes = 32;

enum class Wait : uint8_t { nothing, barrier, shuffle, mma, warp, cluster, flag, mbarrier, spin, exited };

struct Block;
struct Warp;

// A copy that copy_async has begun.
struct Copy {
  uint32_t to;
  const unsigned char* from;
  Site site;
  Snapshot begun;
};

struct Thread : Running {
  Fiber fiber;
  Warp* warp = nullptr;
  Block* owner = nullptr;
  Wait wait = Wait::nothing;
  Site site;                     // of the wait
  const void* object = nullptr;  // the flag, or the Mbarrier
  uint32_t wanted = 0;           // its value, or parity
  void* operand = nullptr;       // of the collective
  const void* last_load = nullptr;
  int same_loads = 0;  // of last_load, one after the other
  std::vector<Copy> copies;
  ThreadClock clock;
};

struct Warp {
  uint32_t ready = 0;  // lanes that can run
  int rank = 0;        // priority: the lowest first
  int rotation = 0;    // the lane that comes first, and whether the others follow downwards
  bool downwards = false;
  Thread* lanes = nullptr;
  // The collective under way.
  uint32_t arrived = 0;
  Wait kind = Wait::nothing;
  Site site;
};

struct Mbarrier {
  int index = 0;  // of its block
  uint32_t address = 0;
  int arrivals = 0;  // of each phase
  int pending = 0;
  int64_t bytes = 0;  // expected and not yet come
  uint32_t phase = 0;
  bool announced = false;  // mbarrier_init_done
  Block* owner = nullptr;
  Thread* maker = nullptr;
  Site site;  // of its mbarrier_init
  std::vector<Thread*> waiting;
  PhaseClock clock;
};

struct Cluster {
  int first_block = 0;
  int alive = 0;    // blocks
  int arrived = 0;  // threads at cluster_sync
  Site site;
};

struct Block {
  int index = 0;
  Cluster* cluster = nullptr;
  std::unique_ptr<Thread[]> threads;
  int alive = 0;    // threads
  int arrived = 0;  // at sync_threads
  Site site;
  unsigned char* shared = nullptr;
  std::unique_ptr<unsigned char[]> memory;
  std::unique_ptr<Shadow> shadow;  // of its shared memory
  std::vector<std::unique_ptr<Mbarrier>> mbarriers;

  bool started() const { return threads != nullptr; }
  bool running() const { return alive > 0; }
};

// A store to another block that has not arrived.
struct RemoteStore {
  int block;  // the target
  uint32_t to, mbarrier;
  uint32_t word[4];
  Site site;
  int from_block, from_thread;
  Snapshot issued;
};

struct Flag {
  std::vector<Thread*> waiting;
  Release release;
};

// What a launch runs: body(context) on every thread.
struct Body {
  void (*call)(const void* context);
  const void* context;
};

class Machine {
 public:
  Machine(const LaunchShape& shape, Body body, const Options& options, uint64_t seed, Statistics& statistics);
  ~Machine();
  void run();

  static Machine& current() { return *current_; }
  static Thread& self() { return *static_cast<Thread*>(running); }

  // --- waiting (scheduler.cpp) ---
  void suspend(Wait wait, Site site, const void* object = nullptr, uint32_t wanted = 0);  // until somebody wakes it
  void wake(Thread& thread);
  void wake_lanes(Warp& warp, uint32_t lanes);
  void progress();  // after waking somebody: under skewed priorities they may come first
  void spin(Site site);

  // --- collectives (collectives.cpp) ---
  // Leaves `operand` where the last lane to arrive finds it. True for that lane: it computes for all 32 and calls
  // finish_collective.
  bool join_collective(Wait kind, void* operand, Site site);
  void finish_collective();
  void barrier(Site site);
  void cluster_barrier(Site site);

  // --- memory between threads and blocks (memory.cpp, cluster.cpp) ---
  void access_shared(uint32_t address, uint32_t bytes, bool write, Site site);
  void access_global(const void* address, uint32_t bytes, bool write, Site site);
  void begin_copy(uint32_t to, const void* from, Site site);
  void finish_copies(Site site);
  void release_flag(uint32_t* flag, uint32_t value, Site site);
  void wait_flag(const uint32_t* flag, uint32_t at_least, Site site);
  void init_mbarrier(uint32_t address, int arrivals, Site site);
  void announce_mbarriers(Site site);
  void expect_mbarrier(uint32_t address, uint32_t bytes, Site site);
  void arrive_remote(uint32_t address, int rank, Site site);
  void wait_mbarrier(uint32_t address, int parity, Site site);
  void store_remote(uint32_t to, int rank, const uint32_t (&word)[4], uint32_t mbarrier, Site site);

  [[noreturn]] void fail_at(const std::string& what, Site site) const;

 private:
  // --- scheduler.cpp ---
  static void enter(void* thread);
  void start_blocks();
  void start(Block& block);
  void retire_blocks();
  void exit_thread(Thread& thread);
  Thread* pick();  // null: nobody can run
  Thread* take(Warp& warp);
  void redraw();
  bool stir();  // nobody is ready: lets something arrive; false: nothing is on its way
  void switch_to(Thread& next, bool last = false);
  void switch_to_host(bool last);
  uint32_t random(uint32_t below) { return static_cast<uint32_t>(random_() % below); }

  // --- cluster.cpp ---
  void arrive(Mbarrier& mbarrier, Site site);
  Block& block_of_cluster(int rank, const char* what, Site site);
  Mbarrier& mbarrier_at(Block& block, uint32_t address, Site site);
  void complete_if_done(Mbarrier& mbarrier);
  void deliver(const RemoteStore& store);

  // --- memory.cpp ---
  bool recheck_flags();

  // --- report.cpp ---
  std::string deadlock() const;

  static constinit thread_local Machine* current_ __attribute__((tls_model("initial-exec")));

  LaunchShape const shape_;
  Body const body_;
  Options const options_;
  Statistics& statistics_;
  std::mt19937_64 random_;

  std::vector<Block> blocks_;
  std::vector<Cluster> clusters_;
  std::vector<int> start_order_;  // of the clusters
  size_t started_ = 0;            // of start_order_
  int resident_ = 0;              // blocks
  int alive_ = 0;                 // threads that have started and not ended
  std::vector<int> retired_;      // clusters whose blocks have ended

  std::vector<Warp> warps_;        // of all blocks
  std::vector<int> by_rank_;       // warp of each priority
  std::vector<uint64_t> ready_;    // a bit for each priority
  std::vector<uint64_t> summary_;  // a bit for each word of ready_
  int rank_ = 0;                   // of the warp that ran last
  int until_redraw_ = 0;
  int64_t spins_ = 0;  // since somebody was woken

  Fiber host_;
  std::exception_ptr error_;
  Fiber* came_from_ = nullptr;

  std::vector<RemoteStore> in_flight_;
  size_t first_in_flight_ = 0;
  std::unordered_map<const void*, Flag> flags_;
  std::optional<Races> races_;
  // Here and not on a fiber's stack, which is left as it stands when a launch fails.
  std::vector<ThreadClock*> clocks_;
};

}  // namespace rnnkern::emulation

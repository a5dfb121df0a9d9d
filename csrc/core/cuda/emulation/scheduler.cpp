// Who runs next: blocks as they start and end, and their threads.
#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <numeric>

#include "machine.h"

namespace rnnkern::emulation {

constinit thread_local Running* running = nullptr;
constinit thread_local Machine* Machine::current_ = nullptr;

Machine::Machine(const LaunchShape& shape, Body body, const Options& options, uint64_t seed, Statistics& statistics)
    : shape_(shape), body_(body), options_(options), statistics_(statistics), random_(seed) {
  auto const require = [](bool condition, const std::string& what) {
    if (!condition) throw Error("launch: " + what);
  };
  require(current_ == nullptr, "a kernel launches a kernel");
  require(shape.blocks > 0, "blocks must be positive, got " + std::to_string(shape.blocks));
  require(shape.threads > 0 && shape.threads <= 1024 && shape.threads % kLanes == 0,
          "threads must be a multiple of 32 up to 1024, got " + std::to_string(shape.threads));
  require(shape.cluster > 0 && shape.cluster <= options.max_cluster && shape.blocks % shape.cluster == 0,
          "a cluster must have at most " + std::to_string(options.max_cluster) + " blocks and divide the " +
              std::to_string(shape.blocks) + ", got " + std::to_string(shape.cluster));
  require(shape.shared_bytes <= options.shared_bytes, "a block has " + std::to_string(options.shared_bytes) +
                                                          " bytes of shared memory, got " +
                                                          std::to_string(shape.shared_bytes));
  require(shape.cluster <= options.resident_blocks, "a cluster of " + std::to_string(shape.cluster) +
                                                        " blocks does not fit " +
                                                        std::to_string(options.resident_blocks) + " multiprocessors");
  require(!shape.cooperative || shape.blocks <= options.resident_blocks,
          "cooperative, but " + std::to_string(shape.blocks) +
              " blocks cannot be resident at once: " + std::to_string(options.resident_blocks) + " can");

  int const warps_per_block = shape.threads / kLanes;
  blocks_.resize(shape.blocks);
  clusters_.resize(shape.blocks / shape.cluster);
  for (int i = 0; i < shape.blocks; ++i) {
    blocks_[i].index = i;
    blocks_[i].cluster = &clusters_[i / shape.cluster];
  }
  for (size_t i = 0; i < clusters_.size(); ++i) clusters_[i].first_block = static_cast<int>(i) * shape.cluster;
  start_order_.resize(clusters_.size());
  std::iota(start_order_.begin(), start_order_.end(), 0);
  if (options.skewed) std::shuffle(start_order_.begin(), start_order_.end(), random_);

  warps_.resize(static_cast<size_t>(shape.blocks) * warps_per_block);
  by_rank_.resize(warps_.size());
  std::iota(by_rank_.begin(), by_rank_.end(), 0);
  for (size_t i = 0; i < warps_.size(); ++i) warps_[i].rank = static_cast<int>(i);
  ready_.assign((warps_.size() + 63) / 64, 0);
  summary_.assign((ready_.size() + 63) / 64, 0);
  if (options.race_check) races_.emplace(shape.threads);
}

Machine::~Machine() {
  running = nullptr;
  if (current_ == this) current_ = nullptr;
}

void Machine::run() {
  current_ = this;
  start_blocks();
  if (options_.skewed) redraw();
  while (alive_ > 0) {
    Thread* const next = pick();
    if (next == nullptr) throw Error(deadlock());
    came_from_ = &host_;
    running = next;
    ++statistics_.switches;
    Fiber::switch_between(host_, next->fiber);
    running = nullptr;
    if (error_) std::rethrow_exception(error_);
    retire_blocks();
    start_blocks();
  }
  // What is still on its way finds no block that runs.
  while (first_in_flight_ < in_flight_.size()) deliver(in_flight_[first_in_flight_++]);
}

// --- Blocks ---

void Machine::start_blocks() {
  while (started_ < start_order_.size() && resident_ + shape_.cluster <= options_.resident_blocks) {
    Cluster& cluster = clusters_[start_order_[started_++]];
    cluster.alive = shape_.cluster;
    resident_ += shape_.cluster;
    for (int i = 0; i < shape_.cluster; ++i) start(blocks_[cluster.first_block + i]);
  }
}

void Machine::start(Block& block) {
  constexpr size_t alignment = 128;
  block.memory.reset(new unsigned char[shape_.shared_bytes + alignment]);
  auto const address = reinterpret_cast<uintptr_t>(block.memory.get());
  block.shared = block.memory.get() + (alignment - address % alignment) % alignment;
  std::memset(block.shared, 0xff, shape_.shared_bytes);  // NaN in every type
  if (races_) block.shadow = std::make_unique<Shadow>(shape_.shared_bytes);
  block.threads = std::make_unique<Thread[]>(shape_.threads);
  block.alive = shape_.threads;
  alive_ += shape_.threads;
  Warp* const warps = &warps_[static_cast<size_t>(block.index) * (shape_.threads / kLanes)];
  for (int i = 0; i < shape_.threads; ++i) {
    Thread& thread = block.threads[i];
    thread.shared = block.shared;
    thread.shared_bytes = static_cast<uint32_t>(shape_.shared_bytes);
    thread.race_check = races_.has_value();
    thread.index = i;
    thread.block = block.index;
    thread.cluster_rank = block.index % shape_.cluster;
    thread.warp = &warps[i / kLanes];
    thread.owner = &block;
    if (races_) thread.clock.who = races_->thread_number(block.index, i);
    thread.clock.lane = static_cast<uint32_t>(i % kLanes);
    thread.fiber.prepare(&Machine::enter, &thread, static_cast<size_t>(i));
  }
  for (int i = 0; i < shape_.threads / kLanes; ++i) {
    warps[i].lanes = &block.threads[i * kLanes];
    wake_lanes(warps[i], ~uint32_t{0});
  }
}

// A block's stacks are free only once nobody runs on them: its last thread goes back to the host for this.
void Machine::retire_blocks() {
  for (int index : retired_) {
    for (int i = 0; i < shape_.cluster; ++i) {
      Block& block = blocks_[clusters_[index].first_block + i];
      block.memory.reset();
      block.shadow.reset();
      block.threads.reset();
    }
    resident_ -= shape_.cluster;
  }
  retired_.clear();
}

// --- Threads ---

void Machine::enter(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  Machine& machine = *current_;
  Fiber::entered(thread.fiber, *machine.came_from_);
  try {
    machine.body_.call(machine.body_.context);
    machine.exit_thread(thread);
  } catch (...) {
    machine.error_ = std::current_exception();
  }
  if (machine.error_ || thread.owner->alive == 0) machine.switch_to_host(true);
  Thread* next = nullptr;
  try {
    next = machine.pick();
    if (next == nullptr) throw Error(machine.deadlock());
  } catch (...) {
    machine.error_ = std::current_exception();
  }
  if (machine.error_) machine.switch_to_host(true);
  machine.switch_to(*next, true);
  std::abort();  // nobody switches to a thread that has ended
}

void Machine::exit_thread(Thread& thread) {
  if (!thread.copies.empty()) {
    fail_at("leaves the kernel with " + std::to_string(thread.copies.size()) + " asynchronous copies pending",
            thread.copies.front().site);
  }
  thread.wait = Wait::exited;
  Block& block = *thread.owner;
  --alive_;
  if (--block.alive > 0) return;
  for (auto const& mbarrier : block.mbarriers) {
    if (mbarrier->bytes == 0) continue;
    fail_at("the block ends with " + std::to_string(mbarrier->bytes) + " bytes outstanding on mbarrier at " +
                std::to_string(mbarrier->address),
            mbarrier->site);
  }
  if (--block.cluster->alive == 0) retired_.push_back(block.index / shape_.cluster);
}

void Machine::switch_to(Thread& next, bool last) {
  Thread& from = self();
  ++statistics_.switches;
  came_from_ = &from.fiber;
  running = &next;
  Fiber::switch_between(from.fiber, next.fiber, last);
}

void Machine::switch_to_host(bool last) { Fiber::switch_between(self().fiber, host_, last); }

void Machine::suspend(Wait wait, Site site, const void* object, uint32_t wanted) {
  Thread& thread = self();
  thread.wait = wait;
  thread.site = site;
  thread.object = object;
  thread.wanted = wanted;
  Thread* const next = pick();
  if (next == nullptr) throw Error(deadlock());
  if (next != &thread) switch_to(*next);
  thread.wait = Wait::nothing;
}

void Machine::wake(Thread& thread) {
  spins_ = 0;
  wake_lanes(*thread.warp, uint32_t{1} << thread.index % kLanes);
}

void Machine::wake_lanes(Warp& warp, uint32_t lanes) {
  if (warp.ready == 0) {
    ready_[warp.rank / 64] |= uint64_t{1} << warp.rank % 64;
    summary_[warp.rank / 4096] |= uint64_t{1} << warp.rank / 64 % 64;
  }
  warp.ready |= lanes;
}

void Machine::progress() {
  spins_ = 0;
  if (!options_.skewed) return;
  Thread& thread = self();
  wake(thread);
  suspend(Wait::nothing, Site());
}

// A loop of plain loads: lets the others run, and says so when all that is left to run are such loops.
void Machine::spin(Site site) {
  int64_t const limit = 64 * int64_t{alive_} + 1024;
  Thread& thread = self();
  if (++spins_ > limit && !stir()) {
    thread.wait = Wait::spin;
    thread.site = site;
    throw Error(deadlock());
  }
  wake_lanes(*thread.warp, uint32_t{1} << thread.index % kLanes);
  rank_ = thread.warp->rank + 1;  // not this warp again, nor this lane
  thread.warp->rotation = (thread.index + 1) % kLanes;
  if (options_.skewed) redraw();
  suspend(Wait::spin, site);
}

// --- Choice ---

Thread* Machine::take(Warp& warp) {
  uint32_t const rotated = std::rotr(warp.ready, warp.rotation);
  int const lane = ((warp.downwards ? 31 - std::countl_zero(rotated) : std::countr_zero(rotated)) + warp.rotation) % 32;
  warp.ready &= ~(uint32_t{1} << lane);
  if (warp.ready == 0) {
    uint64_t& word = ready_[warp.rank / 64];
    word &= ~(uint64_t{1} << warp.rank % 64);
    if (word == 0) summary_[warp.rank / 4096] &= ~(uint64_t{1} << warp.rank / 64 % 64);
  }
  return &warp.lanes[lane];
}

Thread* Machine::pick() {
  if (!options_.skewed && rank_ < static_cast<int>(warps_.size())) {
    Warp& warp = warps_[by_rank_[rank_]];
    if (warp.ready != 0) return take(warp);
  }
  auto const first_from = [this](int rank) {  // first ready rank from `rank` on, -1: none
    size_t word = static_cast<size_t>(rank) / 64;
    if (word >= ready_.size()) return -1;
    uint64_t bits = ready_[word] & (~uint64_t{0} << rank % 64);
    if (bits == 0) {
      size_t group = ++word / 64;
      if (group >= summary_.size()) return -1;
      uint64_t words = word % 64 == 0 ? summary_[group] : summary_[group] & (~uint64_t{0} << word % 64);
      while (words == 0) {
        if (++group >= summary_.size()) return -1;
        words = summary_[group];
      }
      word = group * 64 + std::countr_zero(words);
      bits = ready_[word];
    }
    return static_cast<int>(word * 64 + std::countr_zero(bits));
  };
  do {
    int rank = first_from(options_.skewed ? 0 : rank_);
    if (rank < 0 && !options_.skewed) rank = first_from(0);
    if (rank < 0) continue;
    if (options_.skewed && rank != rank_) {
      if (first_in_flight_ < in_flight_.size() && random(4) == 0) stir();
      if (--until_redraw_ <= 0) redraw();
      rank = first_from(0);
    }
    rank_ = rank;
    return take(warps_[by_rank_[rank]]);
  } while (stir());
  return nullptr;
}

void Machine::redraw() {
  until_redraw_ = 1 + static_cast<int>(random(static_cast<uint32_t>(4 * warps_.size() + 16)));
  std::shuffle(by_rank_.begin(), by_rank_.end(), random_);
  std::fill(ready_.begin(), ready_.end(), 0);
  std::fill(summary_.begin(), summary_.end(), 0);
  for (size_t i = 0; i < by_rank_.size(); ++i) {
    Warp& warp = warps_[by_rank_[i]];
    warp.rank = static_cast<int>(i);
    uint32_t const draw = random(64);
    warp.rotation = draw % 32;
    warp.downwards = draw >= 32;
    uint32_t const lanes = warp.ready;
    warp.ready = 0;
    if (lanes != 0) wake_lanes(warp, lanes);
  }
}

bool Machine::stir() {
  if (first_in_flight_ == in_flight_.size()) return recheck_flags();
  if (options_.skewed) {
    size_t const left = in_flight_.size() - first_in_flight_;
    std::swap(in_flight_[first_in_flight_], in_flight_[first_in_flight_ + random_() % left]);
  }
  RemoteStore const store = std::move(in_flight_[first_in_flight_++]);
  if (first_in_flight_ == in_flight_.size()) {
    in_flight_.clear();
    first_in_flight_ = 0;
  }
  deliver(store);
  return true;
}

}  // namespace rnnkern::emulation

// What blocks of a cluster do to each other's shared memory.
#include <cstring>

#include "machine.h"
#include "report.h"

namespace rnnkern::emulation {

Mbarrier& Machine::mbarrier_at(Block& block, uint32_t address, Site site) {
  for (auto const& mbarrier : block.mbarriers) {
    if (mbarrier->address == address) return *mbarrier;
  }
  fail_at("block " + std::to_string(block.index) + " has initialised no mbarrier at byte " + std::to_string(address) +
              " of its shared memory",
          site);
}

void Machine::init_mbarrier(uint32_t address, int arrivals, Site site) {
  Block& block = *self().owner;
  if (arrivals < 1) fail_at("an mbarrier of " + std::to_string(arrivals) + " arrivals", site);
  for (auto const& mbarrier : block.mbarriers) {
    if (mbarrier->address == address) fail_at("initialises an mbarrier twice", site);
  }
  auto made = std::make_unique<Mbarrier>();
  made->index = static_cast<int>(block.mbarriers.size());
  made->address = address;
  made->arrivals = made->pending = arrivals;
  made->owner = &block;
  made->maker = &self();
  made->site = site;
  if (races_) {
    if (made->index >= static_cast<int>(Races::kMbarriers)) fail_at("more mbarriers than the race check counts", site);
    made->clock.who = races_->mbarrier_number(block.index, made->index);
    made->clock.made = self().clock.snapshot().own;
  }
  block.mbarriers.push_back(std::move(made));
}

void Machine::announce_mbarriers(Site) {
  for (auto const& mbarrier : self().owner->mbarriers) {
    if (mbarrier->maker == &self()) mbarrier->announced = true;
  }
}

void Machine::expect_mbarrier(uint32_t address, uint32_t bytes, Site site) {
  Thread& thread = self();
  Mbarrier& mbarrier = mbarrier_at(*thread.owner, address, site);
  if (races_ && !thread.clock.snapshot().knows(mbarrier.clock.made, Space::shared)) {
    fail_at("uses an mbarrier that another thread initialised, with nothing in between", site);
  }
  mbarrier.bytes += bytes;
  arrive(mbarrier, site);
}

void Machine::arrive_remote(uint32_t address, int rank, Site site) {
  Block& block = block_of_cluster(rank, "arrives at", site);
  Mbarrier& mbarrier = mbarrier_at(block, address, site);
  if (races_ && (!mbarrier.announced || !self().clock.snapshot().knows(mbarrier.clock.made, Space::shared))) {
    fail_at("arrives at block " + std::to_string(block.index) +
                ", whose mbarrier may not be initialised yet: mbarrier_init_done and cluster_sync must come between",
            site);
  }
  arrive(mbarrier, site);
}

void Machine::arrive(Mbarrier& mbarrier, Site site) {
  if (mbarrier.pending == 0) {
    fail_at("arrives at mbarrier " + std::to_string(mbarrier.index) + " more than " +
                std::to_string(mbarrier.arrivals) + " times in phase " + std::to_string(mbarrier.phase),
            site);
  }
  if (races_) races_->gather(mbarrier.clock, self().clock, mbarrier.owner == self().owner);
  --mbarrier.pending;
  complete_if_done(mbarrier);
}

Block& Machine::block_of_cluster(int rank, const char* what, Site site) {
  if (shape_.cluster == 1) {  // an H200 said so: an illegal instruction, also where a block means itself
    fail_at(std::string(what) + " a block of a cluster in a launch without clusters", site);
  }
  if (rank < 0 || rank >= shape_.cluster) {
    fail_at(std::string(what) + " rank " + std::to_string(rank) + " of a cluster of " + std::to_string(shape_.cluster),
            site);
  }
  Block& block = blocks_[self().owner->cluster->first_block + rank];
  if (!block.running()) {
    fail_at(std::string(what) + " block " + std::to_string(block.index) + ", which has ended", site);
  }
  return block;
}

void Machine::wait_mbarrier(uint32_t address, int parity, Site site) {
  Thread& thread = self();
  Mbarrier& mbarrier = mbarrier_at(*thread.owner, address, site);
  if (races_ && !thread.clock.snapshot().knows(mbarrier.clock.made, Space::shared)) {
    fail_at("uses an mbarrier that another thread initialised, with nothing in between", site);
  }
  while (static_cast<int>(mbarrier.phase % 2) == parity) {
    mbarrier.waiting.push_back(&thread);
    suspend(Wait::mbarrier, site, &mbarrier, static_cast<uint32_t>(parity));
  }
  if (races_) races_->acquire(thread.clock, mbarrier.clock.completed);
}

void Machine::complete_if_done(Mbarrier& mbarrier) {
  if (mbarrier.pending > 0) return;
  if (mbarrier.bytes > 0) return;
  if (mbarrier.bytes < 0) {
    throw Error("block " + std::to_string(mbarrier.owner->index) + ": mbarrier " + std::to_string(mbarrier.index) +
                " of " + text(mbarrier.site) + ": " + std::to_string(-mbarrier.bytes) +
                " bytes more than expected came in phase " + std::to_string(mbarrier.phase));
  }
  ++mbarrier.phase;
  mbarrier.pending = mbarrier.arrivals;
  if (races_) races_->complete(mbarrier.clock, mbarrier.phase);
  for (Thread* waiting : mbarrier.waiting) wake(*waiting);
  mbarrier.waiting.clear();
  spins_ = 0;
}

void Machine::store_remote(uint32_t to, int rank, const uint32_t (&word)[4], uint32_t mbarrier, Site site) {
  Thread& thread = self();
  ++statistics_.remote_stores;
  Block& block = block_of_cluster(rank, "stores to", site);
  RemoteStore store = {block.index, to, mbarrier, {}, site, thread.block, thread.index, {}};
  std::memcpy(store.word, word, sizeof store.word);
  Mbarrier const& target = mbarrier_at(block, mbarrier, site);
  if (races_) {
    store.issued = thread.clock.snapshot();
    ++thread.clock.now;
    if (!target.announced || !store.issued.knows(target.clock.made, Space::shared)) {
      fail_at("stores to block " + std::to_string(store.block) +
                  ", whose mbarrier may not be initialised yet: mbarrier_init_done and cluster_sync must come between",
              site);
    }
  }
  in_flight_.push_back(store);
}

void Machine::deliver(const RemoteStore& store) {
  Block& block = blocks_[store.block];
  if (!block.running()) {
    throw Error("block " + std::to_string(store.from_block) + ", thread " + std::to_string(store.from_thread) +
                ", at " + text(store.site) + ": a store is on its way to block " + std::to_string(store.block) +
                ", which has ended");
  }
  Mbarrier& mbarrier = mbarrier_at(block, store.mbarrier, store.site);
  if (races_) {
    races_->write_since(block.shadow->at(store.to), 16, store.issued, {mbarrier.clock.who, mbarrier.phase + 1},
                        store.site);
  }
  std::memcpy(block.shared + store.to, store.word, 16);
  mbarrier.bytes -= 16;
  complete_if_done(mbarrier);
}

}  // namespace rnnkern::emulation

// What a warp, a block or a cluster does together.
#include "machine.h"
#include "report.h"

namespace rnnkern::emulation {

bool Machine::join_collective(Wait kind, void* operand, Site site) {
  Thread& thread = self();
  Warp& warp = *thread.warp;
  if (warp.arrived == 0) {
    warp.kind = kind;
    warp.site = site;
  } else if (warp.kind != kind || !same(warp.site, site)) {
    fail_at(std::string("calls ") + name(kind) + " while lanes " + ranges(warp.arrived) + " of its warp wait in " +
                name(warp.kind) + " at " + text(warp.site),
            site);
  }
  thread.operand = operand;
  warp.arrived |= uint32_t{1} << thread.index % kLanes;
  if (warp.arrived == ~uint32_t{0}) return true;
  suspend(kind, site);
  return false;
}

void Machine::finish_collective() {
  Thread& thread = self();
  Warp& warp = *thread.warp;
  ++statistics_.collectives;
  if (races_ && warp.kind == Wait::warp) {
    ThreadClock* clocks[kLanes];
    for (int i = 0; i < kLanes; ++i) clocks[i] = &warp.lanes[i].clock;
    races_->join_all(clocks);
  }
  warp.arrived = 0;
  wake_lanes(warp, ~(uint32_t{1} << thread.index % kLanes));
  spins_ = 0;
}

void Machine::barrier(Site site) {
  Thread& thread = self();
  Block& block = *thread.owner;
  if (block.arrived == 0) {
    block.site = site;
  } else if (!same(block.site, site)) {
    fail_at("divergent barrier: other threads of the block wait at " + text(block.site), site);
  }
  if (++block.arrived < shape_.threads) return suspend(Wait::barrier, site);
  ++statistics_.barriers;
  block.arrived = 0;
  if (races_) {
    clocks_.clear();
    for (int i = 0; i < shape_.threads; ++i) clocks_.push_back(&block.threads[i].clock);
    races_->join_all(clocks_);
  }
  uint32_t const own = uint32_t{1} << thread.index % kLanes;
  for (int i = 0; i < shape_.threads; i += kLanes) {
    Warp& warp = *block.threads[i].warp;
    uint32_t const lanes = &warp == thread.warp ? ~own : ~uint32_t{0};
    wake_lanes(warp, lanes);
  }
  progress();
}

void Machine::cluster_barrier(Site site) {
  Thread& thread = self();
  Cluster& cluster = *thread.owner->cluster;
  if (cluster.arrived == 0) {
    cluster.site = site;
  } else if (!same(cluster.site, site)) {
    fail_at("divergent cluster barrier: other threads of the cluster wait at " + text(cluster.site), site);
  }
  if (++cluster.arrived < shape_.threads * shape_.cluster) return suspend(Wait::cluster, site);
  ++statistics_.barriers;
  cluster.arrived = 0;
  clocks_.clear();
  for (int b = 0; b < shape_.cluster; ++b) {
    Block& block = blocks_[cluster.first_block + b];
    for (int i = 0; i < shape_.threads; ++i) {
      Thread& other = block.threads[i];
      if (races_) clocks_.push_back(&other.clock);
      if (&other != &thread) wake(other);
    }
  }
  if (races_) races_->join_all(clocks_);
  progress();
}

}  // namespace rnnkern::emulation

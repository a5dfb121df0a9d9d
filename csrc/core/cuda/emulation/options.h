// How a launch is emulated, and what is counted.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rnnkern::emulation {

struct Options {
  uint64_t seed = 0;
  // Off: warps take turns, and what is on its way arrives last. On: warps have strict priorities, drawn anew now and
  // then from the seed, and what is on its way arrives at any time.
  bool skewed = false;
  bool race_check = false;
  // The device: one block runs on a multiprocessor.
  int resident_blocks = 132;
  size_t shared_bytes = 227 * 1024;  // of a block at most
  int max_cluster = 16;
};

struct Statistics {
  int64_t launches = 0;
  int64_t switches = 0;       // from one emulated thread to another
  int64_t barriers = 0;       // of a block or a cluster
  int64_t collectives = 0;    // of a warp
  int64_t flags = 0;          // released
  int64_t remote_stores = 0;  // to another block of a cluster
  int64_t copies = 0;         // asynchronous
};

}  // namespace rnnkern::emulation

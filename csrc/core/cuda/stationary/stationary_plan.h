// Chooses how the stationary kernels run a problem on a GPU. Pure host code, compiled with or without CUDA.
#pragma once

#include <string>

#include "device_facts.h"
#include "tiling.h"

namespace rnnkern::stationary {

// How one sweep runs with one exchange.
struct Choice {
  bool fits = false;
  std::string why_not;  // where it does not fit: what is missing, in numbers
  Math math = Math::fma;
  bool exact = false;  // 3xTF32
  Tiling tiling;
  int groups_per_launch = 1;  // at most kMaxGroups; all heads of a group are in its launch
  size_t exchange_bytes = 0;  // of global memory: the operands and flags of one launch, which start as zero
  double us_per_step = 0;     // predicted, for all groups together, launch after launch
  double fixed_us = 0;        // predicted: launches, weights loaded

  double us(int64_t steps) const { return fixed_us + us_per_step * static_cast<double>(steps); }
};

// The fastest layout by the model that fits. What the kernels cannot run at all (dtype, cell, projection, an older GPU)
// does not fit either.
Choice choose(const Problem& problem, Sweep sweep, Exchange exchange, const DeviceFacts& device);

// Whether every row lives at every step and no state is cut, masked or blended: the kernels have a path for that.
inline bool is_plain(const Problem& p) { return !(p.packed || p.lengths || p.reset || p.recurrent_mask || p.zoneout); }

// Registers of a thread for which the kernels are compiled (__launch_bounds__).
constexpr int registers_per_thread(const Tiling& tiling) { return 65536 / max_threads(tiling.exchange); }

// Clusters of this size that are resident at once. Where the GPU was not asked, as far as the numbers of
// multiprocessors tell: they are built in groups of at most 18, and a cluster lies in one group.
int resident_clusters(const DeviceFacts& device, int size);

}  // namespace rnnkern::stationary
